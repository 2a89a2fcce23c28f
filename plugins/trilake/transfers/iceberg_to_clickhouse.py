"""Publishes a snapshot of the lake in ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError
from trilake.lake.catalog import load_table, plan
from trilake.lake.plan import LoadPlan
from trilake.operators.publications import PublishOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from trilake.hooks.lake import LakeHook


class IcebergToClickHouseOperator(PublishOperator):
    """Publishes the window's partitions of one snapshot. `PublishOperator` describes the checks and the XCom.

    Publishing the same or an older snapshot again changes nothing. If a table was dropped and created again, its
    sequence numbers start at 1 again: publish its first snapshot with `force`.

    :param snapshot_id: a snapshot of the Iceberg table; templated. Default: the current one.
    """

    template_fields: Sequence[str] = (*PublishOperator.template_fields, "snapshot_id")

    def __init__(self, *, snapshot_id: int | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot_id = snapshot_id

    def plan(self, context: Context, lake: LakeHook) -> LoadPlan:
        """:raises trilake.lake.catalog.SnapshotNotFoundError: the table does not have the snapshot."""
        data_set = self.data_set
        partitions = self.window(context).partitions if data_set.grain else []
        catalog = lake.catalog()
        try:
            return plan(
                load_table(catalog, data_set.curated), data_set, partitions, self._snapshot(), with_columns=True
            )
        finally:
            catalog.close()

    def _snapshot(self) -> int | None:
        if self.snapshot_id in (None, "", "None"):
            return None
        try:
            return int(str(self.snapshot_id))
        except ValueError:
            raise ConfigurationError(
                f"{self.snapshot_id!r} is not a snapshot of {self.data_set.curated}.",
                hint="Set snapshot_id to a number, or to None for the current snapshot.",
            ) from None
