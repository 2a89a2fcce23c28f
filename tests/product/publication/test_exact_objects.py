"""Values of plain objects: exact, or refused with key, column and value. On the real engine."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilake.clickhouse.cluster import Cluster, quote_text
from trilake.clickhouse.publication.objects_pull import ObjectsPull
from trilake.clickhouse.publication.pull import STRICT
from trilake.clickhouse.publication.values import NoConversionError, from_text, from_value
from trilake.endpoints import Endpoints

MANY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(endpoints: Endpoints) -> Iterator[Client]:
    with Cluster(endpoints.clickhouse) as cluster:
        yield cluster.client(cluster.shards[0])


def convert(client: Client, kind: str, texts: list[str | None], shown: str = "toString({})") -> list[Any]:
    """For each text: the value as text, or False if it is refused."""
    conversion = from_text("s", kind)
    listed = ", ".join("(NULL)" if text is None else f"({quote_text(text)})" for text in texts)
    rows = client.query(
        f"SELECT {conversion.exact}, {shown.format(conversion.value)} FROM values('s Nullable(String)', {listed})",
        settings={**STRICT, **ObjectsPull.settings},
    ).result_rows
    return [value if exact else False for exact, value in rows]


@pytest.mark.parametrize(
    ("kind", "exact", "refused"),
    [
        ("Int32", {"1": "1", "+1": "1", "-0": "0", "007": "7"}, ["2147483648", " 1", "1.0", "1e3", "", "abc"]),
        ("UInt64", {"18446744073709551615": "18446744073709551615"}, ["18446744073709551616", "-1"]),
        ("Int256", {str(-(2**255)): str(-(2**255))}, ["9" * 80, str(2**255)]),
        ("Decimal(10, 2)", {"1.5": "1.5", "1.2300": "1.23", "-.5": "-0.5"}, ["1.239", "123456789", "1e2", "."]),
        ("Float64", {"1e-308": "1e-308", "-0.0": "-0", "nan": "nan"}, ["1e400", "1e-400", "0x10", "1d", " 1"]),
        ("Bool", {"true": "true", "T": "true", "0": "false"}, ["yes", "2", ""]),
        ("Date", {"2013-01-05": "2013-01-05"}, ["2013-13-45", "2013-02-30", "2200-01-01", "1969-12-31", "2013-1-5"]),
        ("Date32", {"1900-01-01": "1900-01-01", "2299-12-31": "2299-12-31"}, ["2013-02-30", "2013-1-5"]),
        (
            "DateTime('UTC')",
            {"2013-01-05T10:00:00+05:30": "2013-01-05 04:30:00", "2106-02-07 06:28:15": "2106-02-07 06:28:15"},
            ["2106-02-07 06:28:16", "1969-12-31 23:59:59", "2013-01-05 99:00:00", "2013-01-05 10:00:00.5"],
        ),
        (
            "DateTime64(3, 'UTC')",
            {"2013-01-05 10:00:00.123000": "2013-01-05 10:00:00.123", "2013-01-05T10:00Z": "2013-01-05 10:00:00.000"},
            ["2013-01-05 10:00:00.1234", "2300-01-01 00:00:00", "2013-01-05 10:60:00", "2013-01-05T10:00:00+99"],
        ),
        (
            "DateTime64(6, 'Europe/Berlin')",
            {"2013-03-31T01:30:00Z": "2013-03-31 03:30:00.000000"},
            ["2013-03-31 01:30:00"],
        ),
        ("UUID", {"61F0C404-5cb3-11e7-907b-a6006ad3dba0": "61f0c404-5cb3-11e7-907b-a6006ad3dba0"}, ["61f0"]),
        ("IPv4", {"1.2.3.4": "1.2.3.4"}, ["01.2.3.4", "1.2.3"]),
        ("Enum8('a' = 1, 'b\\'c' = -2)", {"a": "a", "b'c": "b'c"}, ["1", "zz", ""]),
        ("FixedString(3)", {"abc": "abc"}, ["ab", "abcd"]),
        ("Time", {"10:00:00": "10:00:00"}, ["10:00", "x"]),
    ],
)  # fmt: skip
def test_a_text_becomes_exactly_its_value_or_is_refused(
    client: Client, kind: str, exact: dict[str, str], refused: list[str]
) -> None:
    for target in (kind, f"Nullable({kind})"):
        assert convert(client, target, [*exact, *refused]) == [*exact.values(), *[False] * len(refused)], target
        assert convert(client, target, [None]) == [None if target != kind else False]


@MANY
@given(st.lists(st.floats(width=64), min_size=1, max_size=200))
def test_a_float_is_the_nearest_one(client: Client, numbers: list[float]) -> None:
    finite = list(filter(math.isfinite, numbers)) or [0.1]
    bits = convert(client, "Float64", [repr(number) for number in finite], "reinterpretAsUInt64(assumeNotNull({}))")
    assert bits == [struct.unpack("<Q", struct.pack("<d", number))[0] for number in finite]


@MANY
@given(
    st.lists(
        st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**7), max_value=10**7), min_size=1
    )
)
def test_a_decimal_keeps_every_digit(client: Client, numbers: list[Decimal]) -> None:
    found = convert(client, "Decimal(9, 3)", [f"{number:f}" for number in numbers])
    fits = [abs(number) < 10**6 for number in numbers]
    assert [value is not False for value in found] == fits
    assert all(Decimal(value) == number for value, number in zip(found, numbers, strict=True) if value is not False)


@pytest.mark.parametrize(
    "kind", ["Array(Int32)", "Map(String, Int32)", "Tuple(a Int32)", "JSON", "Variant(Int8, String)"]
)
def test_csv_has_no_nested_values(kind: str) -> None:
    with pytest.raises(NoConversionError, match="CSV has no exact form"):
        from_text("s", kind)


@pytest.mark.parametrize(
    ("value", "have", "want", "exact"),
    [
        ("toFloat64(1.5)", "Float64", "Int32", False),
        ("toFloat64(2)", "Float64", "Int32", True),
        ("toInt64(300)", "Int64", "Nullable(Int8)", False),
        ("toInt64(3)", "Int64", "Nullable(Int8)", True),
        ("toDecimal64('1.75', 2)", "Decimal(18, 2)", "Int32", False),
        ("toDecimal64('1.75', 2)", "Decimal(18, 2)", "Nullable(Decimal(10, 1))", False),
        ("toDecimal64('1.50', 2)", "Decimal(18, 2)", "Nullable(Decimal(10, 1))", True),
        ("toFloat64(0.1)", "Float64", "Float32", False),
        ("toFloat64(nan)", "Float64", "Float32", True),
        ("toDateTime64('2013-01-01 00:00:00.123', 3, 'UTC')", "DateTime64(3, 'UTC')", "DateTime('UTC')", False),
        ("toDate32('1960-01-01')", "Date32", "Date", False),
        ("CAST(NULL, 'Nullable(Int32)')", "Nullable(Int32)", "Int32", False),
        ("CAST(NULL, 'Nullable(Int32)')", "Nullable(Int32)", "Nullable(Int32)", True),
        ("'1.239'", "String", "Decimal(5, 2)", False),
    ],
)
def test_a_value_of_parquet_is_exact_or_refused(client: Client, value: str, have: str, want: str, exact: bool) -> None:
    conversion = from_value("v", have, want)
    sql = f"SELECT {conversion.exact} FROM (SELECT materialize({value}) AS v)"
    assert bool(client.query(sql, settings={**STRICT, **ObjectsPull.settings}).result_rows[0][0]) is exact


@pytest.mark.parametrize(
    ("have", "want"), [("Date32", "DateTime('UTC')"), ("Bool", "Int8"), ("Array(Int32)", "Array(Int8)")]
)
def test_types_that_never_have_the_same_values_are_not_converted(have: str, want: str) -> None:
    with pytest.raises(NoConversionError, match="is not converted to"):
        from_value("v", have, want)
