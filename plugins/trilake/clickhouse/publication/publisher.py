"""Write, audit, publish: how partitions of an Iceberg snapshot, or plain objects, reach ClickHouse exactly once.

- Write: each shard reads the files of its bucket, by name, into a staging table that belongs to one attempt and one
  partition. Plain objects (files that are not in an Iceberg table) are not split by shard: each shard reads all of them
  and keeps the rows of its bucket.
- Audit: rows and a checksum of staging are compared with the files. Then the table's own checks run. For plain objects
  the shards together must hold the rows that were counted in each object.
- Publish: one transaction adds a row for each partition to the ledger. It is the commit point: after it, any process
  can finish the switch. First the staging tables of earlier publications (with a lower fence) are dropped, so that a
  process that continues too late cannot switch to them. Then REPLACE PARTITION runs on every shard, the rows are
  counted again, and the ledger row is marked as done.

Every step can be repeated, and a process can die after every step: `Publisher.finish` and `Publisher.clean` complete or
remove what it left.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from trilake.clickhouse import queries
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.publication.checks import Check
from trilake.clickhouse.publication.columns import AuditError, Columns, check_types, read_columns
from trilake.clickhouse.publication.comparison import compare
from trilake.clickhouse.publication.ledger import Claim, Ledger, Publication, total_rows
from trilake.clickhouse.publication.partitions import check_partition_by
from trilake.clickhouse.publication.pulls import pull_of
from trilake.clickhouse.publication.shard_sets import ShardSet
from trilake.clickhouse.publication.staging import Staging, drop_staging, staging_tables
from trilake.clickhouse.publication.switch import Switch, SwitchIncompleteError, raise_all
from trilake.clickhouse.queries import QueryMetrics
from trilake.errors import TrilakeError
from trilake.lake.data_set import DataSet
from trilake.lake.plan import LoadPlan, PartitionPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublicationReport:
    """The result of a publication.

    :param snapshot_id: the id of the Iceberg snapshot, or the version of a load of plain objects.
    :param published: partitions that this publication changed.
    :param rows: rows of each published partition that readers now see, by shard number. See `total_rows`.
    :param current: partitions that already showed this state or a later one.
    :param unverified: published partitions of the lake without sums of their columns: only their rows and checksums
        were compared with the files. See `trilake.lake.column_sums`.
    :param warnings: what the table's warning checks found.
    :param metrics: the metrics of all loads into staging, added up, from ClickHouse's answers; see
        `Publisher.measured`.
    :param query_ids: the query ids of these loads.
    """

    table: str
    snapshot_id: int
    published: tuple[str, ...] = ()
    current: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    metrics: QueryMetrics = field(default_factory=QueryMetrics)
    query_ids: tuple[str, ...] = ()

    @property
    def total_rows(self) -> int:
        """Rows of all published partitions. Every shard has a full copy of a dimension table; its rows count once."""
        return sum(total_rows(partition, by_shard) for partition, by_shard in self.rows.items())

    def to_dict(self) -> dict[str, Any]:
        """The form for XCom: the metrics are top-level keys, with the same names as in `ClickHouseOperator`."""
        document = asdict(self)
        return {**document, "total_rows": self.total_rows, **document.pop("metrics")}


@dataclass
class _Written:
    """What an attempt has in staging.

    :param loads: the metrics of each load, by query id.
    """

    claims: list[Claim] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    loads: dict[str, QueryMetrics] = field(default_factory=dict)


class Publisher:
    """Publishes to one cluster.

    :param checks: the table's own checks, see `trilake.clickhouse.publication.checks`.
    """

    def __init__(self, cluster: Cluster, ledger: Ledger, *, checks: Sequence[Check] = ()) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.checks = tuple(checks)
        self._switch = Switch(cluster, ledger)

    def publish(
        self,
        plan: LoadPlan,
        *,
        run_id: str,
        force: bool = False,
        lost: Mapping[str, Publication] | None = None,
    ) -> PublicationReport:
        """Make the partitions of `plan` visible to readers of ClickHouse.

        A partition that shows this state or a later one is not changed, unless `force` is set, or the shards do not
        hold its rows any more. First, what dead attempts for this table left is removed. So a task's next try cleans up
        after the previous one.

        :param lost: the publications by partition whose rows were lost, when `plan` is of exactly these states. Each is
            published again, unless another publication came in between. Then the rows must have the same checksums.

        :raises SourceChangedError: a partition shows rows of another source, without `force`. Nothing was published.
        :raises ReshardedError: the table's rows are being spread over another number of shards.
        :raises RowsLostError: the shards do not hold the rows of a later state than this one.
        :raises AuditError: staging does not hold the source's rows. Readers see no change.
        :raises PartitionByError: the table is partitioned by another unit than the data set. Readers see no change.
        :raises CheckFailedError: a blocking check found rows. Readers see no change.
        :raises SwitchIncompleteError: the publication is decided but not complete. Publish again, or call `finish`.
        """
        table = plan.data_set.table
        shard_set = self.ledger.shard_sets.of(table)
        shard_set.check_open(table)
        cluster = self._shards(plan, shard_set)
        for dead, _ in self.ledger.attempts(table):
            self._try_to_clean(dead, table)
        if lost is None:
            due, current, lost = self._what_to_write(plan, force=force)
        else:
            due, current = list(plan.partitions), []
        if not due:
            return PublicationReport(table, plan.snapshot_id, current=tuple(current))
        attempt = secrets.token_hex(6)
        log.info("Publishing %s of %s at %s %s, attempt %s", _few(p.partition for p in due), table,
                 "version" if plan.plain else "snapshot", plan.snapshot_id, attempt)  # fmt: skip
        with self.ledger.attempt(attempt, table, run_id, shard_set) as held:
            try:
                written = self._write(cluster, plan, due, lost, attempt)
                won, kept = self.ledger.claim(held, written.claims, force=force)
                self._switch.all([*won, *(p for p in kept if p.state == "switching")])
            finally:
                if held.lost:  # then other processes may clean up too, and the publication may have been decided
                    self._try_to_clean(attempt, table)
                else:
                    self._sweep(attempt, table)
        return PublicationReport(
            table,
            plan.snapshot_id,
            published=tuple(p.partition for p in won),
            current=tuple(sorted([*current, *(p.partition for p in kept)])),
            rows={p.partition: p.rows for p in won},
            unverified=tuple(p.partition for p in won if p.partition not in plan.sums and _has_sums(plan)),
            warnings=tuple(written.warnings),
            metrics=QueryMetrics.of_all(written.loads.values()),
            query_ids=tuple(written.loads),
        )

    def _shards(self, plan: LoadPlan, shard_set: ShardSet) -> Cluster:
        """The shards that get rows. Every shard has a full copy of a dimension table."""
        if plan.data_set.grain and shard_set.shards:
            return self.cluster.only(range(1, shard_set.shards + 1))
        return self.cluster

    def _what_to_write(
        self, plan: LoadPlan, *, force: bool
    ) -> tuple[list[PartitionPlan], list[str], dict[str, Publication]]:
        """The partitions to write, those that are current, and the publications whose rows were lost."""
        due, current, lost = self._due(plan, force=force)
        lost |= self._lost(plan, current)
        due += [partition for partition in plan.partitions if partition.partition in lost]
        return due, [name for name in current if name not in lost], lost

    def _write(
        self,
        cluster: Cluster,
        plan: LoadPlan,
        due: Sequence[PartitionPlan],
        lost: Mapping[str, Publication],
        attempt: str,
    ) -> _Written:
        """Write partitions into staging, compare them with the files, and run the table's checks.

        :raises AuditError: staging does not hold the source's rows, or the table's columns were changed meanwhile.
        :raises CheckFailedError: a blocking check found rows.
        """
        written = _Written()
        columns = read_columns(self.cluster, plan.data_set)
        check_partition_by(self.cluster, plan.data_set, columns, [p.partition for p in due])
        for filled, partitions in _by_columns(columns, due, lost):
            check_types(plan, filled)
            known = [p.partition for p in partitions if _is_known(plan, lost.get(p.partition), filled, cluster)]
            staging = Staging(cluster, plan, pull_of(plan, filled, len(cluster.shards)), attempt, known=known)
            claims, loads = staging.write(partitions)
            written.claims += [
                _again(plan.data_set.table, c, lost[c.partition]) if c.partition in lost else c for c in claims
            ]
            written.loads |= loads
            written.warnings += staging.run_checks(self.checks, partitions)
        if read_columns(self.cluster, plan.data_set) != columns:
            raise AuditError(
                f"The columns of {plan.data_set.local_table} were changed while it was being published.",
                hint="Nothing was published. Run the task again.",
            )
        return written

    def measured(self, report: PublicationReport, *, since: float) -> PublicationReport:
        """The report with the loads' metrics from the query log, which also records memory. If the log does not have
        all loads, the report is returned unchanged.

        :param since: a time before the publication began, in seconds since 1970.
        """
        if not report.query_ids:
            return report
        prefix = report.query_ids[0].rsplit(":", 3)[0] + ":"
        try:
            logged = queries.logged(self.cluster, prefix, count=len(report.query_ids), since=since)
        except TrilakeError as e:
            log.info("The query log has no metrics for the loads of %s: %s", report.table, e)
            return report
        return replace(report, metrics=logged) if logged else report

    def finish(self, table: str | None = None) -> list[Publication]:
        """Complete the publications that the ledger has decided. Safe while publishers run.

        :raises SwitchIncompleteError: names all that cannot be completed. The others are complete.
        """
        due = self.ledger.switching(table)
        self._switch.all(due)
        return due

    def finish_each(self, publications: Iterable[Publication]) -> list[tuple[Publication, SwitchIncompleteError]]:
        """Complete publications that the ledger has decided. Returns those that cannot be completed, and why."""
        incomplete = []
        for publication in publications:
            try:
                self._switch.one(publication)
            except SwitchIncompleteError as e:
                incomplete.append((publication, e))
        return incomplete

    def clean(self, table: str | None = None) -> list[str]:
        """Complete what abandoned attempts decided, and drop their staging tables. Returns those attempts.

        :raises SwitchIncompleteError: names all that cannot be completed. The rest is cleaned up.
        """
        cleaned = []
        errors = []
        for attempt, name in self.ledger.attempts(table):
            try:
                if self._clean_attempt(attempt, name):
                    cleaned.append(attempt)
            except TrilakeError as e:
                errors.append(e)
        # List the tables first, then the attempts. A staging table is made after its attempt is registered. So a table
        # without a registered attempt is from a process that continued after its attempt was cleaned up as dead.
        tables = staging_tables(self.cluster)
        registered = {attempt for attempt, _ in self.ledger.attempts()}
        for staging in tables:
            if staging.attempt not in registered and table in (None, staging.table):
                self.cluster.on_shard(staging.shard, partial(drop_staging, staging.name))
                cleaned.append(staging.attempt)
        raise_all(errors)
        return sorted(set(cleaned))

    def _due(self, plan: LoadPlan, *, force: bool) -> tuple[list[PartitionPlan], list[str], dict[str, Publication]]:
        """The partitions to write, those that are current, and those of exactly this state whose staging was lost.

        Finishes incomplete switches of current partitions.
        """
        due, current, lost = [], [], {}
        for partition in plan.partitions:
            publication = self.ledger.current(plan.data_set.table, partition.partition)
            planned = plan.state_of(partition), plan.sequence_number, plan.source
            if publication is None or force or not publication.stands_against(*planned):
                due.append(partition)
                continue
            if publication.state == "switching":
                try:
                    self._switch.one(publication)
                except SwitchIncompleteError as e:
                    if not (e.staging_lost and publication.shows(*planned[:2])):
                        raise
                    log.warning("Published again: %s", e)
                    lost[partition.partition] = publication
                    continue
            current.append(partition.partition)
        return due, current, lost

    def _lost(self, plan: LoadPlan, current: Sequence[str]) -> dict[str, Publication]:
        """The publications of exactly this state whose rows the shards do not hold, although the ledger says so.

        :raises RowsLostError: the rows of a later state were lost. This plan cannot bring them back.
        """
        if not current:
            return {}
        planned = {p.partition: (plan.state_of(p), plan.sequence_number) for p in plan.partitions}
        lost: dict[str, Publication] = {}
        later = []
        compared = compare(self.cluster, self.ledger, plan.data_set.table, current)
        for difference in compared.differences:
            publication = difference.publication
            if publication.shows(*planned[publication.partition]):
                log.warning("Published again, because rows were lost: %s", difference)
                lost[publication.partition] = publication
            else:
                later.append(difference)
        replace(compared, differences=tuple(later)).raise_differences()
        return lost

    def _clean_attempt(self, attempt: str, table: str) -> bool:
        """Complete what an attempt decided and drop the rest. False: its process is alive, or something is left."""
        with self.ledger.abandoned(attempt) as free:
            if not free:
                return False
            try:
                decided = [p for p in self.ledger.switching(table) if p.attempt == attempt]
                self._switch.all(decided)
            finally:  # keep only the staging tables of publications that cannot be completed
                swept = self._sweep(attempt, table)
            return swept

    def _try_to_clean(self, attempt: str, table: str) -> None:
        try:
            self._clean_attempt(attempt, table)
        except TrilakeError as e:
            log.warning(
                "Attempt %s of %s could not be cleaned up now; the next clean-up tries again: %s", attempt, table, e
            )

    def _sweep(self, attempt: str, table: str) -> bool:
        """Drop the staging tables of an attempt, except those that the ledger needs. Then remove the attempt's row.

        False: a table is still needed, or a shard cannot be reached. Then the attempt stays registered.
        """
        try:
            needed = {
                DataSet(table).staging_table(attempt, publication.partition)
                for publication in self.ledger.switching(table)
                if publication.attempt == attempt
            }
            for staging in staging_tables(self.cluster):
                if staging.attempt == attempt and staging.name not in needed:
                    self.cluster.on_shard(staging.shard, partial(drop_staging, staging.name))
            if not needed:
                self.ledger.forget(attempt)
            return not needed
        except TrilakeError as e:
            log.warning(
                "Attempt %s of %s could not be cleaned up now; the next clean-up tries again: %s", attempt, table, e
            )
            return False


def _by_columns(
    columns: Columns, due: Sequence[PartitionPlan], lost: Mapping[str, Publication]
) -> Iterator[tuple[Columns, list[PartitionPlan]]]:
    """The partitions, by the columns to fill. A column that was added after lost rows were published has its default
    there, as ClickHouse gave it to these rows.
    """
    groups: dict[tuple[str, ...], list[PartitionPlan]] = {}
    for partition in due:
        contents = lost[partition.partition].contents if partition.partition in lost else None
        filled = columns.only(contents.columns) if contents else columns
        groups.setdefault(filled.names, []).append(partition)
    for names, partitions in groups.items():
        yield columns.only([(name, "") for name in names]), partitions


def _is_known(plan: LoadPlan, lost: Publication | None, columns: Columns, cluster: Cluster) -> bool:
    """Whether the ledger has the checksum of each shard, of exactly these columns. `_again` compares them.

    The objects of a plain load are counted one by one, so they are read again.
    """
    contents = lost.contents if lost and not plan.plain else None
    shards = {shard.number for shard in cluster.shards}
    return contents is not None and contents.columns == columns.typed and set(contents.checksums) == shards


def _again(table: str, claim: Claim, lost: Publication) -> Claim:
    """The claim to publish lost rows again.

    :raises AuditError: the rows are not those that were published.
    """
    before, now = lost.contents, claim.contents
    if before and now and not before.may_equal(now, lost.partition):
        raise AuditError(
            f"{table}, partition {lost.partition}: the source does not give the rows that were published (fence "
            f"{lost.fence}, run {lost.run_id}): their checksums differ.",
            hint="Nothing was published. Run the data set's job again, and publish its snapshot.",
        )
    return replace(claim, replaces=lost.fence)


def _has_sums(plan: LoadPlan) -> bool:
    """Whether jobs write sums for such partitions: not for plain objects, and not for dimension tables."""
    return not plan.plain and plan.data_set.grain is not None


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]} to {listed[-1]} ({len(listed)} partitions)"


__all__ = ["AuditError", "PublicationReport", "Publisher", "SwitchIncompleteError"]
