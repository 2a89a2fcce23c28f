"""A data set, declared once. Its prefixes, tables, assets and folders follow from it and are written nowhere else."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from trilake.errors import ConfigurationError
from trilake.lake.window import Grain, Window

__all__ = ["DataSet", "Grain"]

RAW_BUCKET = "raw"
LAKE_BUCKET = "lake"
ARTIFACTS_BUCKET = "artifacts"
LOGS_BUCKET = "logs"
# Spark asks whether the place of its event logs is a folder; of a bucket every store says so.
EVENTS_BUCKET = "spark-events"
BACKUPS_BUCKET = "backups"
EXPORTS_BUCKET = "exports"
BUCKETS = (
    RAW_BUCKET,
    LAKE_BUCKET,
    ARTIFACTS_BUCKET,
    LOGS_BUCKET,
    EVENTS_BUCKET,
    BACKUPS_BUCKET,
    EXPORTS_BUCKET,
)

# Where the Iceberg catalog keeps data and metadata: PyIceberg and Spark name it alike.
WAREHOUSE = f"s3a://{LAKE_BUCKET}/warehouse"
CURATED_NAMESPACE = "curated"
QUARANTINE_NAMESPACE = "quarantine"

# The one partition of a dimension table: ClickHouse's own word for it.
WHOLE = "all"

# The name becomes part of object keys, tables of three databases, labels and URIs: what all of them take unquoted.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class DataSet:
    """What a pipeline makes.

    :param name: lower case, digits and underscores; names the table everywhere.
    :param grain: ``day`` or ``month``: the unit that is recomputed, published and replaced as a whole.
        None: a small dimension table, replaced as a whole and standing whole on every shard.
    :param date: the column (a date) that says which partition a row belongs to. Required with a grain.
    :param shard_by: the column (not null) whose Iceberg bucket is a row's shard. Required with a grain.
    """

    name: str
    grain: Grain | None = None
    date: str | None = None
    shard_by: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name!r} cannot name a data set.",
                hint="Use at most 40 lower-case letters, digits and underscores, a letter first.",
            )
        if self.grain not in (None, "day", "month"):
            raise ConfigurationError(f"Data set {self.name}: {self.grain!r} is not a grain.", hint="Use day or month.")
        if (self.grain is None) != (self.date is None) or (self.grain is None) != (self.shard_by is None):
            raise ConfigurationError(
                f"Data set {self.name}: grain, date and shard_by belong together.",
                hint="Give all three, or none for a dimension table.",
            )

    # --- objects in S3

    def raw_key(self, partition: str, file_name: str = "") -> str:
        """The key below bucket ``raw`` of a file, or the prefix of all files, of one partition."""
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
        """The table of one partition of one publication attempt alone, in the shard's database."""
        return f"{self.name}_staging_{attempt}_{self.partition_id(partition)}"

    def partition_id(self, partition: str) -> str:
        """ClickHouse's id of a partition: ``201302``, ``20130228``, or ``all`` for a dimension table."""
        return partition.replace("-", "")

    @property
    def clickhouse_uri(self) -> str:
        """The asset that says a partition can be read in ClickHouse."""
        return f"clickhouse://analytics/{self.name}"

    # --- windows and arguments

    def window(self, start: str, end: str | None = None) -> Window:
        """:raises ConfigurationError: not a window, or the data set has no grain."""
        if self.grain is None:
            raise ConfigurationError(f"Data set {self.name} has no grain: it is always replaced as a whole.")
        return Window.parse(self.grain, start, end)

    def to_json(self) -> str:
        """For a job's argument; `from_json` reads it back."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DataSet:
        """:raises ConfigurationError: it is not what `to_json` writes."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            raise ConfigurationError(
                f"{text[:200]!r} is no data set.", hint='Give JSON such as {"name": "airlines"}.'
            ) from None
