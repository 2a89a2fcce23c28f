"""What this package registers with Airflow: connection types, hooks, asset schemes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

_SHARDS = '[{"host": "vps-3", "port": 8123, "database": "shard_1"}, {"host": "vps-3", "database": "shard_2"}]'


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
                "ui-field-behaviour": {
                    "hidden-fields": [],
                    "relabeling": {"host": "First host", "schema": "Database over all shards"},
                    "placeholders": {
                        "host": "vps-3",
                        "port": "8123, or 8443 with TLS",
                        "login": "etl_writer",
                        "schema": "analytics",
                    },
                },
                "conn-fields": {
                    "shards": {
                        "label": "Shards (JSON)",
                        # An object gets the form's JSON editor. An array would get a list of text lines.
                        "schema": {"type": ["object", "string", "null"]},
                        "description": "Host, port and database of local tables of each shard. The default host and "
                        f"port are those of the connection. Example: {_SHARDS}",
                    },
                    "cluster": {
                        "label": "Cluster",
                        "schema": {"type": ["string", "null"]},
                        "description": "Its name in the servers' remote_servers. Default: trilake.",
                    },
                    "secure": {"label": "TLS (HTTPS)", "schema": {"type": ["boolean", "null"]}},
                    "verify": {
                        "label": "Verify the server's certificate",
                        "schema": {"type": ["boolean", "null"]},
                    },
                    "connect_timeout": {
                        "label": "Connection timeout (seconds)",
                        "schema": {"type": ["integer", "null"]},
                    },
                    "send_receive_timeout": {
                        "label": "Response timeout (seconds)",
                        "schema": {"type": ["integer", "null"]},
                        "description": "How long a statement may take. Default: what its task has left, else an hour.",
                    },
                    "session_settings": {
                        "label": "Settings (JSON)",
                        "schema": {"type": ["object", "string", "null"]},
                        "description": 'Server settings for every statement. Example: {"max_threads": 4}.',
                    },
                    "client_kwargs": {
                        "label": "Client options (JSON)",
                        "schema": {"type": ["object", "string", "null"]},
                        "description": "Further arguments for clickhouse_connect.get_client.",
                    },
                },
            }
        ],
        "asset-uris": [{"schemes": ["clickhouse"], "handler": "trilake.assets.normalise"}],
    }
