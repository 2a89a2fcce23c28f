"""``trilake setup``: one-shot jobs of vps_1's compose file, each safe twice. Secrets come from the environment."""

from __future__ import annotations

import os

from trilake.endpoints import PostgresEndpoint
from trilake.hosts.airflow import metadata
from trilake.hosts.connections import POSTGRES_PORT, required
from trilake.postgres import make_databases


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
    from trilake.hosts import store

    store.set_up(os.environ)
    print(f"S3 knows {', '.join(store.IDENTITIES)}, and the buckets {', '.join(store.RIGHTS)}.")


def airflow() -> None:
    """Airflow's tables and admin."""
    from trilake.hosts import airflow

    airflow.set_up(os.environ)
    print(f"Airflow's database is up to date, its user {airflow.ADMIN} has the password of .env.")
