"""What Airflow knows of this package: connection types, hooks, asset schemes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Airflow calls this through the entry point `apache_airflow_provider`."""
    return {
        "package-name": "trilake",
        "name": "Trilake",
        "description": "Sharded ClickHouse, Iceberg on S3 and Spark on Kubernetes as one platform.",
        "versions": [version("trilake")],
        "connection-types": [
            {
                "connection-type": "clickhouse_cluster",
                "hook-class-name": "trilake.hooks.clickhouse.ClickHouseHook",
                "hook-name": "ClickHouse cluster",
            }
        ],
        "asset-uris": [{"schemes": ["clickhouse"], "handler": "trilake.assets.normalise"}],
    }
