"""The connections (``AIRFLOW_CONN_*``) of the three hosts, made of ``.env`` here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from trilake.endpoints import (
    CLICKHOUSE_CONNECTION,
    KUBERNETES_CONNECTION,
    LAKE_CONNECTION,
    OLTP_CONNECTION,
    S3_CONNECTION,
)
from trilake.hosts.environment import EnvironmentFileError

Who = Literal["airflow", "spark"]

S3_PORT = 7070
POSTGRES_PORT = 5432
METADATA_PORT = 5433
AIRFLOW_PORT = 8080
CLUSTER = "trilake"
ANALYTICS = "analytics"
# a server a shard, on one host
SHARDS = (
    {"host": "vps-3", "port": 8123, "database": "shard_1"},
    {"host": "vps-3", "port": 8124, "database": "shard_2"},
)
# Read when it is used: Kubernetes may come up after Airflow, and a token may be another tomorrow.
KUBECONFIG = "/opt/trilake/kubernetes/config"
NAMESPACE = "spark"


def connections(env: Mapping[str, str], who: Who) -> dict[str, dict[str, Any]]:
    """Connections by id, as `who` enters: Airflow's processes or Spark's pods.

    :raises EnvironmentFileError: a secret is missing; names the variable.
    """

    def database(name: str) -> dict[str, Any]:
        password = required(env, f"{name.upper()}_PASSWORD")
        known = {"conn_type": "postgres", "host": "vps-1", "port": POSTGRES_PORT}
        return {**known, "login": name, "password": password, "schema": name}

    found: dict[str, dict[str, Any]] = {
        S3_CONNECTION: {
            "conn_type": "aws",
            "login": who,
            "password": required(env, f"S3_{who.upper()}_SECRET"),
            "extra": {
                "endpoint_url": f"http://vps-1:{S3_PORT}",
                "region_name": "us-east-1",
                "config_kwargs": {"s3": {"addressing_style": "path"}},
            },
        },
        LAKE_CONNECTION: database("lake"),
        OLTP_CONNECTION: database("oltp"),
        CLICKHOUSE_CONNECTION: {
            "conn_type": "clickhouse_cluster",
            "host": SHARDS[0]["host"],
            "port": SHARDS[0]["port"],
            "login": "etl_writer",
            "password": required(env, "CLICKHOUSE_ETL_PASSWORD"),
            "schema": ANALYTICS,
            "extra": {"cluster": CLUSTER, "shards": list(SHARDS)},
        },
    }
    if who == "airflow":
        found[KUBERNETES_CONNECTION] = {
            "conn_type": "kubernetes",
            "extra": {"kube_config_path": KUBECONFIG, "namespace": NAMESPACE},
        }
    return found


def as_environment(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The connections as Airflow, a Spark driver and the command line read them: variable -> JSON on one line."""
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(doc, separators=(",", ":")) for name, doc in found.items()}


def required(env: Mapping[str, str], name: str) -> str:
    """:raises EnvironmentFileError: it is not set."""
    if not (value := env.get(name)):
        raise EnvironmentFileError(f"{name} is not set.", hint="`trilake env --check` looks at .env.")
    return value
