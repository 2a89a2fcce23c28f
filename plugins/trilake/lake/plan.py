"""A plan to publish: partitions of an Iceberg snapshot or of plain objects, with the files of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trilake.lake.column_sums import ColumnSum
from trilake.lake.data_set import LAKE_BUCKET, DataSet

# The source of rows, as the ledger records it: an Iceberg table with its UUID (old ledger rows lack it), or objects.
ICEBERG_TABLE = "Iceberg table"
PLAIN_OBJECTS = "plain objects"
PlainFormat = Literal["Parquet", "CSVWithNames"]


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a snapshot, or a plain object. `key` is below the plan's bucket of S3.

    :param bucket: Iceberg's bucket of all its rows; None: it is not split by shard.
    :param etag: the pinned ETag, without quotes; empty for files of Iceberg, which never change.
    :param names: the file's own name of each column that it has. None: it has all columns by their own names.
    :param null_rows: columns without sums that have an array, map or struct that is NULL, with the number of the first
        such row. None: nobody has looked.
    """

    key: str
    rows: int
    size: int
    bucket: int | None
    etag: str = ""
    names: Mapping[str, str] | None = field(default=None, compare=False)
    null_rows: Mapping[str, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PartitionPlan:
    """The files that one partition consists of at one snapshot.

    :param digest: of exactly these plain objects; None for a snapshot of Iceberg.
    """

    partition: str
    files: tuple[DataFile, ...] = ()
    digest: int | None = None

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def of_shard(self, number: int) -> tuple[DataFile, ...]:
        """The files that shard `number` (from 1) reads: those of its bucket, and those that are not split by shard."""
        return tuple(file for file in self.files if file.bucket is None or file.bucket == number - 1)


@dataclass(frozen=True)
class LoadPlan:
    """The partitions to publish, of one snapshot of an Iceberg table or of plain objects.

    :param snapshot_id: Iceberg's; the version, for plain objects.
    :param sequence_number: Iceberg's, or the version; a larger one is a later state of the same source.
    :param buckets: Iceberg's buckets of the shard key, one for each shard when the table was created; None if it is
        not sharded. If the rows are spread over another number of shards now, each shard reads all files.
    :param source: where the rows come from, see `ICEBERG_TABLE`. States of different sources have no order.
    :param bucket: the S3 bucket of the files.
    :param plain: the format of plain objects; None: Parquet files of Iceberg.
    :param types: Iceberg's type of each column at that snapshot; empty if unknown.
    :param sums: of the columns of a partition, as its job computed them, by partition and column. A partition without
        sums is left out.
    """

    data_set: DataSet
    snapshot_id: int
    sequence_number: int
    buckets: int | None
    partitions: tuple[PartitionPlan, ...]
    source: str = ICEBERG_TABLE
    bucket: str = LAKE_BUCKET
    plain: PlainFormat | None = None
    types: Mapping[str, str] = field(default_factory=dict, compare=False)
    sums: Mapping[str, Mapping[str, ColumnSum]] = field(default_factory=dict, compare=False)

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    def state_of(self, partition: PartitionPlan) -> int:
        """Tells apart two states of a partition that have the same sequence number: the snapshot id, or a digest."""
        return self.snapshot_id if partition.digest is None else partition.digest
