"""Staging tables: one for each attempt, partition and shard, filled from a plan's files and audited against them.

They are in a database of their own on each shard, so that a grant on the shard's database gives published rows only.
Earlier versions made them in the shard's database, under the same names. `staging_tables` and `drop_staging` look
there, too: such a version may have died before the upgrade.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.checks import Check, CheckFailedError
from trilake.clickhouse.publication.column_sums import compare, table_sums
from trilake.clickhouse.publication.columns import AuditError
from trilake.clickhouse.publication.ledger import Claim, Contents
from trilake.clickhouse.publication.partitions import ttl_of
from trilake.clickhouse.publication.pull import PULL, Pull, Sums, staged
from trilake.clickhouse.queries import QueryMetrics
from trilake.endpoints import ClickHouseShard
from trilake.lake.column_sums import ColumnSum
from trilake.lake.objects import objects_document
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

# Parts of a staging table that are smaller than this keep all columns in one file. A part with one file for each column
# needs a buffer of 2 MiB for each file. Later merges make such parts anyway.
COMPACT_BYTES = 1 << 40

_NAME = re.compile(r"(?P<table>[a-z][a-z0-9_]*)_staging_(?P<attempt>[0-9a-f]{12})_(?P<partition>all|\d{6,8})")


@dataclass(frozen=True)
class StagingTable:
    """A staging table that exists on a shard."""

    shard: ClickHouseShard
    name: str
    table: str
    attempt: str


@dataclass(frozen=True)
class _Cell:
    """The rows of one partition that one shard pulled.

    :param checksum: of the rows, see `trilake.clickhouse.publication.pull.sums`.
    :param by_file: rows of each plain object, by key.
    :param sums: of the columns, see `trilake.clickhouse.publication.column_sums`.
    """

    rows: int
    checksum: int
    by_file: Mapping[str, int]
    sums: Mapping[str, tuple[int, int]]
    loads: Mapping[str, QueryMetrics]


class Staging:
    """The staging tables of one attempt to publish a plan.

    :param attempt: 12 hexadecimal digits; part of the tables' names.
    :param known: partitions whose checksums the caller knows and compares. They are not read a second time from the
        files, nor compared with the sums of the job.
    """

    def __init__(
        self, cluster: Cluster, plan: LoadPlan, pull: Pull, attempt: str, *, known: Collection[str] = ()
    ) -> None:
        self.cluster = cluster
        self.plan = plan
        self.pull = pull
        self.attempt = attempt
        self.known = frozenset(known)

    def write(self, partitions: Sequence[PartitionPlan]) -> tuple[list[Claim], dict[str, QueryMetrics]]:
        """Fill and audit the staging tables of `partitions`, on all shards in parallel.

        Returns the claims for the ledger, and the metrics of each load by its query id.

        :raises AuditError: a table does not hold the rows of its files.
        """
        self.pull.check_before(self.cluster, partitions)
        # the migrations made it, but a version that knows it may publish before they have run
        self.cluster.every_shard(Statement("CREATE DATABASE IF NOT EXISTS {staging}"))
        at = [(shard, partition) for partition in partitions for shard in self.cluster.shards]
        cells = self.cluster.on_shards([(shard, partial(self._write_cell, partition)) for shard, partition in at])
        claims: list[Claim] = []
        loads: dict[str, QueryMetrics] = {}
        for partition in partitions:
            by_shard = {s.number: c for (s, p), c in zip(at, cells, strict=True) if p.partition == partition.partition}
            self.pull.check_partition(
                partition, [cell.rows for cell in by_shard.values()], [cell.by_file for cell in by_shard.values()]
            )
            if expected := self._expected(partition):
                where = f"{self.plan.data_set.table}, partition {partition.partition}"
                compare(where, self._of_table(expected), [cell.sums for cell in by_shard.values()])
            rows = {number: cell.rows for number, cell in by_shard.items()}
            state = self.plan.state_of(partition)
            contents = Contents(
                self.pull.columns.typed,
                {number: cell.checksum for number, cell in by_shard.items()},
                objects_document(self.plan, partition) if self.plan.plain else None,
            )
            claims.append(
                Claim(partition.partition, state, self.plan.sequence_number, rows, self.plan.source, contents)
            )
            for cell in by_shard.values():
                loads |= cell.loads
        return claims, loads

    def run_checks(self, checks: Iterable[Check], partitions: Sequence[PartitionPlan]) -> list[str]:
        """Run the table's own checks on its staging tables. Returns a line for each warning.

        :raises CheckFailedError: a blocking check found rows.
        """
        table = self.plan.data_set.table

        def run(check: Check, partition: PartitionPlan, client: Client, shard: ClickHouseShard) -> int:
            staging = self._quoted(partition, shard)
            return int(client.query(check.on(staging)).result_rows[0][0])

        cells = [(s, c, p) for p in partitions for c in checks for s in self.cluster.shards]
        counts = self.cluster.on_shards([(shard, partial(run, check, partition)) for shard, check, partition in cells])
        totals: dict[tuple[Check, str], int] = {}
        for (_, check, partition), rows in zip(cells, counts, strict=True):
            totals[check, partition.partition] = totals.get((check, partition.partition), 0) + rows
        failed = {key: rows for key, rows in totals.items() if rows}
        lines = [
            f"check {check.name} of {table} finds {rows} rows in partition {partition}"
            for (check, partition), rows in failed.items()
        ]
        if any(check.blocking for check, _ in failed):
            raise CheckFailedError(
                "; ".join(line for line, (check, _) in zip(lines, failed, strict=True) if check.blocking) + ".",
                hint="Nothing was published. Fix the data or the check, and run the task again.",
            )
        for line in lines:
            log.warning("%s", line)
        return lines

    def _quoted(self, partition: PartitionPlan, shard: ClickHouseShard) -> str:
        name = self.plan.data_set.staging_table(self.attempt, partition.partition)
        return f"{quote_name(shard.staging_database)}.{quote_name(name)}"

    def _write_cell(self, partition: PartitionPlan, client: Client, shard: ClickHouseShard) -> _Cell:
        data_set, columns = self.plan.data_set, self.pull.columns
        staging = self._quoted(partition, shard)
        client.command(f"CREATE TABLE {staging} AS {quote_name(shard.database)}.{quote_name(data_set.local_table)}")
        client.command(f"ALTER TABLE {staging} MODIFY SETTING min_bytes_for_wide_part = {COMPACT_BYTES}")
        files = self.pull.files_of(partition, shard.number)
        known = partition.partition in self.known
        pulled, by_file, loads = Sums(), dict[str, int](), dict[str, QueryMetrics]()
        for source in self.pull.sources(files, shard.number):
            query_id = f"publish:{self.attempt}:{partition.partition}:{shard.number}:{len(loads) + 1}"
            try:
                done = client.command(
                    f"INSERT INTO {staging} ({columns.listed}) SELECT {columns.listed} FROM {source}",
                    settings={**PULL, **self.pull.settings, "query_id": query_id},
                )
            except Exception as e:
                raise self._explain(e, client, files) or e from None
            loads[query_id] = QueryMetrics.of_summary(getattr(done, "summary", {}))
            if not known:
                sums, rows_by_file = self.pull.sums(client, source, files)
                pulled += sums
                by_file |= rows_by_file
        held, partitions = staged(client, staging, columns)
        where = f"{data_set.table}, partition {partition.partition}, {shard}"
        if held.rows < pulled.rows and (ttl := ttl_of(self.cluster, data_set)):
            raise AuditError(
                f"{where}: of {pulled.rows} rows {held.rows} are left. The table's TTL removes rows: {ttl}.",
                hint="Nothing was published. Publish partitions that the TTL keeps, or change the TTL in a step of "
                "sql/clickhouse.",
            )
        self.pull.check_shard(where, files, held.rows)
        if held != pulled and not known:
            raise AuditError(
                f"{where}: the values in staging differ from those in the files.",
                hint="Nothing was published. Run the task again.",
            )
        if foreign_partitions := partitions - {data_set.partition_id(partition.partition)}:
            listed = ", ".join(sorted(foreign_partitions))
            raise AuditError(
                f"{where}: staging holds rows of other partitions: {listed}.",
                hint="Nothing was published. Correct the date column of these rows, or their partition.",
            )
        column_sums = table_sums(client, staging, columns, self._of_table(self._expected(partition)))
        return _Cell(held.rows, held.checksum, by_file, column_sums, loads)

    def _explain(self, error: Exception, client: Client, files: Sequence[DataFile]) -> AuditError | None:
        try:
            return self.pull.explain(error, client, files)
        except Exception as e:  # then the first error is the one to show
            log.info("The value that made a load fail cannot be looked up: %s", type(e).__name__)
            return None

    def _expected(self, partition: PartitionPlan) -> Mapping[str, ColumnSum]:
        """The sums of the job to compare with."""
        return {} if partition.partition in self.known else self.plan.sums.get(partition.partition, {})

    def _of_table(self, sums: Mapping[str, ColumnSum]) -> dict[str, ColumnSum]:
        """The sums of the columns that the table has."""
        return {name: total for name, total in sums.items() if name in self.pull.columns.names}


def staging_tables(cluster: Cluster) -> list[StagingTable]:
    """All staging tables of all shards and attempts."""

    def names(client: Client, shard: ClickHouseShard) -> list[tuple[ClickHouseShard, str]]:
        rows = client.query(
            f"SELECT name FROM system.tables WHERE database IN ({quote_text(shard.staging_database)}, "
            f"{quote_text(shard.database)}) AND name LIKE '%staging%'"
        ).result_rows
        return [(shard, row[0]) for row in rows]

    return [
        StagingTable(shard, name, match["table"], match["attempt"])
        for by_shard in cluster.every_shard(names).values()
        for shard, name in by_shard
        if (match := _NAME.fullmatch(name))
    ]


def drop_staging(name: str, client: Client, shard: ClickHouseShard) -> None:
    """End the queries that write to a staging table of this shard, and drop it. Safe if it does not exist."""
    # DROP waits for queries on the table, and an INSERT of a dead attempt can run for long. Kill by kind, because
    # a KILL or DROP of another shard on this server also names such a table and must not be killed.
    client.command(f"KILL QUERY WHERE query LIKE {quote_text(f'%{name}%')} AND query_kind IN ('Insert', 'Alter') SYNC")
    # without the setting, the server refuses to drop a table of more than 50 GB
    places = [f"{quote_name(database)}.{quote_name(name)}" for database in (shard.staging_database, shard.database)]
    client.command(f"DROP TABLE IF EXISTS {', '.join(places)} SYNC", settings={"max_table_size_to_drop": 0})
