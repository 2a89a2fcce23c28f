"""Python's values for columns of ClickHouse: each is written exactly, or refused with its place. Without a server."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.datatypes.registry import get_from_name
from hypothesis import given
from hypothesis import strategies as st

from trilake.clickhouse.blocks import RefusedColumnError, Target, columns_of_arrow, columns_of_frame, columns_of_rows
from trilake.clickhouse.exact import RefusedValueError, exact_column
from trilake.clickhouse.tab_separated import columns_of_lines

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
NOON_S = 1_372_680_000
SOME_UUID = UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0")


def exact(kind: str, *values: Any) -> Sequence[Any]:
    return exact_column(get_from_name(kind), values)


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        ("Int8", -128, -128),
        ("UInt64", (1 << 64) - 1, (1 << 64) - 1),
        ("Int256", -(1 << 255), -(1 << 255)),
        ("Int32", True, 1),
        ("Int32", 5.0, 5),
        ("Int32", Decimal("5.00"), 5),
        ("Int32", "-5", -5),
        ("Int32", np.int64(5), 5),
        ("Nullable(Int32)", None, None),
        ("Nullable(Int32)", pd.NA, None),
        ("Float64", 5, 5.0),
        ("Float64", Decimal("0.1"), 0.1),
        ("Float64", "1e-3", 1e-3),
        ("Float64", -0.0, -0.0),
        ("Float32", 0.1, 0.1),
        ("Float32", 1.5, 1.5),
        ("Float32", math.inf, math.inf),
        ("BFloat16", 1.5, 1.5),
        ("Decimal(10, 2)", Decimal("99999999.99"), Decimal("99999999.99")),
        ("Decimal(10, 2)", 1.25, Decimal("1.25")),
        ("Decimal(10, 2)", "1.2500", Decimal("1.25")),
        ("Decimal(76, 10)", Decimal("1" * 66 + "." + "1" * 10), Decimal("1" * 66 + "." + "1" * 10)),
        ("Bool", "false", False),
        ("Bool", 1, True),
        ("Bool", np.bool_(True), True),
        ("String", b"\xff", b"\xff"),
        ("String", SOME_UUID, str(SOME_UUID)),
        ("FixedString(3)", "abc", b"abc"),
        ("FixedString(2)", "é", "é".encode()),
        ("Enum8('a' = 1, 'b' = 2)", "b", "b"),
        ("Enum8('a' = 1, 'b' = 2)", 2, "b"),
        ("Enum8('it\\'s' = 1)", "it's", "it's"),
        ("Date", date(2149, 6, 6), 65_535),
        ("Date", "2013-01-01", 15_706),
        ("Date", datetime(2013, 1, 1), 15_706),
        ("Date", np.datetime64("2013-01-01"), 15_706),
        ("Date32", date(1, 1, 1), -719_162),
        ("DateTime('UTC')", NOON, NOON_S),
        ("DateTime", NOON.replace(tzinfo=None), NOON_S),
        ("DateTime('America/New_York')", NOON, NOON_S),
        ("DateTime('UTC')", "2013-07-01 12:00:00", NOON_S),
        ("DateTime('America/New_York')", "2013-07-01T08:00:00-04:00", NOON_S),
        ("DateTime64(3, 'UTC')", NOON.replace(microsecond=1_000), NOON_S * 1_000 + 1),
        ("DateTime64(9, 'UTC')", pd.Timestamp("2013-07-01 12:00:00.000000001"), NOON_S * 10**9 + 1),
        ("DateTime64(9, 'UTC')", "2013-07-01 12:00:00.000000001Z", NOON_S * 10**9 + 1),
        ("DateTime64(6, 'UTC')", datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC), -500_000),
        ("DateTime64(6, 'UTC')", datetime(9999, 12, 31, tzinfo=UTC), 253_402_214_400_000_000),
        ("Time", time(1, 2, 3), 3723),
        ("Time64(6)", timedelta(microseconds=-1), -1),
        ("Time64(9)", "-01:00:00.000000001", -3_600_000_000_001),
        ("UUID", str(SOME_UUID).upper(), SOME_UUID),
        ("IPv4", "10.0.0.1", IPv4Address("10.0.0.1")),
        ("IPv6", "10.0.0.1", IPv6Address("::ffff:10.0.0.1")),
        ("Array(Nullable(Int8))", (1, None), [1, None]),
        ("Array(Array(UInt8))", [[1], []], [[1], []]),
        ("Map(String, Float64)", {"a": 1}, {"a": 1.0}),
        ("Tuple(Int8, String)", [1, "x"], (1, "x")),
        ("Tuple(a Int8, b String)", {"b": "x", "a": 1}, (1, "x")),
        ("Nested(a Int8, b String)", [{"a": 1, "b": "x"}], [{"a": 1, "b": "x"}]),
        ("Point", (1, 2.5), (1.0, 2.5)),
        ("JSON", '{"a": [1, null, 1.5]}', {"a": [1, None, 1.5]}),
        ("LowCardinality(Nullable(String))", None, None),
        ("SimpleAggregateFunction(max, UInt8)", 5, 5),
    ],
)
def test_a_value_that_the_column_holds_is_written_as_it_is(kind: str, value: Any, written: Any) -> None:
    (found,) = exact(kind, value)
    assert (type(found), repr(found)) == (type(written), repr(written))


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("Int8", 300, "not from -128 to 127"),
        ("UInt8", -1, "not from 0 to 255"),
        ("Int128", 1 << 127, "not from"),
        ("Int32", 5.7, "not (an? )?integer"),
        ("Int32", math.nan, "not (an? )?integer"),
        ("Int32", "5.7", "not (an? )?integer"),
        ("Int32", Decimal("5.7"), "not (an? )?integer"),
        ("Int32", "", "not (an? )?integer"),
        ("Int32", None, "cannot hold NULL"),
        ("Int32", [1], "not (an? )?integer"),
        ("Float64", (1 << 53) + 1, "no such integer"),
        ("Float64", Decimal("0.12345678901234567890"), "more digits"),
        ("Float64", "1e400", "out of the range"),
        ("Float64", "1e-400", "out of the range"),
        ("Float64", True, "not (an? )?number"),
        ("Float32", 16_777_217, "fewer digits"),
        ("Float32", 1e300, "smaller range"),
        ("LowCardinality(Float64)", -0.0, "one value"),
        ("BFloat16", 1.1, "fewer digits"),
        ("Decimal(10, 2)", Decimal("1.239"), "2 behind it"),
        ("Decimal(10, 2)", Decimal("123456789.5"), "8 digits before"),
        ("Decimal(10, 2)", Decimal("NaN"), "no such value"),
        ("Decimal(10, 2)", 1.239, "2 behind it"),
        ("Decimal(10, 2)", "1e999", "8 digits before"),
        ("Bool", 2, "neither true nor false"),
        ("Bool", "no", "neither true nor false"),
        ("Bool", 1.0, "neither true nor false"),
        ("String", 5, "int is not text"),
        ("String", {"a": 1}, "not (an? )?text"),
        ("String", "\ud800", "surrogate"),
        ("FixedString(3)", "ab", "2 bytes and not 3"),
        ("FixedString(3)", b"abcd", "4 bytes and not 3"),
        ("Enum8('a' = 1, 'b' = 2)", "zzz", "no such name; it has a, b"),
        ("Enum8('a' = 1, 'b' = 2)", 7, "no such name"),
        ("Date", date(1950, 1, 1), "not from 1970-01-01 to 2149-06-06"),
        ("Date", date(2200, 1, 1), "not from"),
        ("Date", datetime(2013, 1, 1, 23, 59), "time of day"),
        ("Date", "2013-02-30", "such a value"),
        ("Date", "01/02/2013", "not (an? )?date"),
        ("DateTime('UTC')", datetime(1950, 1, 1, tzinfo=UTC), "years 1970 to 2106"),
        ("DateTime('UTC')", NOON.replace(microsecond=1), "0 digits of a second"),
        ("DateTime('America/New_York')", NOON.replace(tzinfo=None), "no time zone, and the column's zone is America"),
        ("DateTime64(3, 'UTC')", NOON.replace(microsecond=1), "3 digits of a second"),
        ("DateTime64(9, 'UTC')", datetime(2300, 1, 1, tzinfo=UTC), "64 bits"),
        ("DateTime64(6, 'UTC')", "2013-01-01 25:00:00", "such a value"),
        ("DateTime64(6, 'UTC')", date(2013, 1, 1), "no time of day"),
        ("DateTime('UTC')", 1.5, "not (an? )?moment"),
        ("Time", timedelta(hours=1000), "999:59:59"),
        ("Time", time(1, tzinfo=UTC), "without a zone"),
        ("UUID", "nonsense", "not (an? )?UUID"),
        ("IPv4", "300.1.1.1", "not (an? )?IPv4"),
        ("IPv4", "::1", "not (an? )?IPv4"),
        ("IPv6", "fe80::1%eth0", "without a zone"),
        ("Array(Int8)", "abc", "not (an? )?array"),
        ("Array(Int8)", [1, None], "cannot hold NULL"),
        ("Array(Int8)", None, "cannot hold NULL"),
        ("Array(Array(UInt8))", [[1], [256]], "not from 0 to 255"),
        ("Map(String, Int8)", {"a": 200}, "not from"),
        ("Map(String, Int8)", {"1": 1, b"1": 2}, None),
        ("Map(Int8, Int8)", {"1": 1, 1: 2}, "occurs twice"),
        ("Tuple(Int8, String)", (1,), "1 elements and not 2"),
        ("Tuple(a Int8, b String)", {"a": 1}, "not the elements a, b"),
        ("JSON", '{"a": 123456789012345678901234}', "does not hold"),
        ("JSON", {"a.b": 1}, "has a dot"),
        ("JSON", "[1]", "not (an? )?JSON object"),
        ("Variant(Int8, String)", 1, "cannot be checked"),
        ("Dynamic", 1, "cannot be checked"),
    ],
)  # fmt: skip
def test_a_value_that_the_column_does_not_hold_is_refused_with_its_place(
    kind: str, value: Any, reason: str | None
) -> None:
    good = {"Int8": 1, "Int32": 1}.get(kind)
    values = (value,) if good is None else (good, good, value)
    if reason is None:  # text and bytes are two keys for Python, and one for ClickHouse
        reason = "occurs twice"
    with pytest.raises(RefusedValueError, match=reason) as caught:
        exact(kind, *values)
    assert caught.value.position == len(values) - 1


INTEGERS = [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64, 128, 256)]


@given(st.sampled_from(INTEGERS), st.lists(st.integers(-(1 << 256), 1 << 256) | st.integers(-300, 300), min_size=1))
def test_integers_are_in_range_or_the_first_other_is_named(kind: str, values: list[int]) -> None:
    bits = int(kind.split("Int")[1])
    limits = range(1 << bits) if kind[0] == "U" else range(-(1 << bits - 1), 1 << bits - 1)
    wrong = [position for position, value in enumerate(values) if not limits.start <= value < limits.stop]
    if not wrong:
        assert list(exact(kind, *values)) == values
        return
    with pytest.raises(RefusedValueError) as caught:
        exact(kind, *values)
    assert caught.value.position == wrong[0]


@given(st.integers(1, 76), st.data())
def test_decimals_keep_each_digit_or_are_refused(digits: int, data: st.DataObject) -> None:
    scale = data.draw(st.integers(0, digits))
    value = data.draw(st.decimals(allow_nan=False, allow_infinity=False, places=data.draw(st.integers(0, 40))))
    try:
        (written,) = exact(f"Decimal({digits}, {scale})", value)
    except RefusedValueError:
        shifted = Fraction(value) * 10**scale  # a Decimal would round to 28 digits
        assert shifted.denominator != 1 or abs(shifted) >= 10**digits
    else:
        assert written == value


@given(st.floats(width=64))
def test_a_float32_takes_its_own_values_and_their_texts(value: float) -> None:
    try:
        (written,) = exact("Float32", value)
    except RefusedValueError:
        with np.errstate(over="ignore"):
            assert float(np.float32(value)) != value
    else:
        assert repr(written) == repr(value)
        narrow = struct.unpack("<f", struct.pack("<f", written))[0]
        assert math.isnan(value) or narrow == value or float(str(np.float32(value))) == value


@given(
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5)), timezone(timedelta(minutes=345))]),
                 min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)),
    st.integers(0, 9),
)  # fmt: skip
def test_a_moment_is_the_same_in_every_zone(value: datetime, digits: int) -> None:
    micros = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    expected = micros * 10**digits
    try:
        (ticks,) = exact(f"DateTime64({digits}, 'Asia/Tokyo')", value)
    except RefusedValueError:
        assert expected % 1_000_000 or not -(1 << 63) <= expected // 1_000_000 < 1 << 63
    else:
        assert ticks * 1_000_000 == expected


# --- blocks


def target(**kinds: str) -> Target:
    return Target(tuple(kinds), tuple(map(get_from_name, kinds.values())))


def test_the_first_wrong_row_of_a_block_is_named() -> None:
    with pytest.raises(RefusedColumnError, match="not from -128 to 127") as caught:
        columns_of_rows(target(a="String", b="Array(Int8)"), [("x", [1]), ("y", [1, 2]), ("z", [1, 300])])
    assert (caught.value.column, caught.value.row, caught.value.shown) == ("b", 2, "300")
    with pytest.raises(RefusedColumnError, match="1 values and not 2") as caught:
        columns_of_rows(target(a="String", b="Int8"), [("x", 1), ("y",)])
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("series", "kind", "written"),
    [
        (pd.Series([1, 2]), "UInt8", [1, 2]),
        (pd.Series([1, 2]), "Nullable(Int64)", [1, 2]),
        (pd.Series([1.0, None]), "Nullable(Int8)", [1, None]),
        (pd.Series([1.5, None]), "Nullable(Float64)", [1.5, None]),
        (pd.Series([1.5, 2.5]), "Float32", [1.5, 2.5]),
        (pd.Series([1, None], dtype="Int64"), "Nullable(UInt8)", [1, None]),
        (pd.Series(["a", None]), "Nullable(String)", ["a", None]),
        (pd.Series([True, False]), "Bool", [True, False]),
        (pd.to_datetime(pd.Series(["2013-07-01 12:00", None])), "Nullable(DateTime64(6))", [NOON_S * 10**6, None]),
        (pd.to_datetime(pd.Series(["2013-07-01 12:00"])), "Date", None),
        (pd.to_datetime(pd.Series(["2013-07-01"])), "Date", [15_887]),
        (pd.to_datetime(pd.Series(["2013-07-01 12:00"])), "DateTime('Asia/Tokyo')", None),
        (pd.to_datetime(pd.Series(["2013-07-01 08:00-04:00"])), "DateTime('Asia/Tokyo')", [NOON_S]),
        (pd.to_datetime(pd.Series(["2013-07-01 12:00:00.000001"])), "DateTime64(3)", None),
        (pd.Series([300]), "UInt8", None),
        (pd.Series([1.5]), "Int8", None),
        (pd.Series(["a", None]), "String", None),
        (pd.Series([None], dtype="Int64"), "Int8", None),
    ],
)
def test_a_column_of_a_frame_is_written_exactly_or_refused(
    series: pd.Series, kind: str, written: list[Any] | None
) -> None:
    if written is None:
        with pytest.raises(RefusedColumnError):
            columns_of_frame(target(v=kind), pd.DataFrame({"v": series}))
        return
    (found,) = columns_of_frame(target(v=kind), pd.DataFrame({"v": series}))
    assert list(found) == written


def test_nan_is_a_number_in_a_column_without_null() -> None:
    (found,) = columns_of_frame(target(v="Float64"), pd.DataFrame({"v": [1.5, math.nan]}))
    assert math.isnan(found[1])


@pytest.mark.parametrize(
    ("array", "kind", "written"),
    [
        (pa.array([1, 2], pa.int8()), "Int8", ...),
        (pa.array([1, 2], pa.int64()), "Int8", [1, 2]),
        (pa.array([1, 300], pa.int64()), "Int8", None),
        (pa.array([1, None], pa.int8()), "Int8", None),
        (pa.array(["a", None]), "LowCardinality(Nullable(String))", ...),
        (pa.array(["a"]), "Enum8('a' = 1)", ["a"]),
        (pa.array([[1], [2, None]], pa.list_(pa.int8())), "Array(Int8)", None),
        (pa.array([[1], [2, None]], pa.list_(pa.int8())), "Array(Nullable(Int8))", ...),
        (pa.array([0], pa.timestamp("us", "UTC")), "DateTime64(6, 'Asia/Tokyo')", ...),
        (pa.array([0], pa.timestamp("us")), "DateTime64(6, 'Asia/Tokyo')", None),
        (pa.array([1], pa.timestamp("ns", "UTC")), "DateTime64(6)", None),
        (pa.array([1_000], pa.timestamp("ns", "UTC")), "DateTime64(6)", [1]),
        (pa.array([0], pa.timestamp("s")), "DateTime", [0]),
        (pa.array([date(1950, 1, 1)]), "Date", None),
        (pa.array([date(1950, 1, 1)]), "Date32", ...),
        (pa.array([Decimal("1.20")]), "Decimal(10, 2)", ...),
        (pa.array([Decimal("1.239")]), "Decimal(10, 2)", None),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())), "Map(String, Int8)", [{"a": 1}]),
        (pa.array([{"a": 1}]), "Tuple(a Int8)", [(1,)]),
        (pa.array([b"ab"], pa.binary(2)), "FixedString(2)", ...),
        (pa.array([b"ab"], pa.binary(2)), "FixedString(3)", None),
    ],
)
def test_a_column_of_arrow_goes_in_as_it_is_or_exactly_or_not_at_all(array: Any, kind: str, written: Any) -> None:
    table = pa.table({"v": array})
    if written is None:
        with pytest.raises(RefusedColumnError):
            columns_of_arrow(target(v=kind), table)
    elif written is ...:
        assert columns_of_arrow(target(v=kind), table) is None
    else:
        found = columns_of_arrow(target(v=kind), table)
        assert found is not None
        assert list(found[0]) == written


# --- lines of TabSeparated


def test_lines_are_read_as_the_server_writes_them() -> None:
    kinds = {
        "s": "String",
        "a": "Array(Nullable(String))",
        "m": "Map(String, Array(Int8))",
        "t": "Tuple(Int8, String)",
        "n": "Nullable(Int32)",
        "b": "Bool",
        "j": "JSON",
        "d": "DateTime64(3, 'Asia/Tokyo')",
    }
    lines = [
        b"a\\tb\\n'c\\\\d\t['a\\tb','it\\'s',NULL]\t{'k':[1,2],'':[]}\t(1,'x, ]')\t\\N\ttrue\t"
        b'{"a":"x\\\\ny"}\t1970-01-01T00:00:00.500Z\n',
        b"\xff\t[]\t{}\t(0,'')\t-5\tfalse\t{}\t1970-01-01T00:00:00Z",
    ]
    columns = columns_of_lines(target(**kinds), lines)
    assert list(map(list, columns)) == [
        [b"a\tb\n'c\\d", b"\xff"],
        [["a\tb", "it's", None], []],
        [{"k": [1, 2], "": []}, {}],
        [(1, "x, ]"), (0, "")],
        [None, -5],
        [True, False],
        [{"a": "x\ny"}, {}],
        [500, 0],
    ]


@pytest.mark.parametrize(
    ("kind", "field", "reason"),
    [
        ("Int8", b"300", "not from"),
        ("Int8", b"1\r", "carriage return"),
        ("Int8", b"1\t2", "2 values and not 1"),
        ("Int8", b"\\N", "cannot hold NULL"),
        ("Decimal(10, 2)", b"1.239", "2 behind it"),
        ("Date", b"2013-13-45", "such a value"),
        ("DateTime('Asia/Tokyo')", b"2013-01-01 00:00:00", "no time zone"),
        ("Array(Int8)", b"[300]", "not from"),
        ("Array(Int8)", b"[1", "no closing bracket|not an array"),
        ("Array(Int8)", b"[1]]", "not (an? )?array|follows"),
        ("Array(Int8)", b"", "not (an? )?array"),
        ("Map(String, Int8)", b"{'a'}", "no value"),
        ("Enum8('a' = 1)", b"\xff", "no such name"),
    ],
)
def test_a_line_with_another_value_is_refused(kind: str, field: bytes, reason: str) -> None:
    with pytest.raises(RefusedColumnError, match=reason) as caught:
        columns_of_lines(target(v=kind), [field])
    assert caught.value.row == 0
