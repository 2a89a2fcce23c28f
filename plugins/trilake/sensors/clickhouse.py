"""Waits until partitions are published in ClickHouse."""

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

# The trigger ends the wait and names the missing partitions. Airflow's own timeout comes later, as a fallback.
_TRIGGER_SLACK = timedelta(minutes=5)
_LISTED = 5


class NotPublishedError(TrilakeError, AirflowSensorTimeout):
    """Partitions are missing at the timeout. Like every sensor timeout, it is not retried."""


class ClickHousePartitionSensor(WindowedOperator, BaseSensorOperator):
    """Succeeds when readers of ClickHouse see every partition of the window, in a version that is recent enough.

    It reads the ledger of publications. A partition that is being switched on the shards (``switching``) does not count
    as published, even if an earlier version was. `poke_interval`, `timeout` (seconds or timedelta) and `soft_fail` work
    as in every sensor. When it waits in the triggerer, `mode` and backoff have no effect.

    :param data_set: the data set of the partitions; without a grain, its whole table.
    :param not_before: the partitions were published at this time or later (a datetime, UTC if it has no zone, or its
        ISO string; templated), or at most this long before the wait began (a timedelta). If readers already saw the
        snapshot, a publisher publishes nothing, and the earlier time counts.
    :param snapshot_id: the partitions show this snapshot of the data set's Iceberg table, or a later one; templated.
    :param deferrable: wait in the triggerer.
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
        self._arguments: dict[str, Any] | None = None

    def execute(self, context: Context) -> None:
        """:raises NotPublishedError: partitions are missing at the timeout.
        :raises ConfigurationError: `not_before` is not a time, or `snapshot_id` is not a snapshot.
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
            self.log.warning("The ledger of publications cannot be read at the moment: %s", e)
        condition = self._condition(context)
        trigger = PartitionsPublishedTrigger(
            table=condition["table"],
            partitions=condition["partitions"],
            deadline=time.time() + self.timeout,
            not_before=condition["not_before"].isoformat() if condition["not_before"] else None,
            sequence_number=condition["sequence_number"],
            poll_interval=self.poke_interval,
            lake_conn_id=self.lake_conn_id,
        )
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _TRIGGER_SLACK,
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Continues after the wait in the triggerer."""
        self._missing = dict(event["missing"])
        if self._missing or event["error"]:
            raise self._not_published(event["error"])
        self.log.info("Published: %s", self._name)

    def poke(self, context: Context) -> bool:
        """Whether all partitions are published. Logs the missing ones."""
        condition = self._condition(context)
        self._missing = LakeHook(lake_conn_id=self.lake_conn_id).ledger().missing(**condition)
        if self._missing:
            self.log.info("Not published yet: %s", self._listed())
        return not self._missing

    def _condition(self, context: Context) -> dict[str, Any]:
        """The arguments for `Ledger.missing`, computed once."""
        if self._arguments is None:
            data_set: DataSet = self.data_set  # type: ignore[assignment]  # this sensor's constructor requires it
            self._arguments = {
                "table": data_set.table,
                "partitions": self.window(context).partitions if data_set.grain else [WHOLE],
                "not_before": _moment(self.not_before, self._began(context)),
                "sequence_number": self._sequence_number(data_set),
            }
        return self._arguments

    def _began(self, context: Context) -> datetime:
        """When the wait began. In mode ``reschedule`` each check runs in a new process."""
        first = context["ti"].get_first_reschedule_date(context) if self.reschedule and not self.deferrable else None
        return first or datetime.now(UTC)

    def _sequence_number(self, data_set: DataSet) -> int | None:
        if self.snapshot_id in (None, "", "None"):
            return None
        try:
            snapshot_id = int(str(self.snapshot_id))
        except ValueError:
            raise ConfigurationError(
                f"{self.snapshot_id!r} is not a snapshot of {data_set.curated}.",
                hint="Set snapshot_id to a number, or to None.",
            ) from None
        catalog = LakeHook(lake_conn_id=self.lake_conn_id).catalog()
        try:
            return sequence_number(load_table(catalog, data_set.curated), snapshot_id)
        finally:
            catalog.close()

    def _not_published(self, error: str = "") -> NotPublishedError:
        why = self._listed() if self._missing else f"the ledger could not be read: {error}"
        failure = NotPublishedError(
            f"Not published within {self.timeout:.0f} s: {why}.",
            hint="See `trilake publications`. Run the DAG that publishes what is missing, then clear this task.",
        )
        self.log.warning("%s", failure.message)  # with `soft_fail`, Airflow does not show the reason
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
        raise ConfigurationError(f"{not_before!r} is not a time.", hint="Write 2013-02-28T06:00:00Z.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
