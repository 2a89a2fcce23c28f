"""Write, audit, publish: how partitions of an Iceberg snapshot, or plain objects, reach ClickHouse exactly once.

- Write: each shard pulls the files of its bucket, by name, into a staging table of this attempt and partition alone. Of
  plain objects, which are not split by shard, it pulls all and keeps the rows of its bucket.
- Audit: rows and a checksum of staging against the files; the table's own checks. Of plain objects the shards together
  have to hold what was counted in each.
- Publish: the ledger decides in one transaction; from there only forward, by whoever comes: staging tables of lower
  fences go (so that nobody who acts late can switch to them), REPLACE PARTITION on every shard, recount, done.

Every step can be repeated, and every step can be the last one of a process that dies: `Publisher.finish` and
`Publisher.clean` bring what is left to its end.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from trilake.clickhouse import queries
from trilake.clickhouse.cluster import (
    INCOMPATIBLE_COLUMNS,
    UNKNOWN_TABLE,
    ClickHouseError,
    Cluster,
    Statement,
    quote_name,
    quote_text,
)
from trilake.clickhouse.publication.checks import Check, CheckFailedError
from trilake.clickhouse.publication.ledger import Claim, Ledger, Publication, total_rows
from trilake.clickhouse.publication.pull import (
    PULL,
    AuditError,
    Columns,
    Sums,
    check_header,
    sources,
    staged,
    sums,
    sums_by_file,
)
from trilake.clickhouse.publication.types import cuts
from trilake.clickhouse.queries import Metrics
from trilake.endpoints import ClickHouseShard
from trilake.errors import CountMismatchError, TrilakeError
from trilake.lake.data_set import DataSet
from trilake.lake.plan import LoadPlan, PartitionPlan, check_shards

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

# An empty partition is published like any other. The server's guard against it is for a forgotten load; here the
# count was audited.
REPLACE_SETTINGS = {"allow_replace_partition_from_empty_source": 1}

# Partitions that are switched at once. Each is a handful of quick statements that mostly wait for one another.
PARTITIONS_SIDE_BY_SIDE = 4
# Parts of staging tables smaller than this have all columns in one file
COMPACT_BYTES = 1 << 40

_STAGING_NAME = re.compile(r"(?P<table>[a-z][a-z0-9_]*)_staging_(?P<attempt>[0-9a-f]{12})_(?P<partition>all|\d{6,8})")


class SwitchIncompleteError(TrilakeError):
    """The publication is decided and not on every shard yet."""


@dataclass(frozen=True)
class PublicationReport:
    """What came of publishing: partitions by what happened to them.

    :param snapshot_id: Iceberg's, or the version of a load of plain objects.
    :param rows: rows now visible of each published partition, by shard number. See `total_rows`.
    :param current: partitions that showed this state or a later one before we came.
    :param warnings: what the table's warning checks found.
    :param metrics: what the loads of staging took, all of them, as far as their answers tell; see `Publisher.measured`.
    :param query_ids: the loads'.
    """

    table: str
    snapshot_id: int
    published: tuple[str, ...] = ()
    current: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    query_ids: tuple[str, ...] = ()

    @property
    def total_rows(self) -> int:
        """Rows of all published partitions; those of a dimension table, which stands whole on each shard, once."""
        return sum(total_rows(partition, by_shard) for partition, by_shard in self.rows.items())

    def to_dict(self) -> dict[str, Any]:
        """As XCom has it: the metrics beside the rest, by the names that `ClickHouseOperator` gives them."""
        document = asdict(self)
        return {**document, "total_rows": self.total_rows, **document.pop("metrics")}


@dataclass(frozen=True)
class _Cell:
    """What one shard pulled of one partition.

    :param by_file: rows of each plain object, by key.
    """

    rows: int
    by_file: Mapping[str, int]
    loads: Mapping[str, Metrics]


class Publisher:
    """Publishes to one cluster.

    :param checks: the table's own checks, see `trilake.clickhouse.publication.checks`.
    """

    def __init__(self, cluster: Cluster, ledger: Ledger, *, checks: Sequence[Check] = ()) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.checks = tuple(checks)

    def publish(self, plan: LoadPlan, *, run_id: str, force: bool = False) -> PublicationReport:
        """Make readers of ClickHouse see the partitions of `plan`.

        A partition that shows this state or a later one is left alone, unless `force`. What dead attempts have left of
        this table is cleaned up first, so that a task's next try leaves nothing of the one before.

        :raises SourceChangedError: a partition shows rows of another source, and no `force`; nothing was published.
        :raises AuditError: staging does not hold what the source says; readers see what they saw before.
        :raises CheckFailedError: a blocking check found rows; readers see what they saw before.
        :raises SwitchIncompleteError: decided, and not complete: publish again, or `finish`.
        """
        check_shards(plan, len(self.cluster.shards))
        table = plan.data_set.table
        for died, _ in self.ledger.attempts(table):
            self._try_to_clean(died, table)
        due, current = self._due(plan, force=force)
        if not due:
            return PublicationReport(table, plan.snapshot_id, current=tuple(current))
        attempt = secrets.token_hex(6)
        log.info("Publishing %s of %s at %s %s, attempt %s", _few(p.partition for p in due), table,
                 "version" if plan.plain else "snapshot", plan.snapshot_id, attempt)  # fmt: skip
        with self.ledger.attempt(attempt, table, run_id) as held:
            try:
                columns = self._columns(plan.data_set)
                _check_types(plan, columns)
                claims, loads = self._write(plan, due, attempt, columns)
                warnings = self._check(plan.data_set, due, attempt)
                if self._columns(plan.data_set) != columns:
                    raise AuditError(
                        f"The columns of {plan.data_set.local_table} were changed while it was being published.",
                        hint="Nothing was published. Run the task again.",
                    )
                won, standing = self.ledger.claim(held, claims, force=force)
                self._switch_all([*won, *(p for p in standing if p.state == "switching")])
            finally:
                if held.lost:  # then it is not ours alone to clean up, and may have been decided all the same
                    self._try_to_clean(attempt, table)
                else:
                    self._sweep(attempt, table)
        return PublicationReport(
            table,
            plan.snapshot_id,
            published=tuple(p.partition for p in won),
            current=tuple(sorted([*current, *(p.partition for p in standing)])),
            rows={p.partition: p.rows for p in won},
            warnings=tuple(warnings),
            metrics=Metrics.of_all(loads.values()),
            query_ids=tuple(loads),
        )

    def measured(self, report: PublicationReport, *, since: float) -> PublicationReport:
        """The report with the loads' metrics as the query log has them, which knows of memory; as it was, if the log
        does not have all of them.

        :param since: before the publication began, in seconds since 1970.
        """
        if not report.query_ids:
            return report
        prefix = report.query_ids[0].rsplit(":", 3)[0] + ":"
        try:
            logged = queries.logged(self.cluster, prefix, count=len(report.query_ids), since=since)
        except TrilakeError as e:
            log.info("The query log does not tell what the loads of %s took: %s", report.table, e)
            return report
        return replace(report, metrics=logged) if logged else report

    def finish(self, table: str | None = None) -> list[Publication]:
        """Complete the publications that the ledger says are decided. Safe beside a publisher at work.

        :raises SwitchIncompleteError: of all that cannot be completed, after the others were.
        """
        due = self.ledger.switching(table)
        self._switch_all(due)
        return due

    def clean(self, table: str | None = None) -> list[str]:
        """Finish what abandoned attempts decided, and drop what they left in ClickHouse. Gives those attempts.

        :raises SwitchIncompleteError: of all that cannot be completed, after the rest was cleaned up.
        """
        cleaned = []
        errors = []
        for attempt, name in self.ledger.attempts(table):
            try:
                if self._clean_attempt(attempt, name):
                    cleaned.append(attempt)
            except TrilakeError as e:
                errors.append(e)
        # Tables first, attempts second: a table is made after its attempt is registered, so what is not registered now
        # was made by somebody who came back from the dead.
        tables = self._staging_tables()
        registered = {attempt for attempt, _ in self.ledger.attempts()}
        for shard, found in tables:
            match = _STAGING_NAME.fullmatch(found)
            if match and match["attempt"] not in registered and table in (None, match["table"]):
                self.cluster.on_shard(shard, Statement(f"DROP TABLE IF EXISTS {{shard}}.{quote_name(found)} SYNC"))
                cleaned.append(match["attempt"])
        _raise_all(errors)
        return sorted(set(cleaned))

    def _clean_attempt(self, attempt: str, table: str) -> bool:
        """Finish what an attempt decided and drop the rest. False: somebody is behind it, or not all could be done."""
        with self.ledger.abandoned(attempt) as free:
            if not free:
                return False
            try:
                self._switch_all([one for one in self.ledger.switching(table) if one.attempt == attempt])
            finally:  # what is stuck stays, and nothing else
                swept = self._sweep(attempt, table)
            return swept

    def _try_to_clean(self, attempt: str, table: str) -> None:
        try:
            self._clean_attempt(attempt, table)
        except TrilakeError as e:
            log.warning("Attempt %s of %s is left to the next clean-up: %s", attempt, table, e)

    # --- before the decision

    def _due(self, plan: LoadPlan, *, force: bool) -> tuple[list[PartitionPlan], list[str]]:
        """The partitions to write, and those that need nothing. What is half switched is finished on the way."""
        due, current = [], []
        for partition in plan.partitions:
            held = self.ledger.current(plan.data_set.table, partition.partition)
            asked = plan.state_of(partition), plan.sequence_number, plan.source
            if held is None or force or not held.stands_against(*asked):
                due.append(partition)
                continue
            if held.state == "switching":
                self._switch(held)
            current.append(partition.partition)
        return due, current

    def _columns(self, data_set: DataSet) -> Columns:
        rows = self.cluster.every_shard(
            lambda client, shard: Statement(
                "SELECT name, type FROM system.columns WHERE default_kind IN ('', 'DEFAULT') "
                f"AND database = {quote_text(shard.database)} AND table = {quote_text(data_set.local_table)} "
                "ORDER BY position"
            )(client, shard)
        )
        first = rows[self.cluster.shards[0].number]
        for shard in self.cluster.shards:
            if not rows[shard.number]:
                raise ClickHouseError(
                    f"{shard} has no table {data_set.local_table}.", hint="Apply the migrations: `trilake migrate`."
                )
            if rows[shard.number] != first:
                raise ClickHouseError(
                    f"The columns of {data_set.local_table} differ between the shards.",
                    hint="Apply the migrations: `trilake migrate`.",
                )
        return Columns(tuple(name for name, _ in first), tuple(kind for _, kind in first))

    def _write(
        self, plan: LoadPlan, partitions: Sequence[PartitionPlan], attempt: str, columns: Columns
    ) -> tuple[list[Claim], dict[str, Metrics]]:
        """Fill and audit the staging tables, a shard and partition at a time, side by side. Gives the loads, too."""
        if plan.plain == "CSVWithNames":
            files = [file for partition in partitions for file in partition.files]
            shards = self.cluster.shards
            self.cluster.on_shards(
                [(shards[n % len(shards)], partial(check_header, plan, file, columns)) for n, file in enumerate(files)]
            )
        at = [(shard, partition) for partition in partitions for shard in self.cluster.shards]
        cells = self.cluster.on_shards(
            [(shard, partial(self._write_cell, plan, partition, attempt, columns)) for shard, partition in at]
        )
        claims: list[Claim] = []
        loads: dict[str, Metrics] = {}
        for partition in partitions:
            by_shard = {s.number: c for (s, p), c in zip(at, cells, strict=True) if p.partition == partition.partition}
            if plan.plain:
                _audit_objects(plan, partition, by_shard.values())
            rows = {number: cell.rows for number, cell in by_shard.items()}
            state = plan.state_of(partition)
            claims.append(Claim(partition.partition, state, plan.sequence_number, rows, plan.source))
            for cell in by_shard.values():
                loads |= cell.loads
        return claims, loads

    def _write_cell(
        self,
        plan: LoadPlan,
        partition: PartitionPlan,
        attempt: str,
        columns: Columns,
        client: Client,
        shard: ClickHouseShard,
    ) -> _Cell:
        data_set = plan.data_set
        local = f"{quote_name(shard.database)}.{quote_name(data_set.local_table)}"
        name = data_set.staging_table(attempt, partition.partition)
        staging = f"{quote_name(shard.database)}.{quote_name(name)}"
        client.command(f"CREATE TABLE {staging} AS {local}")
        # a wide part has buffers of 2 MiB for each of its files, several a column; merges make parts wide later
        client.command(f"ALTER TABLE {staging} MODIFY SETTING min_bytes_for_wide_part = {COMPACT_BYTES}")
        files = partition.of_shard(shard.number)
        pulled, by_file, loads = Sums(), dict[str, int](), dict[str, Metrics]()
        for source in sources(plan, files, columns, shard=shard.number, shards=len(self.cluster.shards)):
            query_id = f"publish:{attempt}:{partition.partition}:{shard.number}:{len(loads) + 1}"
            done = client.command(
                f"INSERT INTO {staging} ({columns.listed}) SELECT {columns.listed} FROM {source}",
                settings={**PULL, "query_id": query_id},
            )
            loads[query_id] = Metrics.of_summary(getattr(done, "summary", {}))
            if plan.plain:
                for key, found in sums_by_file(client, source, plan.bucket, files, columns).items():
                    pulled += found
                    by_file[key] = found.rows
            else:
                pulled += sums(client, source, columns)
        held, partitions = staged(client, staging, columns)
        where = f"{data_set.table}, partition {partition.partition}, {shard}"
        if not plan.plain and held.rows != (expected := sum(file.rows for file in files)):
            raise AuditError(f"{where}: the snapshot says {expected} rows, staging holds {held.rows}.")
        if held != pulled:
            raise AuditError(f"{where}: the values in staging are not those of the files.", hint="Run the task again.")
        declared = data_set.partition_id(partition.partition)
        if strangers := partitions - {declared}:
            raise AuditError(f"{where}: staging holds rows of other partitions: {', '.join(sorted(strangers))}.")
        return _Cell(held.rows, by_file, loads)

    def _check(self, data_set: DataSet, partitions: Sequence[PartitionPlan], attempt: str) -> list[str]:
        def run(check: Check, partition: PartitionPlan, client: Client, shard: ClickHouseShard) -> int:
            name = data_set.staging_table(attempt, partition.partition)
            return int(client.query(check.on(f"{quote_name(shard.database)}.{quote_name(name)}")).result_rows[0][0])

        cells = [(s, c, p) for p in partitions for c in self.checks for s in self.cluster.shards]
        found = self.cluster.on_shards([(shard, partial(run, check, partition)) for shard, check, partition in cells])
        totals: dict[tuple[Check, str], int] = {}
        for (_, check, partition), rows in zip(cells, found, strict=True):
            totals[check, partition.partition] = totals.get((check, partition.partition), 0) + rows
        failed = {key: rows for key, rows in totals.items() if rows}
        lines = [
            f"check {check.name} of {data_set.table} finds {rows} rows in partition {partition}"
            for (check, partition), rows in failed.items()
        ]
        if any(check.blocking for check, _ in failed):
            raise CheckFailedError(
                "; ".join(line for line, (check, _) in zip(lines, failed, strict=True) if check.blocking) + ".",
                hint="Nothing was published. Mend the data or the check, and run the task again.",
            )
        for line in lines:
            log.warning("%s", line)
        return lines

    # --- after the decision: only forward, by anybody, any number of times

    def _switch_all(self, publications: Sequence[Publication]) -> None:
        """:raises SwitchIncompleteError: of all that cannot be completed, after the others were."""
        errors = []

        def switch(publication: Publication) -> None:
            try:
                self._switch(publication)
            except TrilakeError as e:
                errors.append(e)

        with ThreadPoolExecutor(max_workers=PARTITIONS_SIDE_BY_SIDE) as pool:
            list(pool.map(switch, publications))
        _raise_all(errors)

    def _switch(self, publication: Publication) -> None:
        data_set = DataSet(publication.table)
        pid = data_set.partition_id(publication.partition)
        staging = quote_name(data_set.staging_table(publication.attempt, publication.partition))
        local = quote_name(data_set.local_table)
        try:
            for attempt in self.ledger.lower_fences(publication):
                self._drop(attempt, publication)
            self.cluster.every_shard(
                Statement(
                    f"ALTER TABLE {{shard}}.{local} REPLACE PARTITION ID {quote_text(pid)} FROM {{shard}}.{staging}",
                    REPLACE_SETTINGS,
                )
            )
            counted = self.cluster.every_shard(
                Statement(f"SELECT count() FROM {{shard}}.{local} WHERE _partition_id = {quote_text(pid)}")
            )
        except TrilakeError as e:
            self._unless_overtaken(publication, e)
            return
        held = {number: int(rows[0][0]) for number, rows in counted.items()}
        if held != dict(publication.rows):
            self._unless_overtaken(
                publication,
                CountMismatchError(
                    f"the shards hold {held} rows after the switch, the ledger says {publication.rows}."
                ),
            )
            return
        if self.ledger.done(publication):
            log.info("Published %s of %s: %s rows by shard, fence %s", publication.partition, publication.table, held,
                     publication.fence)  # fmt: skip
        self._drop(publication.attempt, publication)

    def _unless_overtaken(self, publication: Publication, error: TrilakeError) -> None:
        """A step failed. If the ledger has moved on, or somebody else was done first, that is why, and all is well."""
        current = self.ledger.current(publication.table, publication.partition)
        if current and (current.fence > publication.fence or current.state == "done"):
            log.info("%s of %s was completed by another process", publication.partition, publication.table)
            return
        hints = {
            UNKNOWN_TABLE: "Its staging table is gone: publish the snapshot again with force.",
            INCOMPATIBLE_COLUMNS: "The table was given other columns meanwhile: publish a snapshot that has them, or "
            "this one again with force.",
        }
        code = error.code if isinstance(error, ClickHouseError) else 0
        raise SwitchIncompleteError(
            f"Partition {publication.partition} of {publication.table} is decided (fence {publication.fence}) and not "
            f"on every shard: {error.message}",
            hint=hints.get(code, "Run the task again, or `trilake publications --finish`."),
        ) from error

    def _drop(self, attempt: str, publication: Publication) -> None:
        """Nobody can fill this staging table, or switch to it, any more."""
        name = DataSet(publication.table).staging_table(attempt, publication.partition)
        self.cluster.every_shard(partial(_kill_and_drop, name))

    def _sweep(self, attempt: str, table: str) -> bool:
        """Drop every staging table of an attempt but those that the ledger still needs; then forget the attempt.

        False: what cannot be reached or is needed stays registered, and is the next cleaner's.
        """
        try:
            needed = {
                DataSet(table).staging_table(attempt, publication.partition)
                for publication in self.ledger.switching(table)
                if publication.attempt == attempt
            }
            for shard, name in self._staging_tables():
                match = _STAGING_NAME.fullmatch(name)
                if match and match["attempt"] == attempt and name not in needed:
                    self.cluster.on_shard(shard, partial(_kill_and_drop, name))
            if not needed:
                self.ledger.forget(attempt)
            return not needed
        except TrilakeError as e:
            log.warning("Attempt %s of %s is left to the next clean-up: %s", attempt, table, e)
            return False

    def _staging_tables(self) -> list[tuple[ClickHouseShard, str]]:
        def tables(client: Client, shard: ClickHouseShard) -> list[tuple[ClickHouseShard, str]]:
            rows = client.query(
                "SELECT name FROM system.tables "
                f"WHERE database = {quote_text(shard.database)} AND name LIKE '%staging%'"
            ).result_rows
            return [(shard, row[0]) for row in rows]

        return [found for by_shard in self.cluster.every_shard(tables).values() for found in by_shard]


def _check_types(plan: LoadPlan, columns: Columns) -> None:
    """:raises AuditError: a column of the table could not hold what the snapshot's column can."""
    cut = [
        f"{name} is {plan.types[name]} in the lake and {kind} in ClickHouse"
        for name, kind in zip(columns.names, columns.types, strict=True)
        if name in plan.types and cuts(plan.types[name], kind)
    ]
    if cut:
        raise AuditError(
            f"{plan.data_set.table}: {'; '.join(cut)}. Values would be cut without a word; nothing was published.",
            hint="Give both the same type: a step in sql/clickhouse that alters the table, or a cast in the job.",
        )


def _raise_all(errors: Sequence[TrilakeError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        raise SwitchIncompleteError(" ".join(error.message for error in errors), hint=" ".join(hints))


def _kill_and_drop(name: str, client: Client, shard: ClickHouseShard) -> None:
    # A query on the table would hold DROP up for as long as it runs, and an INSERT of a dead attempt can run for long.
    # By kind: a KILL or DROP of the same table, for another shard of this server, is no enemy.
    client.command(f"KILL QUERY WHERE query LIKE {quote_text(f'%{name}%')} AND query_kind IN ('Insert', 'Alter') SYNC")
    client.command(f"DROP TABLE IF EXISTS {quote_name(shard.database)}.{quote_name(name)} SYNC")


def _audit_objects(plan: LoadPlan, partition: PartitionPlan, cells: Iterable[_Cell]) -> None:
    """:raises AuditError: the shards together, or each of them, do not hold the rows that were counted in an object."""
    pulled, name = list(cells), f"{plan.data_set.table}, partition {partition.partition}"
    for file in partition.files:
        held = [cell.by_file.get(file.key, 0) for cell in pulled]
        for total in [sum(held)] if plan.mixed else held:
            if total != file.rows:
                keyless = f" A row without {plan.data_set.shard_by} belongs to no shard." if plan.mixed else ""
                raise AuditError(
                    f"{name}: s3://{plan.bucket}/{file.key} was counted as {file.rows} rows, {total} were read.",
                    hint=f"Nothing was published. Count it anew.{keyless}",
                )


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]} to {listed[-1]} ({len(listed)} partitions)"


__all__ = ["AuditError", "PublicationReport", "Publisher", "SwitchIncompleteError"]
