"""Waits in the triggerer until partitions are published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from trilake.clickhouse.publication.ledger import Ledger
from trilake.endpoints import LAKE_CONNECTION, PostgresEndpoint
from trilake.errors import UnreachableError


class PartitionsPublishedTrigger(BaseTrigger):
    """Fires once: when the partitions are published, or at the deadline with what is missing.

    If the ledger does not answer, it tries again. It reads the ledger in a thread, so that the triggerer's event loop
    is not blocked.

    :param not_before: a partition counts if it was published at this time or later; ISO 8601.
    :param sequence_number: a partition counts if it has this sequence number of the Iceberg table or a later one.
    :param poll_interval: seconds between two checks.
    :param deadline: in seconds since 1970.
    """

    def __init__(
        self,
        *,
        table: str,
        partitions: Sequence[str],
        deadline: float,
        not_before: str | None = None,
        sequence_number: int | None = None,
        poll_interval: float = 60,
        lake_conn_id: str = LAKE_CONNECTION,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = table
        self.partitions = list(partitions)
        self.deadline = deadline
        self.not_before = not_before
        self.sequence_number = sequence_number
        self.poll_interval = poll_interval
        self.lake_conn_id = lake_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "table": self.table,
                "partitions": self.partitions,
                "deadline": self.deadline,
                "not_before": self.not_before,
                "sequence_number": self.sequence_number,
                "poll_interval": self.poll_interval,
                "lake_conn_id": self.lake_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await self.wait())  # type: ignore[no-untyped-call]

    async def wait(self) -> dict[str, Any]:
        """``missing``: partition -> reason, empty if all are published; ``error``: why the ledger could not be read."""
        ledger = Ledger(PostgresEndpoint.from_connection(await BaseHook.aget_connection(self.lake_conn_id)))
        not_before = datetime.fromisoformat(self.not_before) if self.not_before else None
        while True:
            event: dict[str, Any] = {"missing": {}, "error": ""}
            try:
                event["missing"] = await asyncio.to_thread(
                    ledger.missing,
                    self.table,
                    self.partitions,
                    not_before=not_before,
                    sequence_number=self.sequence_number,
                )
            except UnreachableError as e:
                event["error"] = str(e)
                self.log.warning("The ledger of publications cannot be read at the moment: %s", e)
            left = self.deadline - time.time()
            if not any(event.values()) or left <= 0:
                return event
            await asyncio.sleep(min(self.poll_interval, left))
