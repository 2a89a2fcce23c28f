"""Every line becomes a row or is refused with a reason."""

from __future__ import annotations

import csv
import datetime as dt
import io
import math
from collections import Counter
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from trilake.errors import ConfigurationError
from trilake.spark.delimited import parse_lines, refuse, without_end

SCHEMA = StructType(
    [
        StructField("id", IntegerType(), nullable=False),
        StructField("name", StringType()),
        StructField("price", DoubleType()),
    ]
)
# What is cut, quoted or counted, and what one program or another takes for an end
ODD = '",\r\0\x01 \u2028\x85\ufeffaN'
END = "\uffff"
# As many texts as a job takes as quickly as one; by hypothesis' own strategies they would be few, and simple ones.
SEEDS, LINES = st.integers(0, 2**32), 2_000


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
        ("1,NA,", (1, "NA", None)),
        ('1,"",', (1, "", None)),
        ('1,"a, b",2', (1, "a, b", 2.0)),
        ('1,"say ""hi""",2', (1, 'say "hi"', 2.0)),
        ("1,ä€,2", (1, "ä€", 2.0)),
        ("1,apple", "field count"),
        ("1,apple,2,3", "field count"),
        ("", "empty line"),
        ("x,apple,2", "type of id: x is not int"),
        ("1,apple,two", "type of price: two is not double"),
        ("1.5,apple,2", "type of id: 1.5 is not int"),
        ("99999999999,apple,2", "type of id: 99999999999 is not int"),
        (",apple,2", "missing id"),
        ('1,"apple,2', "unbalanced quote"),
    ],
)
def test_a_line_becomes_a_row_or_is_refused_with_a_reason(spark: SparkSession, raw: str, expected: object) -> None:
    assert outcome(parse_lines(lines_of(spark, raw), SCHEMA)) == [(raw, expected)]


def text_of(random: Random, odd: str) -> str:
    """No end of a line, and of Unicode's other characters any."""
    signs = (
        random.choice(odd) if random.random() < 0.8 else chr(random.choice([*range(0x20, 0xD800, 97), 0xE000, 0x1F980]))
        for _ in range(random.randint(1, 5))
    )
    return "".join(signs)


@settings(max_examples=3, deadline=None)
@given(SEEDS)
def test_what_a_csv_writer_wrote_is_read(spark: SparkSession, seed: int) -> None:
    random = Random(seed)
    texts = (text_of(random, ODD) for _ in range(LINES))
    rows = [
        (random.randint(-(2**31), 2**31 - 1), text, random.uniform(-1, 1) * 10.0 ** random.randint(-300, 300))
        for text in texts
    ]
    with io.StringIO() as written:
        csv.writer(written, lineterminator="\n").writerows(rows)
        raw = written.getvalue().split("\n")[:-1]
    found = parse_lines(lines_of(spark, *raw), SCHEMA).select("reason", "row.*").collect()
    assert sorted(tuple(row) for row in found) == sorted((None, *row) for row in rows)


@settings(max_examples=3, deadline=None)
@given(SEEDS)
def test_any_line_is_there_once_as_a_row_that_says_the_same_or_refused(spark: SparkSession, seed: int) -> None:
    """As Python's csv module reads it, which takes a lone \\r for the end of a line: it is given something else."""
    random, schema = Random(seed), StructType([StructField("a", StringType()), StructField("b", StringType())])
    raw = [f"{text_of(random, ODD + END)},{text_of(random, ODD + END)}" for _ in range(LINES)]
    found = parse_lines(lines_of(spark, *raw), schema).collect()
    assert Counter(row["raw"] for row in found) == Counter(raw)
    assert len({row["reason"] for row in found}) > 2
    for line, reason, row in ((row["raw"], row["reason"], row["row"]) for row in found):
        assert (reason is None) != (row is None), line
        if row is not None:
            (values,) = csv.reader([line.replace("\r", "\x01")])
            missing = [value or None for value in values]
            assert [value and value.replace("\r", "\x01") for value in (row["a"] or None, row["b"] or None)] == missing


@pytest.mark.parametrize(
    ("kind", "said", "refused"),
    [
        (
            DoubleType(),
            {"1.5": 1.5, "+1.5": 1.5, "1e3": 1e3, "5.": 5.0, ".5": 0.5, "0e9": 0.0, "NaN": math.nan, "-Inf": -math.inf},
            (
                "1e400",
                "-1e400",
                "1e-400",
                "1.5d",
                "1f",
                " 1",
                "1 ",
                "\t1",
                "0x1p3",
                "nan",
                "1\r",
                "1\u2028",
                "1\0",
                ".",
            ),
        ),
        (FloatType(), {"0.5": 0.5, "Infinity": math.inf}, ("1e39", "-1e39", "1e-46", "0.5f", " 0.5")),
        (
            DecimalType(6, 2),
            {"1.500": Decimal("1.50"), "+1": Decimal("1.00"), "-.5": Decimal("-0.50"), "9999.99": Decimal("9999.99")},
            ("1.005", "1e2", "1e-400", '"1,5"', "10000", " 1", "NaN"),
        ),
        (DecimalType(6, 0), {"1": Decimal(1), "1.0": Decimal(1)}, ("1.5", ".")),
        (IntegerType(), {"+1": 1, "-1": -1, "007": 7}, (" 1", "1 ", "1.0", "1e1", "0x1", "1d", "1_0")),
        (
            TimestampNTZType(),
            {
                "2013-01-05T10:00:00": dt.datetime(2013, 1, 5, 10),
                "2013-01-05 10:00": dt.datetime(2013, 1, 5, 10),
                "2013-01-05 10:00:00.1234560": dt.datetime(2013, 1, 5, 10, 0, 0, 123456),
                "0001-01-01T00:00:00.000001": dt.datetime(1, 1, 1, 0, 0, 0, 1),
            },
            ("2013", "2013-01-05", "2013-01-05T10:00:00Z", "2013-01-05 10:00:00.1234567", "2013-01-05 24:00:00"),
        ),
        (
            TimestampType(),
            {
                text: dt.datetime(2013, 1, 5, 10, 0, 0, micros)
                for text, micros in {
                    "2013-01-05T10:00:00Z": 0,
                    "2013-01-05 10:00:00+00": 0,
                    "2013-01-05 11:00:00+01": 0,
                    "2013-01-05T15:30:00+05:30": 0,
                    "2013-01-05T15:30:00+0530": 0,
                    "2013-01-04T23:00:00.25-11:00": 250_000,
                    "2013-01-05T10:00Z": 0,
                    "2013-01-05 10:00:00.123456 +00": 123_456,
                }.items()
            },
            (
                *("2013-01-05T10:00:00", "2013-01-05T10:00:60Z", "2013-02-30T10:00:00Z", "1357380000"),
                *("2013-01-05T10:00:00.0000001Z", "2013-01-05T10:00:00+99:00", "2013-01-05T10:00:00 Europe/Berlin"),
            ),
        ),
        (BooleanType(), {"true": True, "FALSE": False, "t": True, "f": False}, ("1", "0", "yes", " t", "T rue")),
        (BinaryType(), {"\\x": b"", "\\x00Ff": b"\x00\xff"}, ("00ff", "\\x0", "\\xzz", "abc")),
        (DateType(), {"0001-01-01": dt.date(1, 1, 1), "9999-12-31": dt.date(9999, 12, 31)}, ("2013-1-5", "2013-02-30")),
    ],
    ids=lambda value: value.simpleString() if isinstance(value, DataType) else "",
)
def test_a_column_holds_what_the_text_says_or_the_line_is_refused(
    spark: SparkSession, kind: DataType, said: dict[str, object], refused: tuple[str, ...]
) -> None:
    schema = StructType([StructField("text", StringType()), StructField("value", kind)])
    lines = {f"{number},{text}": text for number, text in enumerate([*said, *refused, "NA", ""])}
    found = {
        lines[row["raw"]]: (row["reason"] or repr(row["row"]["value"])).partition(": ")[0]
        for row in parse_lines(lines_of(spark, *lines), schema, missing="NA").collect()
    }
    expected = {text: repr(value) for text, value in said.items()} | dict.fromkeys(refused, "type of value")
    assert found == {**expected, "NA": "None", "": "None"}


def test_a_column_whose_type_a_text_cannot_have_is_named(spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match=r"Column value: a CSV file cannot hold values of type array<int>"):
        parse_lines(lines_of(spark, "[1]"), StructType([StructField("value", ArrayType(IntegerType()))]))


def test_a_text_that_would_be_read_otherwise_or_spoil_its_neighbours_is_refused(spark: SparkSession) -> None:
    schema = StructType([StructField("a", StringType()), StructField("b", StringType())])
    expected: dict[str, object] = {
        "a,\uffffb": "not a character",
        "c,d": ("c", "d"),
        "\ufeffa,b": "byte order mark",
        '"a" ,b': "unbalanced quote",
        '"a"b,c': "unbalanced quote",
        'a"b"c,d': ('a"b"c', "d"),
        '"a\0""\0",b': ('a\0"\0', "b"),
        'a,"\0"': ("a", "\0"),
        '"NA",""': ("NA", ""),
    }
    assert outcome(parse_lines(lines_of(spark, *expected), schema)) == sorted(expected.items())


def test_a_long_text_in_quotes_is_read(spark: SparkSession) -> None:
    long = "x" * 1_000_000 + '"' * 10_000
    line = f'1,"{long.replace(chr(34), chr(34) * 2)}",2'
    assert outcome(parse_lines(lines_of(spark, line), SCHEMA)) == [(line, (1, long, 2.0))]


def test_the_end_of_a_line_on_windows_is_taken_away_once_and_nothing_else(spark: SparkSession) -> None:
    expected = {"a\r": "a", "a\r\r": "a\r", "a\r\u2028": "a\r\u2028", "a\r\x85": "a\r\x85", "\r": "", "a\rb": "a\rb"}
    found = spark.createDataFrame([(text,) for text in expected], "raw string")
    assert dict(map(tuple, found.select("raw", without_end(F.col("raw"))).collect())) == expected


def test_bytes_that_are_not_utf8_are_refused_and_their_text_is_kept_readable(spark: SparkSession) -> None:
    lines = lines_of(spark, "1,x,2").withColumn("raw", F.expr("cast(X'312CFF2C32' as string)"))
    (row,) = parse_lines(lines, SCHEMA).collect()
    assert (row["reason"], row["raw"], row["row"]) == ("not UTF-8", "1,\ufffd,2", None)


def test_the_header_of_each_file_is_dropped_and_a_second_one_is_refused(spark: SparkSession) -> None:
    header = "id,name,price"
    lines = lines_of(spark, header, "1,a,1", header, header).unionByName(lines_of(spark, header, "2,b,2", file="b.csv"))
    parsed = parse_lines(lines, SCHEMA)
    refused = "type of id: id is not int"
    assert outcome(parsed) == [("1,a,1", (1, "a", 1.0)), ("2,b,2", (2, "b", 2.0)), (header, refused), (header, refused)]


def test_times_are_read_as_utc(spark: SparkSession) -> None:
    schema = StructType([StructField("at", TimestampType()), StructField("day", DateType())])
    parsed = parse_lines(lines_of(spark, "2013-01-01T10:00:00Z,2013-01-01"), schema)
    (row,) = parsed.select(F.date_format("row.at", "yyyy-MM-dd HH:mm").alias("at"), "row.day").collect()
    assert (row["at"], str(row["day"])) == ("2013-01-01 10:00", "2013-01-01")


@pytest.mark.parametrize("text", ["2013", "2013-01", "2013-1-5", "2013-01-05 10:00", "2013-01-05Tx", "12013-01-05"])
def test_what_only_begins_as_a_date_is_none(spark: SparkSession, text: str) -> None:
    schema = StructType([StructField("id", IntegerType()), StructField("day", DateType())])
    assert outcome(parse_lines(lines_of(spark, f"1,{text}"), schema)) == [
        (f"1,{text}", f"type of day: {text} is not date")
    ]


def test_what_is_read_of_a_row_does_not_change_what_is_refused(spark: SparkSession) -> None:
    parsed = parse_lines(lines_of(spark, "1,apple,two", "2,pear,3"), SCHEMA)
    assert [row["id"] for row in parsed.select("row.id").where("id is not null").collect()] == [2]
    assert parsed.where("reason is not null").count() == 1


def test_refuse_keeps_earlier_reasons_and_takes_an_unknown_condition_for_no(spark: SparkSession) -> None:
    parsed = parse_lines(lines_of(spark, "1,a,1", "2,a,", "3,a,3", "bad"), SCHEMA)
    assert outcome(refuse(parsed, F.col("row.price") > 2, "too dear")) == [
        ("1,a,1", (1, "a", 1.0)),
        ("2,a,", (2, "a", None)),
        ("3,a,3", "too dear"),
        ("bad", "field count"),
    ]
