"""A data set, declared once. Its prefixes, tables, assets and folders are derived from it and written nowhere else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields

from trilake.errors import ConfigurationError
from trilake.lake.window import Grain, Window

__all__ = ["DataSet", "Grain"]

RAW_BUCKET = "raw"
LAKE_BUCKET = "lake"
ARTIFACTS_BUCKET = "artifacts"
LOGS_BUCKET = "logs"
# Spark checks that the location of its event logs is a folder. Every store says so of a bucket.
EVENTS_BUCKET = "spark-events"
EXPORTS_BUCKET = "exports"
BUCKETS = (
    RAW_BUCKET,
    LAKE_BUCKET,
    ARTIFACTS_BUCKET,
    LOGS_BUCKET,
    EVENTS_BUCKET,
    EXPORTS_BUCKET,
)

# Where the Iceberg catalog keeps data and metadata: PyIceberg and Spark name it alike.
WAREHOUSE = f"s3a://{LAKE_BUCKET}/warehouse"
CURATED_NAMESPACE = "curated"
QUARANTINE_NAMESPACE = "quarantine"

# The one partition of a dimension table. ClickHouse uses the same name.
WHOLE = "all"

# The name becomes part of object keys, table names in three databases, labels and URIs. All of these take such a name
# unquoted.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class DataSet:
    """The result of a pipeline.

    :param name: lower-case letters, digits and underscores. It is the table's name everywhere.
    :param grain: ``day`` or ``month``: the unit that is recomputed, published and replaced as a whole.
        None: a small dimension table. It is replaced as a whole, and every shard holds a full copy.
    :param date: the column (a date) that decides a row's partition. Required with a grain.
    :param shard_by: the column (not null) whose Iceberg bucket decides a row's shard. Required with a grain.
    :param max_refused: the largest share of a partition's lines that a job may refuse, from 0 to 1. With more, the job
        commits nothing and the table stays as it is. None: 5 %, or 20 lines if that is more, and never all lines.
    """

    name: str
    grain: Grain | None = None
    date: str | None = None
    shard_by: str | None = None
    # not compared: it says how the data set is made, and not which one it is
    max_refused: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name!r} is not a valid name for a data set.",
                hint="Use at most 40 lower-case letters, digits and underscores, and begin with a letter.",
            )
        if self.grain not in (None, "day", "month"):
            raise ConfigurationError(f"Data set {self.name}: {self.grain!r} is not a grain.", hint="Use day or month.")
        if (self.grain is None) != (self.date is None) or (self.grain is None) != (self.shard_by is None):
            raise ConfigurationError(
                f"Data set {self.name}: grain, date and shard_by must be set together.",
                hint="Give all three, or none for a dimension table.",
            )
        if self.max_refused is not None and not 0 <= self.max_refused <= 1:
            raise ConfigurationError(
                f"Data set {self.name}: max_refused is {self.max_refused}, which is not a share.",
                hint="Use a number from 0 (no line may be refused) to 1 (all may be).",
            )

    # --- objects in S3

    def raw_key(self, partition: str, file_name: str = "") -> str:
        """The key of a file of one partition in bucket ``raw``, or the prefix of all its files."""
        return f"{self.name}/{partition}/{file_name}"

    def raw_uri(self, partition: str = "") -> str:
        return f"s3://{RAW_BUCKET}/{self.name}/" + (f"{partition}/" if partition else "")

    # --- Iceberg

    @property
    def curated(self) -> str:
        """The Iceberg table of the good rows, as ``namespace.table``."""
        return f"{CURATED_NAMESPACE}.{self.name}"

    @property
    def quarantine(self) -> str:
        """The Iceberg table of the refused rows, as ``namespace.table``."""
        return f"{QUARANTINE_NAMESPACE}.{self.name}"

    # --- ClickHouse

    @property
    def table(self) -> str:
        """The table over all shards, in the database ``analytics``."""
        return self.name

    @property
    def local_table(self) -> str:
        """The table that holds a shard's rows, in the shard's database."""
        return f"{self.name}_local"

    def staging_table(self, attempt: str, partition: str) -> str:
        """The table of one publication attempt for one partition, in the shard's database of staging tables."""
        return f"{self.name}_staging_{attempt}_{self.partition_id(partition)}"

    def partition_id(self, partition: str) -> str:
        """ClickHouse's id of a partition: ``201302``, ``20130228``, or ``all`` for a dimension table."""
        return partition.replace("-", "")

    @property
    def clickhouse_uri(self) -> str:
        """The asset of the table in ClickHouse. Its events say which partitions can be read."""
        return f"clickhouse://analytics/{self.name}"

    # --- windows and arguments

    def window(self, start: str, end: str | None = None) -> Window:
        """:raises ConfigurationError: not a window, or the data set has no grain."""
        if self.grain is None:
            raise ConfigurationError(
                f"Data set {self.name} has no grain: it is always replaced as a whole.",
                hint="Leave the partition or window out.",
            )
        return Window.parse(self.grain, start, end)

    def to_json(self) -> str:
        """For a job's argument; `from_json` reads it back.

        Fields with their default are left out, so a job version that does not know a field can read it.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return json.dumps({name: value for name, value in values.items() if value is not None}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DataSet:
        """Fields that this version does not know are ignored: a newer operator may have written them.

        :raises ConfigurationError: it is not what `to_json` writes.
        """
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in json.loads(text).items() if name in known})
        except (ValueError, TypeError, AttributeError):
            raise ConfigurationError(
                f"{text[:200]!r} does not describe a data set.", hint='Give JSON such as {"name": "airlines"}.'
            ) from None
