"""Writes the services' configuration (``config/``), and the connections for their clients (``connections.env``)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    S3Endpoint,
    as_environment,
)
from trilake.errors import ConfigurationError
from trilake.platform.embedded import airflow, postgres, s3
from trilake.platform.embedded.home import LOOPBACK, Home, format_environment
from trilake.platform.embedded.java import Java
from trilake.platform.embedded.processes import base_environment
from trilake.platform.package_files import package_file
from trilake.platform.private_files import write_private
from trilake.project import settings as project_settings
from trilake.spark.application import NAMESPACE

CLUSTER = "trilake"
# Databases of the one server. `shards` in the project's [tool.trilake] sets another number.
SHARDS = 2
ANALYTICS = "analytics"
JOBS_SECRET = "trilake-jobs"  # noqa: S105  the Secret's name
# The path of a kubeconfig. If it is set, Spark jobs run on that cluster and not on the platform's own API server.
KUBECONFIG_VARIABLE = "TRILAKE_KUBECONFIG"
# Fields of a kubeconfig that may refer to other files. A connection is one string, so it cannot carry them.
_IN_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile", "exec", "auth-provider")
# A driver starts no other job, and asks nothing for an agent.
_NOT_FOR_JOBS = {
    f"AIRFLOW_CONN_{name.upper()}"
    for name in (
        KUBERNETES_CONNECTION,
        AGENTS_CLICKHOUSE_CONNECTION,
        AGENTS_S3_CONNECTION,
        AGENTS_KUBERNETES_CONNECTION,
    )
}
_COLLECTIONS = ("lake", "raw", "artifacts", "exports")
_CLICKHOUSE_MEMORY_BYTES = 1 << 30
# Two drivers of this size and the services stay below 4 GiB.
_DRIVERS = 2
_DRIVER_MEMORY = "1g"


def shard_names(number: int) -> tuple[str, ...]:
    """The databases of the shards."""
    return tuple(f"shard_{n}" for n in range(1, number + 1))


def shards_of(project: Path) -> int:
    """The number of shards that a project asks for.

    :raises ConfigurationError: it is not a whole number from 1 to 16.
    """
    number = project_settings(project).get("shards", SHARDS)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 16:
        raise ConfigurationError(
            f"shards is {number!r} in [tool.trilake] of {project / 'pyproject.toml'}.",
            hint="Set a whole number from 1 to 16.",
        )
    return number


def connections(
    ports: Mapping[str, int],
    secrets: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
    *,
    shards: int = SHARDS,
) -> dict[str, dict[str, Any]]:
    """The platform's Airflow connections, by id.

    :param shards: how many shards the ClickHouse cluster has.
    :raises ConfigurationError: the file of ``TRILAKE_KUBECONFIG`` is not a kubeconfig, or needs other files.
    """
    cluster, namespace = kubeconfig(ports, secrets), NAMESPACE
    if file := environ.get(KUBECONFIG_VARIABLE):
        cluster, namespace = read_kubeconfig(Path(file))

    s3_endpoint = S3Endpoint(
        s3.url(ports["s3"]),
        secrets["s3_access_key_id"],
        secrets["s3_secret_access_key"],
        unfinished_keys=s3.UNFINISHED_KEYS,
    )
    databases = tuple(
        ClickHouseShard(number, LOOPBACK, ports["clickhouse"], name)
        for number, name in enumerate(shard_names(shards), start=1)
    )
    clickhouse = ClickHouseEndpoint(databases, "trilake", secrets["clickhouse_trilake"], CLUSTER, ANALYTICS)
    kubernetes = {
        "conn_type": "kubernetes",
        "extra": {"kube_config": json.dumps(cluster), "namespace": namespace},
    }
    return {
        S3_CONNECTION: s3_endpoint.connection(),
        LAKE_CONNECTION: postgres.endpoint(ports["postgres"], secrets, "lake").connection(),
        OLTP_CONNECTION: postgres.endpoint(ports["postgres"], secrets, "oltp").connection(),
        CLICKHOUSE_CONNECTION: clickhouse.connection(),
        # the same servers, users and namespace: none of them has rights of its own for each user
        AGENTS_CLICKHOUSE_CONNECTION: clickhouse.connection(),
        AGENTS_S3_CONNECTION: s3_endpoint.connection(),
        AGENTS_KUBERNETES_CONNECTION: kubernetes,
        KUBERNETES_CONNECTION: kubernetes,
    }


def read_kubeconfig(file: Path) -> tuple[dict[str, Any], str]:
    """Read the kubeconfig of an existing cluster: the document, and the namespace of the current context.

    :raises ConfigurationError: it cannot be read, or needs other files or programs. The message has no text of the
        file, because it holds a token.
    """
    import yaml

    try:
        document = yaml.safe_load(file.read_text())
        context = next(c["context"] for c in document["contexts"] if c["name"] == document["current-context"])
        parts = [part.get(kind) or {} for kind in ("cluster", "user") for part in document[f"{kind}s"]]
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError, StopIteration) as e:
        raise ConfigurationError(
            f"{KUBECONFIG_VARIABLE}: {file} is not a kubeconfig with a current context ({type(e).__name__}).",
            hint="`kubectl config view --minify --flatten` writes one.",
        ) from None
    if needed := sorted(name for part in parts for name in _IN_FILES if name in part):
        raise ConfigurationError(
            f"{file} refers to other files or programs: it has {', '.join(needed)}.",
            hint="Put the certificates and the token into it (`kubectl config view --minify --flatten`).",
        )
    return document, str(context.get("namespace") or NAMESPACE)


def kubeconfig(ports: Mapping[str, int], secrets: Mapping[str, str]) -> dict[str, Any]:
    server = {"server": f"http://{LOOPBACK}:{ports['kubernetes']}"}
    context = {"cluster": CLUSTER, "user": CLUSTER, "namespace": NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CLUSTER, "cluster": server}],
        "users": [{"name": CLUSTER, "user": {"token": secrets["kubernetes_token"]}}],
        "contexts": [{"name": CLUSTER, "context": context}],
        "current-context": CLUSTER,
    }


def write(home: Home, java: Java, spark_jars: Path) -> dict[str, str]:
    """Write ``connections.env`` and the services' configurations.

    :return: the base environment and all variables of ``connections.env``: complete for a new process.
    :raises ConfigurationError: a file of the home is damaged, or no port is free.
    """
    ports, client_ports, secrets = home.ports(), home.client_ports(), home.secrets()
    shards = shards_of(home.project)
    connection_variables = as_environment(connections(client_ports, secrets, shards=shards))
    clickhouse = {
        "host": LOOPBACK,
        "port": ports["clickhouse"],
        "data": str(home.data("clickhouse")),
        "users": {"trilake": secrets["clickhouse_trilake"]},
        "cluster": CLUSTER,
        "shards": list(shard_names(shards)),
        "database": ANALYTICS,
        "named_collections": {
            bucket: {
                "url": f"{s3.url(client_ports['s3'])}/{bucket}/",
                "access_key_id": secrets["s3_access_key_id"],
                "secret_access_key": secrets["s3_secret_access_key"],
            }
            for bucket in _COLLECTIONS
        },
        "max_memory_bytes": _CLICKHOUSE_MEMORY_BYTES,
    }
    spark = importlib.util.find_spec("pyspark")
    kubernetes = {
        "host": LOOPBACK,
        "port": ports["kubernetes"],
        "data": str(home.data("kubernetes")),
        "token": secrets["kubernetes_token"],
        "namespace": NAMESPACE,
        "spark_home": str(Path(spark.origin).parent) if spark and spark.origin else "",
        "java_home": str(java.home),
        "jars": str(spark_jars),
        "python": sys.executable,
        "image_files": {"/opt/trilake/run_job.py": str(package_file("spark", "image", "run_job.py"))},
        "secrets": {
            JOBS_SECRET: {name: text for name, text in connection_variables.items() if name not in _NOT_FOR_JOBS}
        },
        "max_running": _DRIVERS,
        "driver_memory_cap": _DRIVER_MEMORY,
    }
    for name, document in (("clickhouse", clickhouse), ("kubernetes", kubernetes)):
        home.data(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(home.config(f"{name}.json"), json.dumps(document, indent=2) + "\n")
    s3.write_configuration(home, ports["s3"], secrets)
    airflow.prepare(home)
    metadata = postgres.endpoint(client_ports["postgres"], secrets, "airflow")
    environment = {
        "TRILAKE_HOME": str(home.path),
        "TRILAKE_PROJECT": str(home.project),
        "JAVA_HOME": str(java.home),
        "PYSPARK_PYTHON": sys.executable,
        **airflow.settings(home, ports["airflow-api-server"], secrets, metadata),
        **connection_variables,
    }
    write_private(home.connections_file, format_environment(environment))
    return base_environment(home) | environment
