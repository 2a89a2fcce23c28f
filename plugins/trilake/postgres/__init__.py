"""PostgreSQL: connections, advisory locks, marts, databases, and query results as files."""
