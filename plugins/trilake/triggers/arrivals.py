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

# The trigger repeats its event while nothing is claimed: the run may have been deleted, or died before its claim. The
# time is long, because a run may wait for another run, and each repeated event starts a run that is then skipped.
REMIND_SECONDS = 900.0


class ArrivalsTrigger(BaseEventTrigger):
    """Fires when the due partitions change, and again from time to time while no run claims them.

    It keeps no state that it could lose: `trilake.lake.arrivals` decides what is due. After a restart it may fire for
    the same partitions a second time. The second run finds nothing left to claim and is skipped.

    :param data_set: the data set, from `DataSet.to_json`.
    :param settle_seconds: a partition is due when it has not changed for this many seconds.
    :param poll_interval: seconds between two checks.
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
        last_due: dict[str, datetime | None] = {}
        fired_at = 0.0
        logged: list[Overdue] = []
        while True:
            try:
                due, late = await self._look(data_set)
            except Exception as e:
                # Try again later: a trigger that ends would not watch any more.
                self.log.warning("The arrivals of %s cannot be read at the moment: %s", data_set.name, e)
            else:
                if late != logged:
                    for claim in late:
                        self.log.warning(
                            "Run %s claimed %s %s and has not committed it. Clear the run. If it no longer exists, use "
                            "`trilake arrivals --again %s/%s`",
                            claim.run, claim.data_set, claim.partition, claim.data_set, claim.partition,
                        )  # fmt: skip
                    logged = late
                # Fire when the due partitions differ from those of the last check, also when a run has claimed some.
                if due and (due != last_due or time.monotonic() - fired_at >= REMIND_SECONDS):
                    self.log.info("Due partitions of %s: %s", data_set.name, ", ".join(due))
                    yield TriggerEvent({"data_set": data_set.name, "partitions": list(due)})  # type: ignore[no-untyped-call]
                    fired_at = time.monotonic()
                last_due = due
            await asyncio.sleep(self.poll_interval)

    async def _look(self, data_set: DataSet) -> tuple[dict[str, datetime | None], list[Overdue]]:
        """The due partitions, and the partitions that were claimed long ago and not committed."""
        lake = PostgresEndpoint.from_connection(await BaseHook.aget_connection(self.lake_conn_id))
        store = S3Endpoint.from_connection(await BaseHook.aget_connection(self.s3_conn_id))

        def look() -> tuple[dict[str, datetime | None], list[Overdue]]:
            due = Arrivals(lake, s3.client(store), data_set, settle_seconds=self.settle_seconds).due()
            return due, [claim for claim in overdue(lake) if claim.data_set == data_set.name]

        return await asyncio.to_thread(look)
