"""A ClickHouse cluster as an Airflow connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook as OfficialClickHouseHook

from trilake.clickhouse.cluster import Cluster
from trilake.endpoints import CLICKHOUSE_CONNECTION, ClickHouseEndpoint

if TYPE_CHECKING:
    from airflow.sdk import Context


def log_comment(context: Context | None) -> dict[str, Any]:
    """What the query log says of a task's statements."""
    if not context:
        return {}
    instance = context["ti"]
    return {
        "dag": instance.dag_id,
        "task": instance.task_id,
        "run": instance.run_id,
        "map_index": instance.map_index,
        "try": instance.try_number,
    }


class ClickHouseHook(OfficialClickHouseHook):
    """The official hook, for a connection of type ``clickhouse_cluster``, which names all shards.

    common.sql's operators, sensors and checks get this hook through the connection's type; they talk to the first
    host, where the database ``analytics`` holds the tables over all shards. `cluster` talks to every shard.
    """

    conn_name_attr = "clickhouse_conn_id"
    default_conn_name = CLICKHOUSE_CONNECTION
    conn_type = "clickhouse_cluster"
    hook_name = "ClickHouse cluster"

    @property
    def endpoint(self) -> ClickHouseEndpoint:
        """:raises ConfigurationError: the connection names no shards."""
        return ClickHouseEndpoint.from_connection(self.get_connection(self.get_conn_id()))

    def cluster(self, context: Context | None = None) -> Cluster:
        """All shards; a context manager.

        :param context: the task's, for the query log.
        """
        return Cluster(self.endpoint, comment=log_comment(context))

    def _get_client_kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._get_client_kwargs()
        # a session forbids two queries side by side, and nobody here needs one
        kwargs["autogenerate_session_id"] = False
        return kwargs
