"""Publications in ClickHouse: the base class of operators that publish, and the task that finishes what others left."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from trilake.assets import published
from trilake.clickhouse.publication.checks import read_checks
from trilake.clickhouse.publication.comparison import compare, raise_readers_problems, readers_problems
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.reshard import finish_reshards
from trilake.clickhouse.publication.switch import raise_all
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
    """Write, audit, publish: ClickHouse pulls the data that `plan` names, the data set's checks run on it, and then
    readers see it. No row passes through Airflow. See `trilake.clickhouse.publication.publisher`.

    Emits one asset event for each partition. XCom has the `PublicationReport`: partitions ``published`` and
    ``current``, ``rows`` by partition and shard, ``total_rows``, ``warnings``; and for the loads ``query_ids``,
    ``read_rows``, ``read_bytes``, ``written_rows``, ``written_bytes``, ``seconds`` (sums), ``memory_bytes`` (the
    largest peak).

    :param data_set: what to publish. Without a grain, every shard gets the complete table.
    :param force: also replace a later state by an earlier one, a state by the same one, or rows of another source.
    """

    data_set: DataSet  # required here
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
        """Returns what to publish."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Returns the `PublicationReport` as a dictionary.

        :raises trilake.clickhouse.publication.publisher.AuditError: the rows in ClickHouse differ from the source.
        :raises trilake.clickhouse.publication.checks.CheckFailedError: a blocking check found rows.
        :raises trilake.clickhouse.publication.ledger.SourceChangedError: readers see rows of another source, and
            `force` is not set.
        """
        data_set, lake, began = self.data_set, LakeHook(), time.time()
        planned = self.plan(context, lake)
        checks = read_checks(self.sql_folder, data_set.table)
        with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
            publisher = Publisher(cluster, lake.ledger(), checks=checks)
            report = publisher.publish(planned, run_id=TaskInstance.of(context).run, force=self.force)
            report = publisher.measured(report, since=began)
        self.log.info(
            "Published %s partitions of %s (%s rows); %s already had this state or a later one",
            len(report.published),
            data_set.name,
            report.total_rows,
            len(report.current),
        )
        if report.query_ids:
            self.log.info("Loads, %s queries: %s", len(report.query_ids), report.metrics)
        for outlet in self.outlets:
            # Also the current ones: the try that switched them may have died before it emitted its events.
            context["outlet_events"][outlet].add_partitions([*report.published, *report.current])
        return report.to_dict()


class CheckPublicationsOperator(BaseOperator):
    """Counts the rows of every published partition on every shard, and fails if they are not those of the ledger. Then
    looks at the tables over all shards, which people read: their columns and shards. It is safe while publishers run: a
    publication in progress is not counted as a loss.

    XCom has ``partitions``: how many were compared.

    :param table: only this data set's table; templated. None: all tables.
    :param checksums: also compare the rows' checksums. This reads all rows.
    """

    template_fields: Sequence[str] = ("table",)
    ui_color = "#fde68a"

    def __init__(
        self,
        *,
        table: str | None = None,
        checksums: bool = False,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.checksums = checksums
        self.clickhouse_conn_id = clickhouse_conn_id

    def execute(self, context: Context) -> dict[str, int]:
        """:raises RowsLostError: it names table, partition, shard and both numbers of rows of each difference.
        :raises ReadersTableError: a table over all shards is missing, or is not what it should be.
        """
        with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
            ledger = LakeHook().ledger()
            compared = compare(cluster, ledger, self.table, checksums=self.checksums)
            problems = readers_problems(cluster, ledger, self.table)
        self.log.info("%s published partitions were compared with ClickHouse", len(compared.compared))
        for table, partition_id, rows in compared.unknown:
            self.log.warning("Partition %s of %s has %s rows in ClickHouse, but was never published. `trilake rebuild "
                             "--drop-unknown` drops it.", partition_id, table, rows)  # fmt: skip
        for table in compared.moving:
            self.log.warning("%s was not compared: a reshard of it is being finished", table)
        for problem in problems:
            self.log.error("%s", problem)
        compared.raise_differences()
        raise_readers_problems(problems)
        return {"partitions": len(compared.compared)}


class FinishPublicationsOperator(BaseOperator):
    """Completes publications and reshards that were decided but not completed, and drops what dead attempts left in
    ClickHouse. It is safe while publishers run, and in two tasks at once.

    XCom has ``finished`` (table and partition) and ``cleaned`` (attempts).

    :param table: only this data set's table; templated. None: all tables.
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
        """:raises SwitchIncompleteError: some publications cannot be completed now. All others were completed."""
        lake = LakeHook()
        with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
            publisher = Publisher(cluster, lake.ledger())
            finished, cleaned, error = [], [], None
            try:
                finished = publisher.finish(self.table)
            except TrilakeError as e:
                error = e  # a publication that is stuck must not stop the cleaning
            resharded, problems = finish_reshards(cluster, lake.ledger())
            cleaned = publisher.clean(self.table)
        for publication in finished:
            self.log.info("Finished %s of %s (run %s, fence %s)", publication.partition, publication.table,
                          publication.run_id, publication.fence)  # fmt: skip
        self.log.info("%s publications finished, %s attempts cleaned up: %s", len(finished), len(cleaned),
                      ", ".join(cleaned) or "none")  # fmt: skip
        for table in resharded:
            self.log.info("Finished the reshard of %s", table)
        raise_all([*([error] if error else []), *problems])
        return {
            "finished": [{"table": row.table, "partition": row.partition} for row in finished],
            "cleaned": cleaned,
        }
