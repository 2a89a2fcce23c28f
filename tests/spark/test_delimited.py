"""Every line becomes a row or is refused with a reason."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, DoubleType, IntegerType, StringType, StructField, StructType, TimestampType

from trilake.spark.delimited import parse_lines, refuse

SCHEMA = StructType(
    [
        StructField("id", IntegerType(), nullable=False),
        StructField("name", StringType()),
        StructField("price", DoubleType()),
    ]
)
# No end of a line, and nothing that stands for a missing value.
FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1).filter(lambda t: t != "NA")
INTEGERS, FLOATS = st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False, allow_infinity=False)


def lines_of(spark: SparkSession, *raw: str, file: str = "a.csv") -> DataFrame:
    rows = [(file, "2013-01", line, len(line.encode()) + 1) for line in raw]
    return spark.createDataFrame(rows, "file string, partition string, raw string, size int")


def outcome(parsed: DataFrame) -> list[tuple[str, object]]:
    """(raw, the row as a tuple, or the reason), sorted by the raw text."""
    return sorted(
        ((row["raw"], row["reason"] or tuple(row["row"])) for row in parsed.collect()), key=lambda pair: str(pair[0])
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1,apple,2.5", (1, "apple", 2.5)),
        ("1,NA,NA", (1, None, None)),
        ('1,"a, b",2', (1, "a, b", 2.0)),
        ('1,"say ""hi""",2', (1, 'say "hi"', 2.0)),
        ("1,ä€,2", (1, "ä€", 2.0)),
        ("1,apple", "field count"),
        ("1,apple,2,3", "field count"),
        ("", "empty line"),
        ("x,apple,2", "type"),
        ("1,apple,two", "type"),
        ("1.5,apple,2", "type"),
        ("99999999999,apple,2", "type"),
        ("NA,apple,2", "missing id"),
        ('1,"apple,2', "unbalanced quote"),
    ],
)
def test_a_line_becomes_a_row_or_is_refused_with_a_reason(spark: SparkSession, raw: str, expected: object) -> None:
    assert outcome(parse_lines(lines_of(spark, raw), SCHEMA)) == [(raw, expected)]


@settings(max_examples=4, deadline=None)  # each is some hundred rows, and a Spark job
@given(st.lists(st.tuples(INTEGERS, FIELDS, FLOATS), min_size=100, max_size=300))
def test_what_a_csv_writer_wrote_is_read(spark: SparkSession, rows: list[tuple[int, str, float]]) -> None:
    with io.StringIO() as text:
        csv.writer(text, lineterminator="\n").writerows(rows)
        raw = text.getvalue().split("\n")[:-1]
    found = parse_lines(lines_of(spark, *raw), SCHEMA).select("reason", "row.*").collect()
    assert sorted(tuple(row) for row in found) == sorted((None, *row) for row in rows)


def test_bytes_that_are_not_utf8_are_refused_and_their_text_is_kept_readable(spark: SparkSession) -> None:
    lines = lines_of(spark, "1,x,2").withColumn("raw", F.expr("cast(X'312CFF2C32' as string)"))
    (row,) = parse_lines(lines, SCHEMA).collect()
    assert (row["reason"], row["raw"], row["row"]) == ("not UTF-8", "1,\ufffd,2", None)


def test_the_header_of_each_file_is_dropped_and_a_second_one_is_refused(spark: SparkSession) -> None:
    header = "id,name,price"
    lines = lines_of(spark, header, "1,a,1", header, header).unionByName(lines_of(spark, header, "2,b,2", file="b.csv"))
    parsed = parse_lines(lines, SCHEMA)
    assert outcome(parsed) == [("1,a,1", (1, "a", 1.0)), ("2,b,2", (2, "b", 2.0)), (header, "type"), (header, "type")]


def test_times_are_read_as_utc(spark: SparkSession) -> None:
    schema = StructType([StructField("at", TimestampType()), StructField("day", DateType())])
    parsed = parse_lines(lines_of(spark, "2013-01-01T10:00:00Z,2013-01-01"), schema)
    (row,) = parsed.select(F.date_format("row.at", "yyyy-MM-dd HH:mm").alias("at"), "row.day").collect()
    assert (row["at"], str(row["day"])) == ("2013-01-01 10:00", "2013-01-01")


@pytest.mark.parametrize("text", ["2013", "2013-01", "2013-1-5", "2013-01-05 10:00", "2013-01-05Tx", "12013-01-05"])
def test_what_only_begins_as_a_date_is_none(spark: SparkSession, text: str) -> None:
    schema = StructType([StructField("id", IntegerType()), StructField("day", DateType())])
    assert outcome(parse_lines(lines_of(spark, f"1,{text}"), schema)) == [(f"1,{text}", "type")]


def test_what_is_read_of_a_row_does_not_change_what_is_refused(spark: SparkSession) -> None:
    parsed = parse_lines(lines_of(spark, "1,apple,two", "2,pear,3"), SCHEMA)
    assert [row["id"] for row in parsed.select("row.id").where("id is not null").collect()] == [2]
    assert parsed.where("reason is not null").count() == 1


def test_refuse_keeps_earlier_reasons_and_takes_an_unknown_condition_for_no(spark: SparkSession) -> None:
    parsed = parse_lines(lines_of(spark, "1,a,1", "2,a,NA", "3,a,3", "bad"), SCHEMA)
    assert outcome(refuse(parsed, F.col("row.price") > 2, "too dear")) == [
        ("1,a,1", (1, "a", 1.0)),
        ("2,a,NA", (2, "a", None)),
        ("3,a,3", "too dear"),
        ("bad", "field count"),
    ]
