"""Migrations: apply the steps of a project's sql/ to PostgreSQL and ClickHouse."""
