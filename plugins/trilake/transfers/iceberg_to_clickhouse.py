"""Publish a snapshot of the lake in ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trilake.assets import published
from trilake.clickhouse.checks import read_checks
from trilake.clickhouse.publication import Publisher
from trilake.endpoints import CLICKHOUSE_CONNECTION
from trilake.errors import ConfigurationError
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.lake import LakeHook
from trilake.lake import DataSet
from trilake.lake.catalog import load_table, plan
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class IcebergToClickHouseOperator(WindowedOperator, ProjectOperator):
    """Write, audit, publish: ClickHouse pulls the window's partitions of one snapshot (no row passes through Airflow),
    the data set's checks run on what was pulled, and readers see it. See `trilake.clickhouse.publication`.

    Emits one asset event a partition. Publishing the same or an older snapshot again changes nothing.

    :param data_set: what to publish. Without a grain it is published whole, on every shard.
    :param snapshot_id: of the Iceberg table; templated. By default the current one.
    :param force: replace a later snapshot by an older one, or the same by itself.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "snapshot_id")
    ui_color = "#fde68a"

    def __init__(
        self,
        *,
        data_set: DataSet,
        snapshot_id: int | str | None = None,
        force: bool = False,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("outlets", [published(data_set)])
        super().__init__(data_set=data_set, **kwargs)
        self.snapshot_id = snapshot_id
        self.force = force
        self.clickhouse_conn_id = clickhouse_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Gives the `PublicationReport` as a dictionary.

        :raises trilake.clickhouse.publication.AuditError: ClickHouse did not get what the snapshot holds.
        :raises trilake.clickhouse.checks.CheckFailedError: a blocking check found rows.
        """
        data_set: DataSet = self.data_set  # type: ignore[assignment]  # this operator's constructor requires it
        partitions = self.window(context).partitions if data_set.grain else []
        lake = LakeHook()
        catalog = lake.catalog()
        try:
            planned = plan(load_table(catalog, data_set.curated), data_set, partitions, self._snapshot())
        finally:
            catalog.close()
        checks = read_checks(self.sql_folder, data_set.table)
        with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
            publisher = Publisher(cluster, lake.ledger(), checks=checks)
            report = publisher.publish(planned, run_id=context["run_id"], force=self.force)
        self.log.info(
            "Published %s partitions of %s (%s rows); %s showed this snapshot or a later one already",
            len(report.published),
            data_set.name,
            sum(sum(by_shard.values()) for by_shard in report.rows.values()),
            len(report.current),
        )
        for outlet in self.outlets:
            # also what was current: a run whose predecessor died after the switch must tell of it all the same
            context["outlet_events"][outlet].add_partitions([*report.published, *report.current])
        return asdict(report)

    def _snapshot(self) -> int | None:
        if self.snapshot_id in (None, "", "None"):
            return None
        try:
            return int(str(self.snapshot_id))
        except ValueError:
            raise ConfigurationError(
                f"{self.snapshot_id!r} is not a snapshot of {self.data_set.curated if self.data_set else 'a table'}.",
                hint="Give its number, or nothing for the current one.",
            ) from None
