"""The table of types says what the code of each path does, and docs/reference/types.md is that table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from clickhouse_connect.datatypes.registry import get_from_name
from pyspark.sql import types as T

from support.clickhouse_types import FAMILIES, WRAPPERS
from trilake.cli.type_table import PATHS, Rule, find, markdown
from trilake.clickhouse.exact import RefusedValueError, exact_column
from trilake.clickhouse.export import can_be_exported
from trilake.clickhouse.marts import kind_of
from trilake.clickhouse.publication.types import cuts
from trilake.clickhouse.publication.values import NoConversionError, from_text
from trilake.errors import ConfigurationError
from trilake.postgres.columns import TableColumn
from trilake.postgres.staging import Kind, staged_columns
from trilake.spark.clickhouse import _spark_type
from trilake.spark.evolution import ColumnChangedError, check_types
from trilake.spark.postgres import _kind

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "types.md"
_EXAMPLES = {"(p, s)": "(9, 2)", "(p,s)": "(9,2)", "(n, zone)": "(6, 'UTC')", "(n)": "(3)", "[n]": "[3]"}
_BITS = (8, 16, 32, 64, 128, 256)


def example(kind: str) -> str:
    for general, one in _EXAMPLES.items():
        kind = kind.replace(general, one)
    return kind


def rules(name: str) -> tuple[Rule, ...]:
    path = find(name)
    assert path is not None
    return path.rules


def listed(text: str) -> list[str]:
    """The types that a cell names. ``Int8 to Int256`` stands for all between."""
    names: list[str] = []
    for name in re.split(r",\s*(?![^(]*\))", text):
        if match := re.fullmatch(r"(U?Int)(\d+) to \1(\d+)", name):
            names += [f"{match[1]}{bits}" for bits in _BITS if int(match[2]) <= bits <= int(match[3])]
        else:
            names.append(name)
    return names


def family(kind: str) -> str:
    return kind.partition("(")[0]


def test_the_page_is_written_from_the_table() -> None:
    assert DOCS.read_text() == markdown(), "run: trilake types --markdown > docs/reference/types.md"


def test_each_rule_has_one_outcome_and_refusals_say_why() -> None:
    for path in PATHS:
        refused = [name for rule in path.rules if rule.outcome == "refused" for name in listed(rule.source)]
        others = [name for rule in path.rules if rule.outcome != "refused" for name in listed(rule.source)]
        assert len(refused) == len(set(refused)), path.name
        assert not set(refused) & set(others), path.name
        assert all(rule.how for rule in path.rules if rule.outcome == "refused"), path.name


# --- no type is left out


def named(path: str, side: str) -> set[str]:
    """The families of types in a column of a path's table."""
    cells = (getattr(rule, side) or rule.source for rule in rules(path))
    return {family(name.removeprefix("any value for ")) for cell in cells for name in listed(cell)}


def missing(path: str, side: str, known: set[str]) -> set[str]:
    found = named(path, side)
    return {name for name in known if name not in found and not (name.startswith("Interval") and "Interval" in found)}


@pytest.mark.parametrize("path", ["clickhouse-postgres", "clickhouse-s3", "clickhouse-python", "clickhouse-xcom"])
def test_a_path_from_clickhouse_names_each_type(path: str) -> None:
    assert missing(path, "source", FAMILIES - WRAPPERS) == set()


def test_a_path_to_clickhouse_names_each_type() -> None:
    assert missing("python-clickhouse", "target", FAMILIES - WRAPPERS - {"Nothing"}) == set()


def test_clickhouse_to_job_names_each_type() -> None:
    known = {name for name in FAMILIES - WRAPPERS if not name.startswith("Interval")}
    assert missing("clickhouse-job", "source", known) == set()


SPARK: dict[str, T.DataType] = {
    "tinyint": T.ByteType(), "smallint": T.ShortType(), "int": T.IntegerType(), "bigint": T.LongType(),
    "float": T.FloatType(), "double": T.DoubleType(), "decimal(p,s)": T.DecimalType(9, 2), "boolean": T.BooleanType(),
    "string": T.StringType(), "char(n)": T.CharType(3), "varchar(n)": T.VarcharType(3), "binary": T.BinaryType(),
    "date": T.DateType(), "timestamp": T.TimestampType(), "timestamp_ntz": T.TimestampNTZType(), "void": T.NullType(),
    "array": T.ArrayType(T.IntegerType()), "map": T.MapType(T.StringType(), T.IntegerType()),
    "struct": T.StructType([T.StructField("a", T.IntegerType())]), "interval": T.DayTimeIntervalType(),
    "variant": T.VariantType(), "time": T.TimeType(6), "geometry": T.GeometryType(4326),
}  # fmt: skip


def test_the_types_of_spark_are_known() -> None:
    abstract = {"AnsiInterval", "AnyTime", "Atomic", "Data", "Datetime", "Fractional", "Integral", "Numeric", "Spatial"}
    alike = {"CalendarInterval", "YearMonthInterval", "Geography", "UserDefined", ""}  # interval, geometry, as any
    names = {name.removesuffix("Type") for name in dir(T) if name.endswith("Type")} - abstract - alike
    assert names == {type(kind).__name__.removesuffix("Type") for kind in SPARK.values()}


@pytest.mark.parametrize("path", ["job-iceberg", "spark-postgres"])
def test_a_path_from_spark_names_each_type(path: str) -> None:
    assert {name for rule in rules(path) for name in listed(rule.source)} == set(SPARK)


# --- each path does what its rules say


@pytest.mark.parametrize("name", SPARK)
def test_job_to_iceberg(name: str) -> None:
    outcome = next(rule.outcome for rule in rules("job-iceberg") if name in listed(rule.source))
    frame = T.StructType([T.StructField("c", SPARK[name])])
    if outcome == "refused":
        with pytest.raises(ColumnChangedError, match="column c is "):
            check_types(frame, "curated.t")
    else:
        check_types(frame, "curated.t")


NESTED = {"list<T>": ("list<int>", "Array(Int32)"), "map<K, V>": ("map<string, int>", "Map(String, Int32)")}
NESTED["struct<name: T>"] = ("struct<1: name: optional int>", "Tuple(name Int32)")


@pytest.mark.parametrize("rule", rules("iceberg-clickhouse"), ids=lambda rule: f"{rule.source}-{rule.target}")
def test_iceberg_to_clickhouse(rule: Rule) -> None:
    source, target = NESTED.get(rule.source, (example(rule.source), example(rule.target or "Int64")))
    assert cuts(source, target) is (rule.outcome == "refused")
    assert cuts(source, f"Nullable({target})") is (rule.outcome == "refused")


@pytest.mark.parametrize("rule", rules("clickhouse-job"), ids=lambda rule: rule.source[:40])
def test_clickhouse_to_job(rule: Rule) -> None:
    for kind in listed(rule.source):
        if kind.startswith(("Enum", "DateTime64(0 to", "Array")):
            continue
        if rule.outcome == "refused":
            with pytest.raises(ConfigurationError, match="Column c"):
                _spark_type("c", example(kind))
        else:
            assert _spark_type("c", example(kind)) == example(rule.target)


@pytest.mark.parametrize("rule", rules("csv-clickhouse"), ids=lambda rule: rule.target or "refused")
def test_csv_to_clickhouse(rule: Rule) -> None:
    inside = {
        "Array": "(Int8)",
        "Map": "(String, Int8)",
        "Tuple": "(a Int8)",
        "Enum8": "('a' = 1)",
        "Enum16": "('a' = 1)",
    }
    for name in listed(rule.target or rule.source):
        kind = example(name) + inside.get(name, "")
        if rule.outcome == "refused":
            with pytest.raises(NoConversionError):
                from_text("s", kind)
        else:
            assert from_text("s", kind).exact


# A type of each family of ClickHouse.
TYPES = {
    "Decimal": "Decimal(9, 2)", "FixedString": "FixedString(3)", "Enum8": "Enum8('a' = 1)", "Enum16": "Enum16('a' = 1)",
    "DateTime64": "DateTime64(6)", "Time64": "Time64(6)", "Array": "Array(Int32)", "Map": "Map(String, Int8)",
    "Tuple": "Tuple(a Int8)", "Nested": "Nested(a Int8)", "Variant": "Variant(Int8, String)", "Interval": "IntervalDay",
    "AggregateFunction": "AggregateFunction(sum, Int64)", "QBit": "QBit(Float32, 3)",
}  # fmt: skip


def clickhouse(rule: Rule) -> Iterator[str]:
    for name in listed(rule.source):
        yield TYPES.get(family(name), name)


@pytest.mark.parametrize("rule", rules("clickhouse-s3"), ids=lambda rule: rule.source[:40])
def test_clickhouse_to_s3(rule: Rule) -> None:
    for kind in clickhouse(rule):
        for inside in (
            kind,
            f"Array({kind})",
            f"Tuple(`Time` {kind}, Point Int8)",
            f"SimpleAggregateFunction(any, {kind})",
        ):
            assert can_be_exported(inside) is (rule.outcome != "refused"), inside


POSTGRES = {
    "smallint": "int2", "integer": "int4", "bigint": "int8", "numeric": "numeric", "real": "float4",
    "double precision": "float8", "boolean": "bool", "text": "text", "varchar(n)": "varchar", "char(n)": "bpchar",
    "bytea": "bytea", "date": "date", "timestamp": "timestamp", "timestamptz": "timestamptz", "time": "time",
    "timetz": "timetz", "interval": "interval", "uuid": "uuid", "inet": "inet", "cidr": "cidr", "json": "json",
    "jsonb": "jsonb", "enum": "enum", "money": "money", "point": "point",
}  # fmt: skip


def fits(name: str, kind: Kind) -> bool:
    column = TableColumn("c", example(name), POSTGRES[name], "", False, False, False, False, False)
    try:
        staged_columns("marts.t", {"c": column}, {"c": kind})
    except ConfigurationError:
        return False
    return True


def targets(path: str, source: str) -> set[str]:
    """The columns of PostgreSQL that take a type."""
    cells = [rule.target for rule in rules(path) if source in listed(rule.source) and rule.target]
    if any(cell.startswith("any ") for cell in cells):
        return set(POSTGRES)
    return {name for cell in cells for name in listed(cell)} - {"an array of a type for T"}


@pytest.mark.parametrize(
    "source", sorted({name for rule in rules("clickhouse-postgres") for name in listed(rule.source)})
)
def test_clickhouse_to_postgres(source: str) -> None:
    kind = TYPES.get(family(source), source)
    found = {name for name, base in POSTGRES.items() if fits(name, kind_of(kind, base, ""))}
    assert found == targets("clickhouse-postgres", source)


@pytest.mark.parametrize("source", SPARK)
def test_spark_to_postgres(source: str) -> None:
    kind = Kind(_kind(SPARK[source]), source)
    assert {name for name in POSTGRES if fits(name, kind)} == targets("spark-postgres", source)


# Values of Python by name.
VALUES: dict[str, Any] = {
    "int": 1, "float": 1.0, "Decimal": Decimal("1"), "str": "1", "bool": True, "bytes": b"abc", "0": 0, "1": 1,
    "date": date(2013, 1, 5), "datetime": datetime(2013, 1, 5), "timedelta": timedelta(hours=1), "UUID": UUID(int=1),
    "IPv4Address": IPv4Address("1.2.3.4"), "IPv6Address": IPv6Address("::1"), "16 bytes": bytes(16), "list": [1],
    "list of dicts": [{"a": 1}], "list of tuples": [(1.0, 2.0)],
}  # fmt: skip
FOR_COLUMN: dict[str, dict[str, Any]] = {
    "FixedString": {"str": "abc"}, "Enum8": {"str": "a"}, "Enum16": {"str": "a"}, "Date": {"str": "2013-01-05"},
    "Date32": {"str": "2013-01-05"}, "DateTime": {"str": "2013-01-05 10:00:00"}, "Time": {"str": "10:00:00"},
    "DateTime64": {"str": "2013-01-05 10:00:00"}, "Time64": {"str": "10:00:00"}, "UUID": {"str": str(UUID(int=1))},
    "IPv4": {"str": "1.2.3.4"}, "IPv6": {"str": "::1"}, "Map": {"dict": {"a": 1}},
    "Tuple": {"dict": {"a": 1}, "tuple": (1,)},
    "JSON": {"dict": {"a": 1}}, "Point": {"tuple": (1.0, 2.0)}, "Polygon": {"list of tuples": [[(1.0, 2.0)]]},
    "MultiLineString": {"list of tuples": [[(1.0, 2.0)]]}, "MultiPolygon": {"list of tuples": [[[(1.0, 2.0)]]]},
}  # fmt: skip


@pytest.mark.parametrize("rule", rules("python-clickhouse"), ids=lambda rule: f"{rule.source}-{rule.target}"[:60])
def test_python_to_clickhouse(rule: Rule) -> None:
    for name in listed(rule.target or rule.source):
        base = family(name.removeprefix("any value for "))
        if base == "SimpleAggregateFunction":
            continue
        kind = get_from_name(TYPES.get(base, base))
        for given in listed(rule.source.partition(", and the texts")[0]) if rule.target else VALUES:
            value = FOR_COLUMN.get(base, {}).get(given, VALUES.get(given))
            if value is None:
                assert given in ("time", "tuple"), given  # tests/unit/test_exact_values.py has them
            elif rule.target:
                assert len(exact_column(kind, [value])) == 1
            else:
                with pytest.raises(RefusedValueError):
                    exact_column(kind, [value])
