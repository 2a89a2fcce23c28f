"""How long `trilake rebuild` takes for a lost table, against a bare ``INSERT ... SELECT FROM s3()`` of its files.

    python benchmarks/rebuild.py [--gigabytes 1] [--rounds 1]

Needs a running platform. Orders with random values, which hardly compress, are written into Parquet files of a month
and shard, committed to an Iceberg table and published. In each round, one after another: the bare inserts (a statement
a file into an empty table, as many side by side), then both shards lose all rows, then the check that finds it, then
the rebuild with the comparison of checksums at its end. Gigabytes are of the Parquet files, and of what ClickHouse
keeps on disk.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
from platform_of_benchmarks import endpoints, markdown
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import BucketTransform, MonthTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, DoubleType, IntegerType, LongType, NestedField, StringType

from trilake.clickhouse.cluster import Cluster, Statement, quote_text
from trilake.clickhouse.publication.comparison import compare
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.pull import STRICT
from trilake.clickhouse.publication.rebuild import rebuild
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.lake import DataSet
from trilake.lake.catalog import ensure_namespace, open_catalog, plan
from trilake.lake.data_set import CURATED_NAMESPACE
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import Home
from trilake.s3 import client as s3_client

MONTHS = [f"2013-{month:02}" for month in range(1, 13)]
FILES = 2  # of a month and shard
ROW_BYTES = 34  # of Parquet, about
TITLE = "Rebuilding a lost table, against a bare INSERT SELECT FROM s3()"
HEADER = (
    "rows",
    "GB of Parquet",
    "GB in ClickHouse",
    "bare, s",
    "check that finds the loss, s",
    "rebuild, s",
    "rebuild / bare",
    "s per GB of Parquet",
    "s per GB in ClickHouse",
    "CPU s per GB of Parquet",
)
SCHEMA = Schema(
    NestedField(1, "id", LongType(), required=True),
    NestedField(2, "ordered_on", DateType(), required=True),
    NestedField(3, "customer", IntegerType(), required=True),
    NestedField(4, "amount", DoubleType(), required=True),
    NestedField(5, "discount", DoubleType()),
    NestedField(6, "status", StringType(), required=True),
    NestedField(7, "note", StringType()),
)
COLUMNS = {
    "id": "Int64",
    "ordered_on": "Date",
    "customer": "Int32",
    "amount": "Float64",
    "discount": "Nullable(Float64)",
    "status": "LowCardinality(String)",
    "note": "Nullable(String)",
}
STRUCTURE = ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items())


class Measure:
    """A table of `gigabytes` of Parquet in the lake, published in ClickHouse."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster, gigabytes: float) -> None:
        self.endpoints, self.cluster = endpoints, cluster
        shards = len(cluster.shards)
        self.rows_of_a_file = int(gigabytes * 1e9 / ROW_BYTES / len(MONTHS) / shards / FILES)
        self.data_set = DataSet(f"bench_{secrets.token_hex(3)}", grain="month", date="ordered_on", shard_by="id")
        self.bare_table = f"{self.data_set.name}_bare"
        self.s3 = s3_client(endpoints.s3)
        self.catalog = open_catalog(endpoints.lake, endpoints.s3)
        self.files: list[tuple[str, int]] = []
        self.parquet_bytes = 0

    def every_shard(self, sql: str) -> dict[int, list[tuple[Any, ...]]]:
        return self.cluster.every_shard(Statement(sql))

    def prepare(self) -> None:
        for name in (self.data_set.local_table, self.bare_table):
            self.every_shard(
                f"CREATE TABLE {{shard}}.{name} ({STRUCTURE}) ENGINE = MergeTree PARTITION BY toYYYYMM(ordered_on) "
                "ORDER BY (customer, id)"
            )
        ensure_namespace(self.catalog, CURATED_NAMESPACE)
        shards = len(self.cluster.shards)
        spec = PartitionSpec(
            PartitionField(2, 1000, MonthTransform(), "ordered_on_month"),
            PartitionField(1, 1001, BucketTransform(shards), "id_bucket"),
        )
        self.iceberg = self.catalog.create_table(self.data_set.curated, SCHEMA, partition_spec=spec)
        with self.iceberg.transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
            for month in range(len(MONTHS)):
                for shard in self.cluster.shards:
                    for number in range(FILES):
                        snapshot.append_data_file(self._file(month, shard, number))
        planned = plan(self.iceberg, self.data_set, MONTHS, None, with_columns=True)
        self.rows = planned.rows
        Publisher(self.cluster, Ledger(self.endpoints.lake)).publish(planned, run_id="benchmark")

    def _file(self, month: int, shard: ClickHouseShard, number: int) -> DataFile:
        key = f"warehouse/{self.data_set.name}/{month}-{shard.number}-{number}.parquet"
        shards = len(self.cluster.shards)
        first = (month * FILES + number) * self.rows_of_a_file * shards * 4
        rows = (
            f"SELECT toInt64({first} + number) AS id, toDate('{MONTHS[month]}-01') + (rand() % 28) AS ordered_on, "
            "toInt32(rand(1) % 1000000) AS customer, rand(2) / 997 AS amount, "
            "if(rand(3) % 2 = 0, rand(4) / 9973, NULL) AS discount, "
            "['new', 'paid', 'sent', 'returned'][rand(5) % 4 + 1] AS status, hex(randomString(rand(6) % 16)) AS note "
            f"FROM numbers({self.rows_of_a_file * shards * 4}) "
            f"WHERE icebergBucket({shards}, toInt64({first} + number)) = {shard.number - 1} LIMIT {self.rows_of_a_file}"
        )
        write = f"INSERT INTO FUNCTION s3(lake, filename = {quote_text(key)}, format = 'Parquet') {rows}"
        self.cluster.on_shard(shard, Statement(write, {"s3_truncate_on_insert": 1}))
        size = self.s3.head_object(Bucket="lake", Key=key)["ContentLength"]
        self.files.append((key, shard.number))
        self.parquet_bytes += size
        file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=f"s3a://lake/{key}",
            file_format=FileFormat.PARQUET,
            partition=Record((2013 - 1970) * 12 + month, shard.number - 1),
            record_count=self.rows_of_a_file,
            file_size_in_bytes=size,
        )
        file.spec_id = self.iceberg.spec().spec_id
        return file

    def bare(self) -> None:
        """A statement a file, as many side by side as a publication runs."""

        def insert(key: str, client: Any, shard: ClickHouseShard) -> None:
            client.command(
                f"INSERT INTO {shard.database}.{self.bare_table} SELECT * FROM "
                f"s3(lake, filename = {quote_text(key)}, format = 'Parquet', structure = {quote_text(STRUCTURE)})",
                settings=STRICT,
            )

        self.every_shard(f"TRUNCATE TABLE {{shard}}.{self.bare_table} SYNC")
        by_number = {shard.number: shard for shard in self.cluster.shards}
        self.cluster.on_shards([(by_number[number], partial(insert, key)) for key, number in self.files])

    def lose(self) -> None:
        self.every_shard(f"TRUNCATE TABLE {{shard}}.{self.data_set.local_table} SYNC")

    def check(self) -> None:
        compared = compare(self.cluster, Ledger(self.endpoints.lake), self.data_set.table)
        assert len(compared.lost) == len(MONTHS)

    def rebuild(self) -> None:
        report = rebuild(self.endpoints, self.cluster, self.data_set.table)
        report.raise_failed()
        assert report.rows == self.rows

    def clickhouse_bytes(self) -> int:
        sql = (
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = '{shard}' AND table = "
            f"{quote_text(self.data_set.local_table)}"
        )
        return sum(
            self.cluster.on_shard(shard, Statement(sql.replace("{shard}", shard.database)))[0][0]
            for shard in self.cluster.shards
        )

    def drop(self) -> None:
        for name in (self.data_set.local_table, self.bare_table):
            self.every_shard(f"DROP TABLE IF EXISTS {{shard}}.{name} SYNC")
        self.catalog.drop_table(self.data_set.curated)
        self.catalog.close()
        for key, _ in self.files:
            self.s3.delete_object(Bucket="lake", Key=key)
        Ledger(self.endpoints.lake).forget_table(self.data_set.table)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """What all processes of the platform and this one have used so far: on a busy machine seconds say little."""
    used = 0.0
    for process in [*processes.find(Home.locate()), psutil.Process()]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def table(gigabytes: float, rounds: int) -> str:
    """The results as Markdown."""
    found = endpoints()
    with Cluster(found.clickhouse, comment={"by": "benchmark"}) as cluster:
        measure = Measure(found, cluster, gigabytes)
        try:
            measure.prepare()
            kept = measure.clickhouse_bytes() / 1e9
            figures = []
            for _ in range(rounds):
                bare = seconds(measure.bare)
                measure.lose()
                checked, before = seconds(measure.check), cpu_seconds()
                figures.append((bare, checked, seconds(measure.rebuild), cpu_seconds() - before))
            ratio = statistics.median(rebuilt / bare for bare, _, rebuilt, _ in figures)
            bare, checked, rebuilt, used = (statistics.median(column) for column in zip(*figures, strict=True))
        finally:
            measure.drop()
    read = measure.parquet_bytes / 1e9
    line = (f"{measure.rows:,}", f"{read:.2f}", f"{kept:.2f}", f"{bare:.1f}", f"{checked:.2f}", f"{rebuilt:.1f}")
    by_gigabyte = (f"{rebuilt / read:.1f}", f"{rebuilt / kept:.1f}", f"{used / read:.1f}")
    return markdown(HEADER, [(*line, f"{ratio:.2f} x", *by_gigabyte)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(table(arguments.gigabytes, arguments.rounds))
