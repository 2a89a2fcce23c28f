"""Write, audit, publish: how a snapshot's partitions reach ClickHouse exactly once.

- Write: each shard pulls the files of its bucket, by name, into a staging table of this attempt and partition alone.
- Audit: rows and a checksum of staging against the snapshot's files; the table's own checks.
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
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from trilake.clickhouse.checks import Check, CheckFailedError
from trilake.clickhouse.cluster import (
    UNKNOWN_TABLE,
    ClickHouseError,
    Cluster,
    Statement,
    quote_name,
    quote_text,
)
from trilake.clickhouse.ledger import Claim, Ledger, Publication
from trilake.endpoints import ClickHouseShard
from trilake.errors import CountMismatchError, TrilakeError
from trilake.lake.catalog import DataFile, PartitionPlan, SnapshotPlan, check_shards
from trilake.lake.data_set import DataSet

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

# The named collection of ClickHouse that knows the lake's address and key; statements never carry either.
LAKE_COLLECTION = "lake"

# What would change values without a word is an error instead.
STRICT = {
    "insert_null_as_default": 0,
    "input_format_null_as_default": 0,
    "input_format_parquet_allow_missing_columns": 0,
    "s3_throw_on_zero_files_match": 1,
    "date_time_overflow_behavior": "throw",
}
# An empty partition is published like any other. The server's guard against it is for a forgotten load; here the
# count was audited.
REPLACE_SETTINGS = {"allow_replace_partition_from_empty_source": 1}

# Files that are named in one statement, in characters of SQL: ClickHouse parses at most 262,144 bytes (max_query_size)
# of a statement, and reads all that it names side by side.
MAX_SOURCE_CHARACTERS = 100_000

# Keys that s3() would read as a pattern, or that do not survive a URL, are not ours: Iceberg writes none.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9/_.=+-]+")
_STAGING_NAME = re.compile(r"(?P<table>[a-z][a-z0-9_]*)_staging_(?P<attempt>[0-9a-f]{12})_(?P<partition>all|\d{6,8})")


class AuditError(CountMismatchError):
    """Staging is not what the snapshot says. Nothing was published."""


class SwitchIncompleteError(TrilakeError):
    """The publication is decided and not on every shard yet."""


@dataclass(frozen=True)
class PublicationReport:
    """What came of publishing: partitions by what happened to them.

    :param rows: rows now visible of each published partition, by shard number.
    :param current: partitions that showed this snapshot or a later one before we came.
    :param warnings: what the table's warning checks found.
    """

    table: str
    snapshot_id: int
    published: tuple[str, ...] = ()
    current: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Columns:
    """The columns that rows come in, as ClickHouse types them."""

    names: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def listed(self) -> str:
        return ", ".join(quote_name(name) for name in self.names)

    @property
    def structure(self) -> str:
        return ", ".join(f"{quote_name(n)} {t}" for n, t in zip(self.names, self.types, strict=True))


class Publisher:
    """Publishes snapshots to one cluster.

    :param checks: the table's own checks, see `trilake.clickhouse.checks`.
    """

    def __init__(self, cluster: Cluster, ledger: Ledger, *, checks: Sequence[Check] = ()) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.checks = tuple(checks)

    def publish(self, plan: SnapshotPlan, *, run_id: str, force: bool = False) -> PublicationReport:
        """Make readers of ClickHouse see the partitions of `plan`.

        A partition that shows this snapshot or a later one is left alone, unless `force`.

        :raises AuditError: staging does not hold what the snapshot says; readers see what they saw before.
        :raises CheckFailedError: a blocking check found rows; readers see what they saw before.
        :raises SwitchIncompleteError: decided, and not complete: publish again, or `finish`.
        """
        check_shards(plan, len(self.cluster.shards))
        table = plan.data_set.table
        due, current = self._due(plan, force=force)
        if not due:
            return PublicationReport(table, plan.snapshot_id, current=tuple(current))
        attempt = secrets.token_hex(6)
        log.info("Publishing %s of %s at snapshot %s, attempt %s", _few(p.partition for p in due), table,
                 plan.snapshot_id, attempt)  # fmt: skip
        with self.ledger.attempt(attempt, table, run_id) as held:
            try:
                columns = self._columns(plan.data_set)
                claims = self._write(plan, due, attempt, columns)
                warnings = self._check(plan.data_set, due, attempt)
                won, standing = self.ledger.claim(held, claims, force=force)
                for publication in [*won, *(p for p in standing if p.state == "switching")]:
                    self._switch(publication)
            finally:
                if held.lost:  # then it is not ours alone to clean up, and may have been decided all the same
                    self._clean_lost(attempt, table)
                else:
                    self._sweep(attempt, table)
        return PublicationReport(
            table,
            plan.snapshot_id,
            published=tuple(p.partition for p in won),
            current=tuple(sorted([*current, *(p.partition for p in standing)])),
            rows={p.partition: p.rows for p in won},
            warnings=tuple(warnings),
        )

    def finish(self, table: str | None = None) -> list[Publication]:
        """Complete the publications that the ledger says are decided. Safe beside a publisher at work.

        :raises SwitchIncompleteError: of all that cannot be completed, after the others were.
        """
        due = self.ledger.switching(table)
        errors = []
        for publication in due:
            try:
                self._switch(publication)
            except TrilakeError as e:
                errors.append(e)
        _raise_all(errors)
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
            for publication in self.ledger.switching(table):
                if publication.attempt == attempt:
                    self._switch(publication)
            return self._sweep(attempt, table)

    def _clean_lost(self, attempt: str, table: str) -> None:
        try:
            self._clean_attempt(attempt, table)
        except TrilakeError as e:
            log.warning("Attempt %s of %s is left to the next clean-up: %s", attempt, table, e)

    # --- before the decision

    def _due(self, plan: SnapshotPlan, *, force: bool) -> tuple[list[PartitionPlan], list[str]]:
        """The partitions to write, and those that need nothing. What is half switched is finished on the way."""
        due, current = [], []
        for partition in plan.partitions:
            held = self.ledger.current(plan.data_set.table, partition.partition)
            if held is None or force or held.sequence_number < plan.sequence_number:
                due.append(partition)
                continue
            if held.state == "switching":
                self._switch(held)
            current.append(partition.partition)
        return due, current

    def _columns(self, data_set: DataSet) -> _Columns:
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
        return _Columns(tuple(name for name, _ in first), tuple(kind for _, kind in first))

    def _write(
        self, plan: SnapshotPlan, partitions: Sequence[PartitionPlan], attempt: str, columns: _Columns
    ) -> list[Claim]:
        """Fill and audit the staging tables, a shard and partition at a time, side by side."""
        cells = [(shard, partition) for partition in partitions for shard in self.cluster.shards]
        counts = self.cluster.on_shards(
            [(shard, partial(self._write_cell, plan, partition, attempt, columns)) for shard, partition in cells]
        )
        rows: dict[str, dict[int, int]] = {}
        for (shard, partition), count in zip(cells, counts, strict=True):
            rows.setdefault(partition.partition, {})[shard.number] = count
        return [Claim(name, plan.snapshot_id, plan.sequence_number, by_shard) for name, by_shard in rows.items()]

    def _write_cell(
        self,
        plan: SnapshotPlan,
        partition: PartitionPlan,
        attempt: str,
        columns: _Columns,
        client: Client,
        shard: ClickHouseShard,
    ) -> int:
        data_set = plan.data_set
        local = f"{quote_name(shard.database)}.{quote_name(data_set.local_table)}"
        name = data_set.staging_table(attempt, partition.partition)
        staging = f"{quote_name(shard.database)}.{quote_name(name)}"
        client.command(f"CREATE TABLE {staging} AS {local}")
        files = partition.of_shard(shard.number)
        pulled = 0, 0
        for source in _sources(files, columns):
            client.command(
                f"INSERT INTO {staging} ({columns.listed}) SELECT {columns.listed} FROM {source}", settings=STRICT
            )
            rows, checksum = _sums(client, source, columns)
            pulled = pulled[0] + rows, (pulled[1] + checksum) % 2**64
        held = _sums(client, staging, columns)
        expected = sum(file.rows for file in files)
        where = f"{data_set.table}, partition {partition.partition}, {shard}"
        if held[0] != expected:
            raise AuditError(f"{where}: the snapshot says {expected} rows, staging holds {held[0]}.")
        if held != pulled:
            raise AuditError(f"{where}: the values in staging are not those of the snapshot's files.")
        declared = data_set.partition_id(partition.partition)
        found = {row[0] for row in client.query(f"SELECT DISTINCT _partition_id FROM {staging}").result_rows}
        if found - {declared}:
            raise AuditError(
                f"{where}: staging holds rows of other partitions: {', '.join(sorted(found - {declared}))}."
            )
        return expected

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
        lost = isinstance(error, ClickHouseError) and error.code == UNKNOWN_TABLE
        raise SwitchIncompleteError(
            f"Partition {publication.partition} of {publication.table} is decided (fence {publication.fence}) and not "
            f"on every shard: {error.message}",
            hint="Its staging table is gone: publish the snapshot again with force."
            if lost
            else "Run the task again, or `trilake publications --finish`.",
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


def _sources(files: Sequence[DataFile], columns: _Columns) -> list[str]:
    """The rows of exactly these files as table expressions, each for a statement: no pattern, no inferred type."""
    sources: list[str] = []
    parts: list[str] = []
    for file in files:
        if not _PLAIN_KEY.fullmatch(file.key):
            raise AuditError(f"The key {file.key!r} cannot be named to ClickHouse without being read as a pattern.")
        part = (
            f"SELECT {columns.listed} FROM s3({LAKE_COLLECTION}, filename = {quote_text(file.key)}, "
            f"format = 'Parquet', structure = {quote_text(columns.structure)})"
        )
        if parts and sum(map(len, parts)) + len(part) > MAX_SOURCE_CHARACTERS:
            sources.append(f"({' UNION ALL '.join(parts)})")
            parts = []
        parts.append(part)
    if parts:
        sources.append(f"({' UNION ALL '.join(parts)})")
    return sources


def _sums(client: Client, source: str, columns: _Columns) -> tuple[int, int]:
    """Rows, and the sum of their hashes (modulo 2^64).

    The hash is of a tuple: of plain arguments it is NULL as soon as one of them is, and sum() passes over NULLs.
    """
    sql = f"SELECT count(), sum(cityHash64(tuple({columns.listed}))) FROM {source}"
    rows, checksum = client.query(sql, settings=STRICT).result_rows[0]
    return int(rows), int(checksum)


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]} to {listed[-1]} ({len(listed)} partitions)"


__all__ = ["AuditError", "PublicationReport", "Publisher", "SwitchIncompleteError"]
