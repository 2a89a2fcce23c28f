"""Exact duplicates: rows that are equal in every value, the sign of a zero included."""

from __future__ import annotations

import math
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql.types import DoubleType, IntegerType, StructField, StructType

from trilake.lake import DataSet
from trilake.spark.batch import read_batch
from trilake.spark.inputs import Input

SCHEMA = StructType([StructField("k", IntegerType()), StructField("v", DoubleType())])


def test_a_negative_zero_is_another_row_and_stays_negative(spark: SparkSession, tmp_path: Path) -> None:
    class Local(Input):
        @property
        def uri(self) -> str:
            return (tmp_path / "a.csv").as_uri()

    (tmp_path / "a.csv").write_text("k,v\n1,-0.0\n1,0.0\n1,-0.0\n1,NaN\n1,NaN\n1,\n")
    pinned = (Local("a.csv", "etag", 10, "2013-01"),)
    batch = read_batch(spark, DataSet("t"), pinned, SCHEMA)
    rows = batch.distinct.select("row.v", "copies").collect()
    found = sorted((repr(row.v), row.copies) for row in rows)
    assert found == [("-0.0", 2), ("0.0", 1), ("None", 1), ("nan", 2)]
    assert sum(math.copysign(1, row.v) for row in batch.rows.collect() if row.v == 0) == 0
