"""What is to be published: partitions, and the files of each, of an Iceberg snapshot or of plain objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trilake.errors import ConfigurationError
from trilake.lake.data_set import LAKE_BUCKET, DataSet

# Where rows come from, as the ledger records it: an Iceberg table with its UUID (old ledger rows lack it), or objects.
ICEBERG_TABLE = "Iceberg table"
PLAIN_OBJECTS = "plain objects"
PlainFormat = Literal["Parquet", "CSVWithNames"]


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a snapshot, or a plain object. `key` is below the plan's bucket of S3.

    :param bucket: the one bucket of Iceberg's that its rows lie in; None: it is not split by shard.
    :param etag: what was pinned, without quotes; empty for files of Iceberg, which never change.
    """

    key: str
    rows: int
    size: int
    bucket: int | None
    etag: str = ""


@dataclass(frozen=True)
class PartitionPlan:
    """The files that one partition consists of at one snapshot.

    :param digest: of plain objects, what stands for exactly these; None: the snapshot does.
    """

    partition: str
    files: tuple[DataFile, ...] = ()
    digest: int | None = None

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def of_shard(self, number: int) -> tuple[DataFile, ...]:
        """The files that shard `number` (from 1) reads: those of its bucket, and those that are not split."""
        return tuple(file for file in self.files if file.bucket is None or file.bucket == number - 1)


@dataclass(frozen=True)
class LoadPlan:
    """What is to be published: partitions of one snapshot of an Iceberg table, or of plain objects.

    :param snapshot_id: Iceberg's; of plain objects their version.
    :param sequence_number: Iceberg's, or the version; a larger one is a later state of the same source.
    :param buckets: how many shards the table was written for; None when unsharded.
    :param source: what the rows come from, see `ICEBERG_TABLE`; two states of different sources have no order.
    :param bucket: of S3, where the files are.
    :param plain: the format of plain objects; None: Parquet files of Iceberg.
    :param types: Iceberg's type of each column at that snapshot; empty where nobody knows.
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

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    @property
    def mixed(self) -> bool:
        """Whether each file holds rows of every shard."""
        return self.plain is not None and self.data_set.grain is not None

    def state_of(self, partition: PartitionPlan) -> int:
        """What tells two states of a partition with one sequence number apart: the snapshot, or a digest."""
        return self.snapshot_id if partition.digest is None else partition.digest


def check_shards(plan: LoadPlan, shards: int) -> None:
    """:raises ConfigurationError: the table was written for another number of shards."""
    if plan.buckets not in (None, shards):
        raise ConfigurationError(
            f"Data set {plan.data_set.name} was written for {plan.buckets} shards, the cluster has {shards}.",
            hint="Reload it for the new number of shards.",
        )
