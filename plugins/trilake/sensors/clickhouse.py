"""Wait for what others publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.sdk.exceptions import AirflowSensorTimeout

from trilake.endpoints import LAKE_CONNECTION
from trilake.errors import ConfigurationError, TrilakeError, UnreachableError
from trilake.hooks.lake import LakeHook
from trilake.lake import DataSet
from trilake.lake.catalog import load_table, sequence_number
from trilake.lake.data_set import WHOLE
from trilake.operators.window import WindowedOperator
from trilake.triggers.publication import PartitionsPublishedTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# The trigger ends the wait, and says what is missing; Airflow's own limit is for one that does not.
_TRIGGER_SLACK = timedelta(minutes=5)
_LISTED = 5


class NotPublishedError(TrilakeError, AirflowSensorTimeout):
    """The time is over and partitions are missing. As every sensor's timeout, it is not tried again."""


class ClickHousePartitionSensor(WindowedOperator, BaseSensorOperator):
    """Succeeds when readers of ClickHouse see every partition of the window, at least as recent as asked.

    It reads the ledger of publications. A publication that is on its way to the shards (``switching``) is not there
    yet, also where an earlier one was. `poke_interval`, `timeout` (seconds or timedelta) and `soft_fail` are those of
    every sensor; when it waits outside the worker, there is no `mode` and no backoff.

    :param data_set: whose partitions; without a grain, its whole table.
    :param not_before: they were published at this time or later (a datetime, without a zone in UTC, or its ISO text;
        templated), or at most so long before the wait began (a timedelta). A publisher that found its snapshot shown
        already has published nothing.
    :param snapshot_id: of the data set's Iceberg table: they show this snapshot or a later one; templated.
    :param deferrable: wait outside the worker.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "not_before", "snapshot_id")
    ui_color = "#fde68a"

    def __init__(
        self,
        *,
        data_set: DataSet,
        not_before: datetime | timedelta | str | None = None,
        snapshot_id: int | str | None = None,
        deferrable: bool = True,
        lake_conn_id: str = LAKE_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_set=data_set, **kwargs)
        self.not_before = not_before
        self.snapshot_id = snapshot_id
        self.deferrable = deferrable
        self.lake_conn_id = lake_conn_id
        self._missing: dict[str, str] = {}
        self._asked: dict[str, Any] | None = None

    def execute(self, context: Context) -> None:
        """:raises NotPublishedError: the time is over and partitions are missing.
        :raises ConfigurationError: `not_before` is no time, or `snapshot_id` no snapshot.
        """
        if not self.deferrable:
            try:
                super().execute(context)
            except AirflowSensorTimeout:
                raise self._not_published() from None
            return
        try:
            if self.poke(context):
                return
        except UnreachableError as e:
            self.log.warning("The ledger of publications cannot be read for now: %s", e)
        asked = self._ask(context)
        trigger = PartitionsPublishedTrigger(
            table=asked["table"],
            partitions=asked["partitions"],
            deadline=time.time() + self.timeout,
            not_before=asked["not_before"].isoformat() if asked["not_before"] else None,
            sequence_number=asked["sequence_number"],
            poll_interval=self.poke_interval,
            lake_conn_id=self.lake_conn_id,
        )
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _TRIGGER_SLACK,
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """After the wait outside."""
        self._missing = dict(event["missing"])
        if self._missing or event["error"]:
            raise self._not_published(event["error"])
        self.log.info("Published: %s", self._name)

    def poke(self, context: Context) -> bool:
        """Whether they are there; says in the log what is not."""
        asked = self._ask(context)
        self._missing = LakeHook(lake_conn_id=self.lake_conn_id).ledger().missing(**asked)
        if self._missing:
            self.log.info("Not published yet: %s", self._listed())
        return not self._missing

    def _ask(self, context: Context) -> dict[str, Any]:
        """What the ledger is asked for, decided once: `Ledger.missing` takes it."""
        if self._asked is None:
            data_set: DataSet = self.data_set  # type: ignore[assignment]  # this sensor's constructor requires it
            self._asked = {
                "table": data_set.table,
                "partitions": self.window(context).partitions if data_set.grain else [WHOLE],
                "not_before": _moment(self.not_before, self._began(context)),
                "sequence_number": self._sequence_number(data_set),
            }
        return self._asked

    def _began(self, context: Context) -> datetime:
        """When the wait began. In mode ``reschedule`` each look is made by a process of its own."""
        first = context["ti"].get_first_reschedule_date(context) if self.reschedule and not self.deferrable else None
        return first or datetime.now(UTC)

    def _sequence_number(self, data_set: DataSet) -> int | None:
        if self.snapshot_id in (None, "", "None"):
            return None
        try:
            snapshot_id = int(str(self.snapshot_id))
        except ValueError:
            raise ConfigurationError(
                f"{self.snapshot_id!r} is not a snapshot of {data_set.curated}.", hint="Give its number, or nothing."
            ) from None
        catalog = LakeHook(lake_conn_id=self.lake_conn_id).catalog()
        try:
            return sequence_number(load_table(catalog, data_set.curated), snapshot_id)
        finally:
            catalog.close()

    def _not_published(self, error: str = "") -> NotPublishedError:
        why = self._listed() if self._missing else f"The ledger could not be read: {error}"
        failure = NotPublishedError(
            f"Not published within {self.timeout:.0f} s: {why}.",
            hint="`trilake publications` shows what is; run what publishes it, and clear this task.",
        )
        self.log.warning("%s", failure.message)  # `soft_fail` shows no reason
        return failure

    @property
    def _name(self) -> str:
        return self.data_set.name if self.data_set else ""

    def _listed(self) -> str:
        lines = [f"{partition} {why}" for partition, why in self._missing.items()]
        more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        return f"{self._name}: {'; '.join(lines[:_LISTED])}{more}"


def _moment(not_before: datetime | timedelta | str | None, began: datetime) -> datetime | None:
    if not_before in (None, "", "None"):
        return None
    if isinstance(not_before, timedelta):
        return began - not_before
    try:
        moment = not_before if isinstance(not_before, datetime) else datetime.fromisoformat(str(not_before))
    except ValueError:
        raise ConfigurationError(f"{not_before!r} is no time.", hint="Write it like 2013-02-28T06:00:00Z.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
