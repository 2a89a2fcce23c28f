"""The lake tables that jobs write. A job creates a missing table, and adds missing columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilake.lake import DataSet
from trilake.lake.catalog import CATALOG

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

# Format 2, with copy-on-write only, because a publication reads data files without delete files. Rows are shuffled by
# partition before they are written, so that a partition has one file and not one for each task.
_PROPERTIES = {
    "format-version": "2",
    "write.distribution-mode": "hash",
    "write.parquet.compression-codec": "zstd",
    "commit.retry.num-retries": "10",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
}

_QUARANTINE_COLUMNS = (
    "`partition` string NOT NULL, file string NOT NULL, reason string NOT NULL, raw string, run string NOT NULL, "
    "quarantined_at timestamp NOT NULL"
)


def create_curated(spark: SparkSession, data_set: DataSet, schema: StructType, *, shards: int) -> None:
    """Creates the data set's table, or adds the columns that it does not have yet."""
    required = (data_set.date, data_set.shard_by)
    columns = ", ".join(
        f"`{field.name}` {field.dataType.simpleString()}{' NOT NULL' if field.name in required else ''}"
        for field in schema.fields
    )
    layout = f"{data_set.grain}s(`{data_set.date}`), bucket({shards}, `{data_set.shard_by}`)"
    name = _create(spark, data_set.curated, columns, layout)
    existing = set(spark.table(name).columns)
    new = [field for field in schema.fields if field.name not in existing]
    if new:
        added = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in new)
        spark.sql(f"ALTER TABLE {name} ADD COLUMNS ({added})")


def create_quarantine(spark: SparkSession, table: str) -> None:
    """:param table: as ``namespace.table``."""
    _create(spark, table, _QUARANTINE_COLUMNS, "`partition`")


def _create(spark: SparkSession, table: str, columns: str, layout: str) -> str:
    """Creates the table if it does not exist. Returns Spark's name of it."""
    name = f"{CATALOG}.{table}"
    properties = ", ".join(f"'{key}' = '{value}'" for key, value in _PROPERTIES.items())
    spark.sql(f"CREATE NAMESPACE IF NOT EXISTS {name.rsplit('.', 1)[0]}")
    spark.sql(
        f"CREATE TABLE IF NOT EXISTS {name} ({columns}) USING iceberg PARTITIONED BY ({layout}) "
        f"TBLPROPERTIES ({properties})"
    )
    return name
