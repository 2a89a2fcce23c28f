"""The connections (``AIRFLOW_CONN_*``) of the three hosts. Only this module makes them from ``.env``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from trilake.endpoints import (
    AGENTS_CLICKHOUSE_CONNECTION,
    AGENTS_KUBERNETES_CONNECTION,
    AGENTS_S3_CONNECTION,
    CLICKHOUSE_CONNECTION,
    KUBERNETES_CONNECTION,
    LAKE_CONNECTION,
    OLTP_CONNECTION,
    S3_CONNECTION,
    ClickHouseEndpoint,
    ClickHouseShard,
    PostgresEndpoint,
    S3Endpoint,
)
from trilake.platform.hosts.environment import EnvironmentFileError
from trilake.postgres.databases import CATALOG_READER
from trilake.spark.application import AGENTS_NAMESPACE, NAMESPACE

Who = Literal["airflow", "spark", "agents_spark"]

S3_PORT = 7070
POSTGRES_PORT = 5432
METADATA_PORT = 5433
AIRFLOW_PORT = 8080
# One server for each shard, all on one host.
SHARDS = (ClickHouseShard(1, "vps-3", 8123, "shard_1"), ClickHouseShard(2, "vps-3", 8124, "shard_2"))
# Airflow reads this file at each use: Kubernetes may start after Airflow, and its token may change.
KUBECONFIG = "/opt/trilake/kubernetes/config"


def connections(env: Mapping[str, str], who: Who) -> dict[str, dict[str, Any]]:
    """Connections by id, with the credentials of `who`: Airflow's processes, Spark's pods, or those of agents' queries.

    The connections for agents' questions are added where the process has their secrets: in Airflow's api-server and
    scheduler.

    :raises EnvironmentFileError: a secret is missing. The message names the variable.
    """

    def database(name: str, user: str = "") -> dict[str, Any]:
        user = user or name
        password = required(env, f"{user.upper()}_PASSWORD")
        return PostgresEndpoint("vps-1", POSTGRES_PORT, database=name, user=user, password=password).connection()

    s3 = S3Endpoint(f"http://vps-1:{S3_PORT}", who.replace("_", "-"), required(env, f"S3_{who.upper()}_SECRET"))
    if who == "agents_spark":
        return {S3_CONNECTION: s3.connection(), LAKE_CONNECTION: database("lake", CATALOG_READER)}
    clickhouse = ClickHouseEndpoint(SHARDS, "etl_writer", required(env, "CLICKHOUSE_ETL_PASSWORD"))
    by_id = {
        S3_CONNECTION: s3.connection(),
        LAKE_CONNECTION: database("lake"),
        OLTP_CONNECTION: database("oltp"),
        CLICKHOUSE_CONNECTION: clickhouse.connection(),
    }
    if who == "airflow":
        for name, namespace in ((KUBERNETES_CONNECTION, NAMESPACE), (AGENTS_KUBERNETES_CONNECTION, AGENTS_NAMESPACE)):
            by_id[name] = {
                "conn_type": "kubernetes",
                "extra": {"kube_config_path": KUBECONFIG, "namespace": namespace},
            }
        if secret := env.get("CLICKHOUSE_AGENTS_PASSWORD"):
            by_id[AGENTS_CLICKHOUSE_CONNECTION] = ClickHouseEndpoint(SHARDS, "agents", secret).connection()
        if secret := env.get("S3_AGENTS_SECRET"):
            by_id[AGENTS_S3_CONNECTION] = S3Endpoint(f"http://vps-1:{S3_PORT}", "agents", secret).connection()
    return by_id


def required(env: Mapping[str, str], name: str) -> str:
    """:raises EnvironmentFileError: the variable is not set."""
    if not (value := env.get(name)):
        raise EnvironmentFileError(f"{name} is not set.", hint="`trilake env --check` checks .env.")
    return value
