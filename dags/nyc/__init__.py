"""What the DAGs and the jobs of the flights demo share. No DAG is in here, and the DAG processor passes over it."""
