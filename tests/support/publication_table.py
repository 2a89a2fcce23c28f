"""A table of one test, and snapshots to publish into it."""

from __future__ import annotations

import io
import secrets
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.clickhouse.publication.checks import Check
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan
from trilake.postgres.connection import connect

MONTH = "2013-01"
DAY = date(2013, 1, 5)


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
        for shard in self.cluster.shards:
            for (name,) in self.cluster.on_shard(shard, Statement("SHOW TABLES FROM {shard}")):
                if name.startswith(self.data_set.name):
                    self.cluster.on_shard(shard, Statement(f"DROP TABLE {{shard}}.{name} SYNC"))
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
        tables = self.cluster.every_shard(Statement("SHOW TABLES FROM {shard}"))
        return [
            name for found in tables.values() for (name,) in found if name.startswith(f"{self.data_set.name}_staging")
        ]


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt  # as abrupt as a test can be: no `except Exception` on the way holds it up
