"""Trilake: Airflow, Spark on Kubernetes and sharded ClickHouse as one platform. See README.md."""
