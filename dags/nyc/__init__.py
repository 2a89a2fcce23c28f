"""What the DAGs and the jobs of the flights demo share. It holds no DAG, and the DAG processor ignores it."""
