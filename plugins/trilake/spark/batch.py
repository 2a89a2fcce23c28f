"""Reads the raw files of a data set. Separates good rows, without duplicates, from refused lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.lake import DataSet
from trilake.spark import inputs
from trilake.spark.delimited import REASON, ROW, header_of, parse_lines, refuse, without_end

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType


@dataclass(frozen=True)
class Batch:
    """The rows of one data set's raw files.

    :param rows: good rows without duplicates, in the columns of the schema.
    :param parsed: all lines, see `trilake.spark.delimited.parse_lines`.
    :param distinct: good rows without duplicates; ``copies`` is how often each was read.
    :param header: first line of each file.
    """

    data_set: DataSet
    inputs: tuple[inputs.Input, ...]
    rows: DataFrame
    parsed: DataFrame
    distinct: DataFrame
    header: str

    def read_bytes(self) -> dict[str, int]:
        """Size of the lines that were read from each file, without its header: bytes by key."""
        return {row[0]: row[1] for row in self.parsed.groupBy("file").agg({"size": "sum"}).collect()}


def read_batch(
    spark: SparkSession,
    data_set: DataSet,
    pinned: tuple[inputs.Input, ...],
    fields: StructType,
    *,
    date: Column | None = None,
    missing: str = "",
    sample: Callable[[DataFrame, str], DataFrame] = lambda lines, _: lines,
) -> Batch:
    """Reads the pinned files once. Spark caches lines and good rows in memory or on its disks.

    :param fields: schema of a line; a value that is not nullable is required.
    :param date: expression for a row's date; default: the date column of `data_set`.
    :param missing: a text that stands for a missing value.
    :param sample: takes the lines and the header, returns the lines that a dry run works on.
    """
    from pyspark.sql import functions as F

    header = header_of(fields)
    # Spark gives the path as a URI. In it a plus sign is a plus sign, not a space.
    path = F.regexp_extract(F.col("_metadata.file_path"), "^[a-z0-9]+://[^/]+/(.*)$", 1)
    key = F.url_decode(F.replace(path, F.lit("+"), F.lit("%2B")))
    line = without_end(F.col("value"))
    lines = (
        spark.read.option("lineSep", "\n")
        # Hadoop skips longer lines without reading them into memory. `inputs.check_whole` finds that they are missing.
        .option("mapreduce.input.linerecordreader.line.maxlength", inputs.LINE_BYTES)
        .text([item.uri for item in pinned])
        .select(key.alias("file"), line.alias("raw"), (F.octet_length("value") + 1).alias("size"))
        .withColumn("partition", F.split_part("file", F.lit("/"), F.lit(2)))
    )
    parsed = parse_lines(sample(lines, header), fields, missing=missing)
    if date is None and data_set.date in fields.fieldNames():
        date = F.col(f"{ROW}.{data_set.date}")
    if date is not None:
        # A partition is recomputed only from its own prefix. A row for another partition would be lost when that
        # partition is recomputed.
        outside = F.coalesce(partition_of(data_set, date) != F.col("partition"), F.lit(True))
        parsed = refuse(parsed, outside, "outside_window", date)
    parsed = parsed.persist()
    # Equal lines in different partitions are not duplicates, so the partition is part of the group.
    good = parsed.where(F.col(REASON).isNull())
    if signs := _signs_of_zeros(fields):
        # As a group's key, Spark writes -0.0 as 0.0. So the sign is part of the key, and the row itself is not.
        groups = good.select("partition", ROW, *signs).groupBy("partition", F.col(ROW).alias("_key"), *_names(signs))
        distinct = groups.agg(F.count("*").alias("copies"), F.first(ROW).alias(ROW)).persist()
    else:
        distinct = good.groupBy("partition", ROW).agg(F.count("*").alias("copies")).persist()
    return Batch(data_set, pinned, distinct.select(f"{ROW}.*"), parsed, distinct, header)


def _signs_of_zeros(fields: StructType) -> list[Column]:
    """For each float or double: whether it is -0.0. NULL if it is not zero."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    values = [F.col(ROW).getField(f.name) for f in fields.fields if isinstance(f.dataType, T.FloatType | T.DoubleType)]
    signs = [F.when(value == 0, F.startswith(value.cast("string"), F.lit("-"))) for value in values]
    return [sign.alias(f"_sign_{number}") for number, sign in enumerate(signs)]


def _names(signs: list[Column]) -> list[str]:
    return [f"_sign_{number}" for number in range(len(signs))]


def partition_of(data_set: DataSet, date: Column) -> Column:
    """The name of the partition of a date, such as ``2013-02``."""
    from pyspark.sql import functions as F

    return F.date_format(date, "yyyy-MM" if data_set.grain == "month" else "yyyy-MM-dd")
