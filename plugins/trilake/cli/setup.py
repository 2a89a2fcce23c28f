"""``trilake setup``: one-shot jobs of vps_1's compose file, each safe twice. Secrets come from the environment."""

from __future__ import annotations

import os

from trilake.endpoints import PostgresEndpoint
from trilake.platform.hosts.airflow import metadata
from trilake.platform.hosts.connections import POSTGRES_PORT, required
from trilake.postgres.databases import make_databases


def databases() -> None:
    """Airflow's metadata on one server; oltp and lake on the other."""
    password = required(os.environ, "POSTGRES_SUPERUSER_PASSWORD")
    own = metadata(os.environ)
    make_databases(PostgresEndpoint(own.host, own.port, "postgres", "postgres", password), {"airflow": own.password})
    passwords = {name: required(os.environ, f"{name.upper()}_PASSWORD") for name in ("oltp", "lake")}
    make_databases(PostgresEndpoint("vps-1", POSTGRES_PORT, "postgres", "postgres", password), passwords)
    print("Databases airflow, oltp and lake are there, each for the user of its name.")


def store() -> None:
    """Identities, buckets, policies."""
    from trilake.platform.hosts import s3_admin

    s3_admin.set_up(os.environ)
    print(f"S3 knows {', '.join(s3_admin.IDENTITIES)}, and the buckets {', '.join(s3_admin.RIGHTS)}.")


def airflow() -> None:
    """Airflow's tables and admin."""
    from trilake.platform.hosts import airflow

    airflow.set_up(os.environ)
    print(f"Airflow's database is up to date, its user {airflow.ADMIN} has the password of .env.")
