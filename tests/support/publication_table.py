"""A table of one test, and snapshots to publish into it."""

from __future__ import annotations

import io
import secrets
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.checks import Check
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.lake import DataSet
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan
from trilake.postgres.connection import connect

MONTH = "2013-01"
DAY = date(2013, 1, 5)


def tables_of(client: Any, shard: ClickHouseShard) -> list[tuple[str, str]]:
    """Database and name of each table of a shard: published ones, and staging tables of this and earlier versions."""
    databases = f"({quote_text(shard.database)}, {quote_text(shard.staging_database)})"
    return list(client.query(f"SELECT database, name FROM system.tables WHERE database IN {databases}").result_rows)


def drop_tables(cluster: Cluster, prefix: str) -> None:
    """Drop the tables of every shard whose names begin like this."""

    def drop(client: Any, shard: ClickHouseShard) -> None:
        for database, name in tables_of(client, shard):
            if name.startswith(prefix):
                client.command(f"DROP TABLE IF EXISTS {quote_name(database)}.{quote_name(name)} SYNC")

    cluster.every_shard(drop)


def forget(connection: Any, data_set: DataSet) -> None:
    with connection.cursor() as cursor:
        for table in ("publications", "publication_attempts", "shard_sets", "reshard_copies"):
            cursor.execute(f"DELETE FROM {table} WHERE table_name = %s", (data_set.table,))


class Table:
    """A table of one test: its data set, and plans of snapshots that hold what the test says."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster) -> None:
        self.endpoints = endpoints
        self.cluster = cluster
        self.data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")
        self.ledger = Ledger(endpoints.lake)
        self.s3 = s3.client(endpoints.s3)
        self.snapshots = 0
        for shard in cluster.shards:
            cluster.on_shard(
                shard,
                Statement(
                    f"CREATE TABLE {{shard}}.{self.data_set.local_table} (k Int32, d Date, note Nullable(String)) "
                    "ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k"
                ),
            )

    def drop(self) -> None:
        drop_tables(self.cluster, self.data_set.name)
        with connect(self.endpoints.lake) as connection:
            self.forget(connection)

    def forget(self, connection: Any) -> None:
        forget(connection, self.data_set)

    def publisher(self, *checks: Check) -> Publisher:
        return Publisher(self.cluster, self.ledger, checks=checks)

    def file(self, bucket: int, *rows: tuple[int, date, str | None], claimed: int | None = None) -> DataFile:
        schema = pa.schema([("d", pa.date32()), ("k", pa.int32()), ("note", pa.string())])  # not in the table's order
        content = io.BytesIO()
        columns = {"d": [row[1] for row in rows], "k": [row[0] for row in rows], "note": [row[2] for row in rows]}
        pq.write_table(pa.table(columns, schema=schema), content)
        key = f"warehouse/test/{self.data_set.name}/{secrets.token_hex(8)}.parquet"
        self.s3.put_object(Bucket="lake", Key=key, Body=content.getvalue())
        return DataFile(key, len(rows) if claimed is None else claimed, content.tell(), bucket)

    def plan(self, *files: DataFile, partition: str = MONTH, sequence: int | None = None) -> LoadPlan:
        self.snapshots += 1
        sequence = self.snapshots if sequence is None else sequence
        return LoadPlan(self.data_set, 1000 + sequence, sequence, 2, (PartitionPlan(partition, files),))

    def seen(self) -> list[tuple[Any, ...]]:
        """(shard, k, note) of what readers see."""
        rows = self.cluster.every_shard(
            Statement(f"SELECT k, note FROM {{shard}}.{self.data_set.local_table} ORDER BY k")
        )
        return [(number, *row) for number, found in sorted(rows.items()) for row in found]

    def staging(self) -> list[str]:
        tables = self.cluster.every_shard(tables_of)
        prefix = f"{self.data_set.name}_staging"
        return [name for found in tables.values() for _, name in found if name.startswith(prefix)]


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt  # as abrupt as a test can be: no `except Exception` on the way holds it up
