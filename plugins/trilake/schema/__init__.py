"""Migrations: the steps of a project's sql/, applied to PostgreSQL and to ClickHouse."""
