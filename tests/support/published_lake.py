"""A data set of one test in the lake and in ClickHouse, with files for each bucket as Spark writes them."""

from __future__ import annotations

import io
import secrets
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import BucketTransform, MonthTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, IntegerType, NestedField, StringType

from support.publication_table import Table
from trilake.clickhouse.cluster import Statement
from trilake.clickhouse.publication.comparison import Comparison, compare
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.rebuild import RebuildReport, rebuild
from trilake.clickhouse.readers_table import readers_table_ddl
from trilake.lake.catalog import ensure_namespace, open_catalog, plan
from trilake.lake.data_set import CURATED_NAMESPACE

SCHEMA = Schema(
    NestedField(1, "k", IntegerType(), required=True),
    NestedField(2, "d", DateType(), required=True),
    NestedField(3, "note", StringType()),
)
SPEC = PartitionSpec(
    PartitionField(2, 1000, MonthTransform(), "d_month"), PartitionField(1, 1001, BucketTransform(2), "k_bucket")
)
_BUCKET = BucketTransform(2).transform(IntegerType())


class Lake:
    """A data set of one test in the lake and in ClickHouse."""

    def __init__(self, table: Table) -> None:
        self.table, self.cluster, self.ledger = table, table.cluster, table.ledger
        self.data_set, self.endpoints = table.data_set, table.endpoints
        self.name = table.data_set.table
        self.local = f"{{shard}}.{table.data_set.local_table}"
        self.catalog = open_catalog(table.endpoints.lake, table.endpoints.s3)
        ensure_namespace(self.catalog, CURATED_NAMESPACE)
        self.iceberg = self.catalog.create_table(self.data_set.curated, SCHEMA, partition_spec=SPEC)

    def drop(self) -> None:
        self.catalog.drop_table(self.data_set.curated)
        self.catalog.close()

    def commit(self, month: int, *notes: str) -> int:
        """Append rows with keys from 1, a file for each bucket, as Spark does. Returns the snapshot."""
        with self.iceberg.transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
            for bucket in (0, 1):
                rows = [(k, note) for k, note in enumerate(notes, 1) if _BUCKET(k) == bucket]
                if rows:
                    snapshot.append_data_file(self._file(month, bucket, rows))
        current = self.iceberg.current_snapshot()
        assert current is not None
        return current.snapshot_id

    def _file(self, month: int, bucket: int, rows: list[tuple[int, str]]) -> DataFile:
        columns = {
            "k": [k for k, _ in rows],
            "d": [date(2013, month, 1 + k % 28) for k, _ in rows],
            "note": [note for _, note in rows],
        }
        content = io.BytesIO()
        pq.write_table(pa.table(columns, schema=SCHEMA.as_arrow()), content)
        key = f"warehouse/test/{self.name}/{secrets.token_hex(8)}.parquet"
        self.table.s3.put_object(Bucket="lake", Key=key, Body=content.getvalue())
        file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=f"s3a://lake/{key}",
            file_format=FileFormat.PARQUET,
            partition=Record((2013 - 1970) * 12 + month - 1, bucket),
            record_count=len(rows),
            file_size_in_bytes=content.tell(),
        )
        file.spec_id = self.iceberg.spec().spec_id
        return file

    def publish(self, *partitions: str, snapshot: int | None = None) -> None:
        planned = plan(self.iceberg, self.data_set, partitions, snapshot, with_columns=True)
        Publisher(self.cluster, self.ledger).publish(planned, run_id="run")

    def lose(self, partition: str, shard: int = 1) -> None:
        lost = f"ALTER TABLE {self.local} DROP PARTITION ID '{self.data_set.partition_id(partition)}'"
        self.cluster.on_shard(self.cluster.shards[shard - 1], Statement(lost))

    def show(self) -> None:
        """Create the table over all shards."""
        host, local = self.cluster.shards[0], self.data_set.local_table
        ddl = readers_table_ddl(self.cluster.endpoint, host, self.name, local, partitioned=True)
        self.cluster.any_host(Statement(ddl))

    def compare(self, *, checksums: bool = False) -> Comparison:
        return compare(self.cluster, self.ledger, self.name, checksums=checksums)

    def rebuild(self, *, checksums: bool = False) -> RebuildReport:
        return rebuild(self.endpoints, self.cluster, self.name, checksums=checksums)

    def fences(self) -> dict[str, int]:
        return {p.partition: p.fence for p in self.ledger.publications(self.name)}
