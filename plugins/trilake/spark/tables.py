"""The lake tables that jobs write. A job creates a missing table, and changes it only in ways that keep every value."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from trilake.lake import DataSet
from trilake.lake.catalog import CATALOG
from trilake.spark import evolution

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
    # A catalog that is restored to some minutes ago names one of these: it must not be gone after a burst of commits.
    "write.metadata.previous-versions-max": "1000",
}

_QUARANTINE_COLUMNS = (
    "`partition` string NOT NULL, file string NOT NULL, reason string NOT NULL, raw string, run string NOT NULL, "
    "quarantined_at timestamp NOT NULL"
)


def check_curated(
    spark: SparkSession, data_set: DataSet, schema: StructType, *, replaced: Collection[str] = ()
) -> list[evolution.Change]:
    """What the data set's table needs before rows of this schema can be written to it.

    :param replaced: columns that may lose their values, see `trilake.spark.evolution`.
    :raises trilake.spark.evolution.ColumnChangedError: a value could change.
    """
    name = f"{CATALOG}.{data_set.curated}"
    if not spark.catalog.tableExists(name):
        evolution.check_types(schema, data_set.curated)
        return []
    kept = [name for name in (data_set.date, data_set.shard_by) if name]
    return evolution.changes(schema, spark.table(name).schema, name=data_set.curated, replaced=replaced, kept=kept)


def create_curated(
    spark: SparkSession, data_set: DataSet, schema: StructType, *, shards: int, replaced: Collection[str] = ()
) -> list[evolution.Change]:
    """Create the data set's table, or change it so that rows of this schema can be written. Returns the changes.

    :raises trilake.spark.evolution.ColumnChangedError: see `check_curated`.
    """
    required = (data_set.date, data_set.shard_by)
    columns = ", ".join(
        f"{evolution.quote(field.name)} {evolution.ddl_type(field.dataType)}"
        f"{' NOT NULL' if field.name in required else ''}"
        for field in schema.fields
    )
    layout = f"{data_set.grain}s(`{data_set.date}`), bucket({shards}, `{data_set.shard_by}`)"
    name = _create(spark, data_set.curated, columns, layout)
    # Compared after it exists: another job may have created it, or changed it, since the first look.
    spark.catalog.refreshTable(name)
    changes = check_curated(spark, data_set, schema, replaced=replaced)
    evolution.apply(spark, name, changes)
    return changes


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
