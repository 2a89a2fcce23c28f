"""A table's DDL on an engine of its own: what fits it, what differs from it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import chdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trilake.clickhouse.publication.types import cuts, fits
from trilake.errors import ConfigurationError
from trilake.platform.embedded.local_table import compare, found_by_check, misfits, missing_values, table_columns

DDL = """-- CREATE TABLE in a comment is none
CREATE TABLE t (id Int64, name LowCardinality(Nullable(String)), day Date, twice Int64 MATERIALIZED id * 2)
ENGINE = MergeTree PARTITION BY toYYYYMM(day) ORDER BY (day, id)
"""
FITTING = {"id": "bigint", "name": "string", "day": "date", "price": "double"}


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    folder = tmp_path / "sql" / "clickhouse" / "t"
    (folder / "checks").mkdir(parents=True)
    (folder / "table.sql").write_text(DDL)
    (folder / "001_add_price.sql").write_text("ALTER TABLE t ADD COLUMN IF NOT EXISTS price Nullable(Float64)")
    (folder / "checks" / "once.sql").write_text("SELECT id FROM {table} GROUP BY id HAVING count() > 1")
    return tmp_path / "sql"


@pytest.mark.parametrize(
    ("spark", "clickhouse", "fit"),
    [
        ("int", "Int32", True),
        ("int", "LowCardinality(Nullable(Int32))", True),
        ("int", "Int64", False),
        ("bigint", "Int32", False),
        ("smallint", "Int16", False),  # Iceberg has no such type
        ("timestamp", "DateTime64(6, 'UTC')", True),
        ("timestamp", "DateTime64(3, 'UTC')", False),
        ("timestamp", "DateTime", False),
        ("decimal(10,2)", "Nullable(Decimal(10, 2))", True),
        ("decimal(10,2)", "Decimal(9, 2)", False),
        ("array<string>", "Array(Nullable(String))", True),
        ("array<int>", "Array(String)", False),
        ("struct<a:int>", "String", False),
    ],
)
def test_a_type_fits_its_equal_alone(spark: str, clickhouse: str, fit: bool) -> None:
    assert fits(spark, clickhouse) is fit


@pytest.mark.parametrize(
    ("iceberg", "clickhouse", "cut"),
    [
        ("long", "Int32", True),
        ("long", "Nullable(Int64)", False),
        ("timestamptz", "DateTime64(6, 'UTC')", False),
        ("timestamptz", "DateTime", True),
        ("decimal(9, 2)", "Decimal(9, 2)", False),
        ("decimal(9, 2)", "Decimal(9, 1)", True),
        ("struct<1: a: required int>", "Tuple(a Int32)", False),
    ],
)
def test_a_narrower_type_would_cut_what_the_lake_has(iceberg: str, clickhouse: str, cut: bool) -> None:
    assert cuts(iceberg, clickhouse) is cut


def test_the_table_is_what_its_steps_make_of_it(sql: Path) -> None:
    assert [(column.name, column.required) for column in table_columns(sql, "t")] == [
        ("id", True), ("name", True), ("day", True), ("twice", False), ("price", True),
    ]  # fmt: skip


def test_what_does_not_fit_is_named(sql: Path) -> None:
    assert misfits(FITTING, "t", sql) == []
    assert misfits({**FITTING, "id": "int", "more": "int"}, "t", sql) == [
        "id: the job makes int, the table has Int64",
        "more: the job makes it (int), the table has no such column",
    ]
    del (without := dict(FITTING))["price"]
    assert misfits(without, "t", sql) == ["price: the table has it (Nullable(Float64)), the job does not make it"]


def test_a_table_that_is_not_there_or_is_refused_is_an_error_that_names_the_file(sql: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"sql/clickhouse/u/table.sql does not exist"):
        table_columns(sql, "u")
    (sql / "clickhouse" / "t" / "002_bad.sql").write_text("ALTER TABLE t ADD COLUMN x NoSuchType")
    with pytest.raises(ConfigurationError, match=r"refuses sql/clickhouse/t/002_bad.sql: .*NoSuchType"):
        table_columns(sql, "t")


def rows(folder: Path, *values: tuple[Any, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    names = ("id", "name", "day", "price")
    schema = pa.schema([("id", pa.int64()), ("name", pa.string()), ("day", pa.date32()), ("price", pa.float64())])
    table = pa.Table.from_pylist([dict(zip(names, value, strict=True)) for value in values], schema)
    pq.write_table(table, folder / "part.parquet")
    return folder


def published(folder: Path, values: str) -> Path:
    structure = "id Int64, name LowCardinality(Nullable(String)), day Date, price Nullable(Float64)"
    sql = f"SELECT * FROM values('{structure}', {values})"
    path = folder / "published.native"
    path.write_bytes(chdb.query(sql, "Native").bytes())
    return path


def test_a_missing_value_is_counted_where_the_table_needs_one(sql: Path, tmp_path: Path) -> None:
    day = dt.date(2013, 1, 1)
    made = rows(tmp_path / "made", (None, None, day, None), (None, "a", day, 1.0), (3, "a", day, 1.0))
    assert missing_values(made, table_columns(sql, "t")) == {"id": 2}


def test_rows_are_compared_by_value_and_as_often_as_they_stand(sql: Path, tmp_path: Path) -> None:
    day = dt.date(2013, 1, 1)
    made = rows(tmp_path / "made", (1, "a", day, None), (1, "a", day, None), (2, None, day, 2.0), (3, "c", day, 3.0))
    there = published(
        tmp_path, "(1, 'a', '2013-01-01', NULL), (2, NULL, '2013-01-01', 2.0), (3, 'c', '2013-01-01', 4.0)"
    )
    found = compare(made, there, FITTING, sql, "t")
    assert (found.both, found.only_here, found.only_there) == (2, 2, 1)
    assert [row["id"] for row in found.examples["only_here"]] == [1, 3]
    assert found.examples["only_there"] == [{"id": 3, "name": "c", "day": "2013-01-01", "price": 4}]


def test_a_column_that_does_not_fit_or_is_new_is_not_compared(sql: Path, tmp_path: Path) -> None:
    made = rows(tmp_path / "made", (1, "a", dt.date(2013, 1, 1), 1.0))
    there = published(tmp_path, "(1, 'a', '2013-01-01', 2.0)")
    found = compare(made, there, {**FITTING, "price": "float", "new": "int"}, sql, "t")
    assert (found.columns, found.both, found.only_here) == (("id", "name", "day"), 1, 0)


def test_nothing_published_leaves_every_row_to_the_run(sql: Path, tmp_path: Path) -> None:
    made = rows(tmp_path / "made", (1, "a", dt.date(2013, 1, 1), 1.0))
    there = published(tmp_path, "(1, 'a', '2013-01-01', 2.0)")
    there.write_bytes(chdb.query("SELECT 1::Int64 AS id WHERE 0", "Native").bytes())
    found = compare(made, there, FITTING, sql, "t")
    assert (found.both, found.only_here, found.only_there) == (0, 1, 0)


def test_a_check_is_run_on_rows_that_it_is_given(sql: Path) -> None:
    assert found_by_check("once", [{"id": 1}, {"id": 2}], "t", sql) == 0
    assert found_by_check("once", [{"id": 1}, {"id": 1}], "t", sql) == 1
    with pytest.raises(ConfigurationError, match=r"has no check twice. Its checks are: once"):
        found_by_check("twice", [], "t", sql)
