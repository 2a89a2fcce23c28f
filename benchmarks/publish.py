"""What write-audit-publish costs over a bare ``INSERT ... SELECT FROM s3()`` of the same files.

    python benchmarks/publish.py [--millions 1 10] [--rounds 3]

Needs a running platform with the flights of `make demo`: its rows are written over and over (each copy with a
`minute` of its own) into Parquet files of a month and shard, as a snapshot of the data set has them. In each round,
one after another: the bare inserts (a statement a file into an empty table, as many side by side), the publication with
its counts alone, the publication with counts and checksums, and the publication that also compares the sums of each
column with those of a job, as it runs after a job's commit. Ratios are of the same round; the table shows the medians.
Memory is the engine's own peak per query, from its query log.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from platform_of_benchmarks import endpoints, markdown

from trilake.clickhouse.cluster import Cluster, Statement, quote_text
from trilake.clickhouse.publication import pull, staging
from trilake.clickhouse.publication.column_sums import table_sums
from trilake.clickhouse.publication.columns import Columns
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.pull import STRICT, Sums
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.lake import DataSet
from trilake.lake.column_sums import ColumnSum
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan
from trilake.postgres.connection import connect
from trilake.s3 import client as s3_client

# About 43,000 rows a file: more rows are more files, as they come from Spark
COPIES_A_FILE = 3
MONTHS = [f"2013-{month:02}" for month in range(1, 13)]
TITLE = "Publishing a year, against a bare INSERT SELECT FROM s3()"
HEADER = (
    "rows",
    "bare, s",
    "counts alone",
    "with checksums",
    "and sums of columns",
    "peak memory of a query, MiB: bare",
    "publication",
)


class Measure:
    """Files of `millions` of rows in the lake, and the tables they are loaded into."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster, millions: int) -> None:
        self.endpoints, self.cluster, self.target = endpoints, cluster, millions * 1_000_000
        self.data_set = DataSet(f"bench_{secrets.token_hex(3)}", grain="month", date="flight_date", shard_by="flight")
        self.sequence = 0
        self.sums: dict[str, dict[str, ColumnSum]] = {}
        self.s3 = s3_client(endpoints.s3)

    def every_shard(self, sql: str, **settings: Any) -> dict[int, list[tuple[Any, ...]]]:
        return self.cluster.every_shard(Statement(sql, settings))

    def prepare(self) -> None:
        for name in (self.data_set.local_table, f"{self.data_set.name}_bare"):
            self.every_shard(f"CREATE TABLE {{shard}}.{name} AS {{shard}}.flights_local")
        self.columns = [row[0] for row in self.every_shard("DESCRIBE TABLE {shard}.flights_local")[1]]
        self.types = {row[0]: row[1] for row in self.every_shard("DESCRIBE TABLE {shard}.flights_local")[1]}
        self.structure = ", ".join(f"`{name}` {self.types[name]}" for name in self.columns)
        self.listed = ", ".join(f"`{name}`" for name in self.columns)
        self.files: dict[str, list[DataFile]] = {month: [] for month in MONTHS}
        total = self.cluster.any_host(Statement("SELECT count() FROM analytics.flights"))[0][0]
        copies = -(-self.target // total)
        for shard in self.cluster.shards:
            for month in MONTHS:
                for first in range(0, copies, COPIES_A_FILE):
                    self._write(shard, month, first, min(COPIES_A_FILE, copies - first))

    def _write(self, shard: ClickHouseShard, month: str, first: int, copies: int) -> None:
        key = f"warehouse/{self.data_set.name}/{month}/{shard.number}-{first}.parquet"
        # a copy stays in its flight's bucket and month, and differs in a column that decides neither
        chosen = ", ".join(f"toInt32(copy) AS `{name}`" if name == "minute" else f"`{name}`" for name in self.columns)
        where = f"toYYYYMM(flight_date) = {month.replace('-', '')}"
        source = f"{{shard}}.flights_local CROSS JOIN (SELECT number AS copy FROM numbers({first}, {copies})) AS copies"
        self.cluster.on_shard(
            shard,
            Statement(
                f"INSERT INTO FUNCTION s3(lake, filename = {quote_text(key)}, format = 'Parquet') "
                f"SELECT {chosen} FROM {source} WHERE {where}",
                {"s3_truncate_on_insert": 1},
            ),
        )
        rows = self.cluster.on_shard(shard, Statement(f"SELECT count() FROM {{shard}}.flights_local WHERE {where}"))
        size = self.s3.head_object(Bucket="lake", Key=key)["ContentLength"]
        self.files[month].append(DataFile(key, rows[0][0] * copies, size, shard.number - 1))

    @property
    def rows(self) -> int:
        return sum(file.rows for files in self.files.values() for file in files)

    def bare(self) -> None:
        """A statement a file, as many side by side as a publication runs."""

        def insert(key: str, client: Any, shard: ClickHouseShard) -> None:
            client.command(
                f"INSERT INTO {shard.database}.{self.data_set.name}_bare ({self.listed}) SELECT {self.listed} FROM "
                f"s3(lake, filename = {quote_text(key)}, format = 'Parquet', structure = {quote_text(self.structure)})",
                settings=STRICT,
            )

        self.every_shard(f"TRUNCATE TABLE {{shard}}.{self.data_set.name}_bare SYNC")
        self.cluster.on_shards(
            [
                (shard, partial(insert, file.key))
                for files in self.files.values()
                for file in files
                for shard in self.cluster.shards
                if shard.number - 1 == file.bucket
            ]
        )

    def read_sums(self) -> None:
        """What a job would have written beside its commit, read from the published table."""
        columns = Columns(tuple(self.columns), tuple(self.types[name] for name in self.columns))
        for month in MONTHS:
            local = f"{{shard}}.{self.data_set.local_table}"
            source = f"(SELECT * FROM {local} WHERE toYYYYMM(flight_date) = {month.replace('-', '')})"

            def read(client: Any, shard: ClickHouseShard, source: str = source) -> dict[str, tuple[int, int]]:
                return table_sums(client, source.replace("{shard}", shard.database), columns, self.columns)

            shards = self.cluster.every_shard(read).values()
            self.sums[month] = {
                name: ColumnSum(sum(s[name][0] for s in shards), sum(s[name][1] for s in shards) % 2**64)
                for name in self.columns
            }

    def publish(self, *, sums: bool = False) -> None:
        self.sequence += 1
        plan = LoadPlan(
            self.data_set,
            self.sequence,
            self.sequence,
            len(self.cluster.shards),
            tuple(PartitionPlan(month, tuple(files)) for month, files in self.files.items()),
            sums=self.sums if sums else {},
        )
        report = Publisher(self.cluster, Ledger(self.endpoints.lake)).publish(plan, run_id="benchmark")
        assert sum(sum(rows.values()) for rows in report.rows.values()) == self.rows

    def peak(self, table: str) -> float:
        """The largest `memory_usage` of an INSERT into `table`, MiB."""
        self.cluster.every_host(Statement("SYSTEM FLUSH LOGS query_log"))
        found = self.cluster.every_host(
            Statement(
                "SELECT max(memory_usage) FROM system.query_log WHERE type = 'QueryFinish' "
                f"AND event_time >= now() - 3600 AND query LIKE '%{table}%' "
                "AND query NOT LIKE '%CROSS JOIN%' AND query NOT LIKE '%query_log%'"
            )
        )
        return max(rows[0][0] for rows in found.values()) / 2**20

    def drop(self) -> None:
        for database in ("{shard}", "{staging}"):
            tables = self.every_shard(f"SHOW TABLES FROM {database}")
            for name in {row[0] for rows in tables.values() for row in rows if row[0].startswith(self.data_set.name)}:
                self.every_shard(f"DROP TABLE IF EXISTS {database}.{name} SYNC")
        for files in self.files.values():
            for file in files:
                self.s3.delete_object(Bucket="lake", Key=file.key)
        with connect(self.endpoints.lake) as connection, connection.cursor() as cursor:
            for table in ("publications", "publication_attempts"):
                cursor.execute(f"DELETE FROM {table} WHERE table_name = %s", (self.data_set.table,))


@contextmanager
def without_checksums() -> Iterator[None]:
    """The audit counts alone: what the checksums cost is the difference."""

    def count(client: Any, source: str, columns: Any) -> Sums:
        return Sums(int(client.query(f"SELECT count() FROM {source}").result_rows[0][0]))

    def count_staged(client: Any, staging: str, columns: Any) -> tuple[Sums, set[str]]:
        rows, partitions = client.query(f"SELECT count(), groupUniqArray(_partition_id) FROM {staging}").result_rows[0]
        return Sums(int(rows)), set(partitions)

    with patch.object(pull, "sums", count), patch.object(staging, "staged", count_staged):
        yield


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(millions: list[int], rounds: int) -> str:
    """The results as Markdown."""
    found = endpoints()
    lines = []
    for count in millions:
        with Cluster(found.clickhouse, comment={"by": "benchmark"}) as cluster:
            measure = Measure(found, cluster, count)
            try:
                measure.prepare()
                figures = []
                for _ in range(rounds):
                    bare = seconds(measure.bare)
                    with without_checksums():
                        counted = seconds(measure.publish)
                    audited = seconds(measure.publish)
                    if not measure.sums:
                        measure.read_sums()
                    summed = seconds(partial(measure.publish, sums=True))
                    figures.append((bare, counted / bare, audited / bare, summed / bare))
                bare, *medians = (statistics.median(column) for column in zip(*figures, strict=True))
                ratios = tuple(f"{ratio:.2f} x" for ratio in medians)
                memory = [f"{measure.peak(measure.data_set.name + suffix):.0f}" for suffix in ("_bare", "_staging")]
                lines.append((f"{measure.rows:,}", f"{bare:.1f}", *ratios, *memory))
            finally:
                measure.drop()
    return markdown(HEADER, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(table(arguments.millions, arguments.rounds))
