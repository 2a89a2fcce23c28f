"""Publications in ClickHouse as tasks: what operators that publish have in common, and the end of what others left."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from trilake.assets import published
from trilake.clickhouse.publication.checks import read_checks
from trilake.clickhouse.publication.publisher import Publisher
from trilake.endpoints import CLICKHOUSE_CONNECTION
from trilake.errors import TrilakeError
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.lake import LakeHook
from trilake.hooks.task_instance import TaskInstance
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from trilake.lake import DataSet
    from trilake.lake.plan import LoadPlan


class PublishOperator(WindowedOperator, ProjectOperator):
    """Write, audit, publish: ClickHouse pulls what `plan` names (no row passes through Airflow), the data set's checks
    run on what was pulled, and readers see it. See `trilake.clickhouse.publication.publisher`.

    Emits one asset event a partition. XCom has the `PublicationReport`: partitions ``published`` and ``current``,
    ``rows`` by partition and shard, ``total_rows``, ``warnings``, and of the loads ``query_ids``, ``read_rows``,
    ``read_bytes``, ``written_rows``, ``written_bytes``, ``seconds`` (sums), ``memory_bytes`` (the largest peak).

    :param data_set: what to publish. Without a grain it is published whole, on every shard.
    :param force: replace a later state by an earlier one, the same by itself, or rows of another source.
    """

    data_set: DataSet  # without one there is nothing to publish
    ui_color = "#fde68a"

    def __init__(
        self, *, data_set: DataSet, force: bool = False, clickhouse_conn_id: str = CLICKHOUSE_CONNECTION, **kwargs: Any
    ) -> None:
        kwargs.setdefault("outlets", [published(data_set)])
        super().__init__(data_set=data_set, **kwargs)
        self.force = force
        self.clickhouse_conn_id = clickhouse_conn_id

    @abstractmethod
    def plan(self, context: Context, lake: LakeHook) -> LoadPlan:
        """What is to be published."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Gives the `PublicationReport` as a dictionary.

        :raises trilake.clickhouse.publication.publisher.AuditError: ClickHouse did not get what the source holds.
        :raises trilake.clickhouse.publication.checks.CheckFailedError: a blocking check found rows.
        :raises trilake.clickhouse.publication.ledger.SourceChangedError: readers see rows of another source.
            No `force` was given.
        """
        data_set, lake, began = self.data_set, LakeHook(), time.time()
        planned = self.plan(context, lake)
        checks = read_checks(self.sql_folder, data_set.table)
        with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
            publisher = Publisher(cluster, lake.ledger(), checks=checks)
            report = publisher.publish(planned, run_id=TaskInstance.of(context).run, force=self.force)
            report = publisher.measured(report, since=began)
        self.log.info(
            "Published %s partitions of %s (%s rows); %s showed this state or a later one already",
            len(report.published),
            data_set.name,
            report.total_rows,
            len(report.current),
        )
        if report.query_ids:
            self.log.info("Loads, %s queries: %s", len(report.query_ids), report.metrics)
        for outlet in self.outlets:
            # also what was current: a run whose predecessor died after the switch must tell of it all the same
            context["outlet_events"][outlet].add_partitions([*report.published, *report.current])
        return report.to_dict()


class FinishPublicationsOperator(BaseOperator):
    """Brings to their end the publications that were decided and not completed, and drops what dead attempts left in
    ClickHouse. Safe beside publishers at work, and by two at once.

    XCom has ``finished`` (table and partition) and ``cleaned`` (attempts).

    :param table: of one data set alone; templated. None: of all.
    """

    template_fields: Sequence[str] = ("table",)
    ui_color = "#fde68a"

    def __init__(
        self, *, table: str | None = None, clickhouse_conn_id: str = CLICKHOUSE_CONNECTION, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.clickhouse_conn_id = clickhouse_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """:raises SwitchIncompleteError: of all that cannot be completed, after the rest was."""
        with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
            publisher = Publisher(cluster, LakeHook().ledger())
            finished, cleaned, error = [], [], None
            try:
                finished = publisher.finish(self.table)
            except TrilakeError as e:
                error = e  # one that is stuck does not keep the rest from being cleaned up
            cleaned = publisher.clean(self.table)
        for publication in finished:
            self.log.info("Finished %s of %s (run %s, fence %s)", publication.partition, publication.table,
                          publication.run_id, publication.fence)  # fmt: skip
        self.log.info("%s publications finished, %s attempts cleaned up: %s", len(finished), len(cleaned),
                      ", ".join(cleaned) or "none")  # fmt: skip
        if error:
            raise error
        return {
            "finished": [{"table": one.table, "partition": one.partition} for one in finished],
            "cleaned": cleaned,
        }
