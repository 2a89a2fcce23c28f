"""Waits in the triggerer for a query that was already sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from trilake.clickhouse import queries
from trilake.clickhouse.cluster import Cluster
from trilake.endpoints import ClickHouseEndpoint
from trilake.errors import TrilakeError

# The trigger waits this long for a server that is down (a restart, an upgrade). It checks the query afterwards.
_UNREACHABLE_SECONDS = 900.0
# Airflow gives on_kill 30 s in total.
_KILL_SECONDS = 20.0


class ClickHouseQueryTrigger(BaseTrigger):
    """Fires once: when the query has ended, or when its state cannot be found.

    :param query_id: id of the query.
    :param since: when it was sent, in seconds since 1970.
    :param poll_interval: seconds between two checks.
    :param record: returned in the event.
    """

    def __init__(
        self,
        *,
        clickhouse_conn_id: str,
        query_id: str,
        since: float,
        poll_interval: float = 2,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clickhouse_conn_id = clickhouse_conn_id
        self.query_id = query_id
        self.since = since
        self.poll_interval = poll_interval
        self.record = record

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "clickhouse_conn_id": self.clickhouse_conn_id,
                "query_id": self.query_id,
                "since": self.since,
                "poll_interval": self.poll_interval,
                "record": self.record,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await self.wait())  # type: ignore[no-untyped-call]

    async def wait(self) -> dict[str, Any]:
        """The query's state as in `queries.Seen.to_dict`, or `unreachable` if the hosts did not answer."""
        identity = {"query_id": self.query_id, "record": self.record}
        answered = time.monotonic()
        gone: float | None = None  # since when no server runs the query
        with Cluster(await self._servers()) as cluster:
            while True:
                try:
                    seen = await asyncio.to_thread(queries.look, cluster, self.query_id, since=self.since)
                    answered = time.monotonic()
                    gone = None if seen.state is queries.QueryState.RUNNING else gone or answered
                    late = gone is not None and answered - gone > queries.LOG_DELAY_SECONDS
                    if seen.state in (queries.QueryState.FINISHED, queries.QueryState.FAILED) or late:
                        return {**identity, **seen.to_dict()}
                except TrilakeError as e:
                    if time.monotonic() - answered > _UNREACHABLE_SECONDS:
                        return {**identity, "state": "unreachable", "error": str(e)}
                    self.log.warning("Query %s cannot be checked at the moment: %s", self.query_id, e)
                await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """Kills this query on every host after a person has stopped the task. No other submission uses the query."""
        with Cluster(await self._servers()) as cluster:
            if await asyncio.to_thread(queries.kill, cluster, self.query_id, seconds=_KILL_SECONDS):
                self.log.info("Query %s was killed with its task", self.query_id)

    async def _servers(self) -> ClickHouseEndpoint:
        endpoint = ClickHouseEndpoint.of_servers(await BaseHook.aget_connection(self.clickhouse_conn_id))
        return endpoint.for_questions()
