"""PostgreSQL: connections, advisory locks, marts, databases, and extracts of queries to files."""
