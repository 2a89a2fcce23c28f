"""Watches ``s3://raw/<data set>/`` for a DAG that arrivals start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from trilake import s3
from trilake.endpoints import LAKE_CONNECTION, S3_CONNECTION, PostgresEndpoint, S3Endpoint
from trilake.lake.arrivals import POLL_SECONDS, SETTLE_SECONDS, Arrivals, Overdue, overdue
from trilake.lake.data_set import DataSet

# What was told and not taken is told again: its run may have been deleted, or may have died before it took anything.
# Not often: a run that waits for another one has taken nothing yet either, and for each reminder one more is skipped.
REMIND_SECONDS = 900.0


class ArrivalsTrigger(BaseEventTrigger):
    """Fires when partitions are due: each time that others are, and as a reminder while nobody takes them.

    It remembers nothing that it could lose: `trilake.lake.arrivals` tells what is due. After a restart it fires for
    what is due by then, which may be a second time; the run that comes second finds nothing left to take.

    :param data_set: as `DataSet.to_json` tells it.
    :param settle_seconds: a partition is due when it has been quiet for so long.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        *,
        data_set: str,
        settle_seconds: float = SETTLE_SECONDS,
        poll_interval: float = POLL_SECONDS,
        s3_conn_id: str = S3_CONNECTION,
        lake_conn_id: str = LAKE_CONNECTION,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.data_set = data_set
        self.settle_seconds = settle_seconds
        self.poll_interval = poll_interval
        self.s3_conn_id = s3_conn_id
        self.lake_conn_id = lake_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "data_set": self.data_set,
                "settle_seconds": self.settle_seconds,
                "poll_interval": self.poll_interval,
                "s3_conn_id": self.s3_conn_id,
                "lake_conn_id": self.lake_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        data_set = DataSet.from_json(self.data_set)
        told: dict[str, datetime | None] = {}
        told_at = 0.0
        left: list[Overdue] = []
        while True:
            try:
                due, late = await self._look(data_set)
            except Exception as e:
                # a store or a database that is away is asked again: a watcher that ends watches nothing
                self.log.warning("The arrivals of %s cannot be seen for now: %s", data_set.name, e)
            else:
                if late != left:
                    for one in late:
                        self.log.warning(
                            "Run %s took %s %s and has not committed it: clear it, or if it is gone `trilake arrivals "
                            "--again %s/%s`", one.run, one.data_set, one.partition, one.data_set, one.partition,
                        )  # fmt: skip
                    left = late
                # others, or fewer: who took those left these. One that only goes on changing was told
                if due and (due != told or time.monotonic() - told_at >= REMIND_SECONDS):
                    self.log.info("Due of %s: %s", data_set.name, ", ".join(due))
                    yield TriggerEvent({"data_set": data_set.name, "partitions": list(due)})  # type: ignore[no-untyped-call]
                    told_at = time.monotonic()
                told = due
            await asyncio.sleep(self.poll_interval)

    async def _look(self, data_set: DataSet) -> tuple[dict[str, datetime | None], list[Overdue]]:
        """What is due, and what was taken long ago and never committed."""
        lake = PostgresEndpoint.from_connection(await BaseHook.aget_connection(self.lake_conn_id))
        store = S3Endpoint.from_connection(await BaseHook.aget_connection(self.s3_conn_id))

        def look() -> tuple[dict[str, datetime | None], list[Overdue]]:
            due = Arrivals(lake, s3.client(store), data_set, settle_seconds=self.settle_seconds).due()
            return due, [one for one in overdue(lake) if one.data_set == data_set.name]

        return await asyncio.to_thread(look)
