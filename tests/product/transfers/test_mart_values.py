"""A value of ClickHouse arrives in a mart exactly, or it is refused by name and the mart stays as it is."""

from __future__ import annotations

import json
import math
import re
import secrets
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.marts import stage_result
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.postgres.connection import connect
from trilake.postgres.marts import merge_from, replace_from
from trilake.postgres.staging import ValueRefusedError
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator


class Mart:
    """A schema of the test's own, and the two engines."""

    def __init__(self, endpoints: Endpoints, client: Client) -> None:
        self.endpoints, self.client = endpoints, client
        self.schema = f"m_{secrets.token_hex(4)}"
        self.table = f"{self.schema}.t"

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def make(self, columns: str) -> None:
        self.run(f"DROP TABLE IF EXISTS {self.table}; CREATE TABLE {self.table} ({columns})")

    def replace(self, sql: str) -> int:
        with connect(self.endpoints.oltp) as connection:
            with connection.cursor() as cursor:
                columns, rows, sent = stage_result(self.client, cursor, self.table, sql)
            return replace_from(connection, self.table, columns, rows, sent)

    def merge(self, sql: str, key: tuple[str, ...] = ("k",)) -> tuple[int, int]:
        with connect(self.endpoints.oltp) as connection:
            with connection.cursor() as cursor:
                columns, rows, sent = stage_result(self.client, cursor, self.table, sql, key=key)
            return merge_from(connection, self.table, columns, rows, sent, key=key)


@pytest.fixture(scope="module")
def mart(endpoints: Endpoints) -> Iterator[Mart]:
    with Cluster(endpoints.clickhouse) as cluster:
        made = Mart(endpoints, cluster.client(cluster.shards[0]))
        made.run(f"CREATE SCHEMA {made.schema}")
        made.run(f"CREATE TYPE {made.schema}.color AS ENUM ('red', 'blue')")
        made.run(f"CREATE DOMAIN {made.schema}.positive AS int CHECK (VALUE > 0)")
        yield made
        made.run(f"DROP SCHEMA {made.schema} CASCADE")


# --- every type that has an equal


def text_of(value: str) -> str:
    return f"unhex('{value.encode().hex()}')"


def float_of(value: float) -> str:
    return f"reinterpretAsFloat64(toUInt64('{struct.unpack('<Q', struct.pack('<d', value))[0]}'))"


def moment_of(value: datetime) -> str:
    micros = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return f"fromUnixTimestamp64Micro(toInt64('{micros}'), 'UTC')"


def whole(kind: str, low: int, high: int) -> tuple[Any, Callable[[Any], str]]:
    values = st.sampled_from([low, high, 0]) | st.integers(low, high)
    return values, lambda value: f"CAST('{value}' AS {kind})"


TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
DAYS = st.dates(date(1900, 1, 1), date(2299, 12, 31))
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2261, 1, 1), timezones=st.just(UTC))
FLOATS = st.floats() | st.sampled_from([-0.0, 5e-324, 2.0**53 + 2, float("inf")])
DECIMALS = st.decimals(-(10**28), 10**28, allow_nan=False, places=9)
# ClickHouse's type, PostgreSQL's, the values, and how ClickHouse writes one.
EXACT: list[tuple[str, str, Any, Callable[[Any], str]]] = [
    ("Int8", "smallint", *whole("Int8", -128, 127)),
    ("UInt8", "smallint", *whole("UInt8", 0, 255)),
    ("Int32", "integer", *whole("Int32", -(2**31), 2**31 - 1)),
    ("UInt32", "bigint", *whole("UInt32", 0, 2**32 - 1)),
    ("Int64", "bigint", *whole("Int64", -(2**63), 2**63 - 1)),
    ("UInt64", "numeric(20)", *whole("UInt64", 0, 2**64 - 1)),
    ("Int256", "numeric", *whole("Int256", -(2**255), 2**255 - 1)),
    ("Decimal(38, 9)", "numeric(38, 9)", DECIMALS, lambda value: f"CAST('{value:f}' AS Decimal(38, 9))"),
    ("Float64", "double precision", FLOATS, float_of),
    ("Bool", "boolean", st.booleans(), lambda value: str(value).lower()),
    ("String", "text", TEXT, text_of),
    ("LowCardinality(String)", "text", TEXT, text_of),
    ("String", "bytea", st.binary(max_size=12), lambda value: f"unhex('{value.hex()}')"),
    ("FixedString(3)", "bytea", st.binary(min_size=3, max_size=3), lambda value: f"unhex('{value.hex()}')"),
    ("UUID", "uuid", st.uuids().map(str), lambda value: f"toUUID('{value}')"),
    ("IPv4", "inet", st.ip_addresses(v=4).map(str), lambda value: f"toIPv4('{value}')"),
    ("Date32", "date", DAYS, lambda value: f"toDate32('{value}')"),
    ("DateTime64(6, 'America/New_York')", "timestamptz", MOMENTS, moment_of),
    ("DateTime64(6, 'UTC')", "timestamp", MOMENTS.map(lambda value: value.replace(tzinfo=None)),
     lambda value: moment_of(value.replace(tzinfo=UTC))),
    ("Enum8('a' = 1, 'b\\'\\t' = 2)", "text", st.sampled_from(["a", "b'\t"]), text_of),
    ("Array(Nullable(String))", "text[]", st.lists(st.none() | TEXT, max_size=3),
     lambda value: "[" + ", ".join("NULL" if v is None else text_of(v) for v in value) + "]"),
    ("Array(Int64)", "bigint[]", st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
     lambda value: "[" + ", ".join(f"toInt64('{v}')" for v in value) + "]"),
    ("Map(String, Int64)", "jsonb", st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1), max_size=3),
     lambda value: "map(" + ", ".join(f"{text_of(k)}, toInt64('{v}')" for k, v in value.items()) + ")"),
    ("Tuple(n UInt64, t Nullable(String))", "jsonb", st.fixed_dictionaries({"n": st.integers(0, 2**64 - 1), "t": TEXT}),
     lambda value: f"tuple(toUInt64('{value['n']}'), {text_of(value['t'])})"),
]  # fmt: skip
_NO_NULL = ("Array", "Map", "Tuple")


def nullable(kind: str) -> str:
    if kind.startswith("LowCardinality("):
        return f"LowCardinality(Nullable({kind[len('LowCardinality(') :]})"
    return kind if kind.startswith(_NO_NULL) else f"Nullable({kind})"


ROWS = st.lists(
    st.tuples(*(values if kind.startswith(_NO_NULL) else st.none() | values for kind, _, values, _ in EXACT)),
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_each_value_of_each_type_with_an_equal_arrives_as_it_is(mart: Mart, rows: list[tuple[Any, ...]]) -> None:
    mart.make("n int, " + ", ".join(f"c{i} {target}" for i, (_, target, _, _) in enumerate(EXACT)))
    selects = [
        f"SELECT {n} AS n, "
        + ", ".join(
            f"CAST({'NULL' if value is None else literal(value)} AS {nullable(kind)}) AS c{i}"
            for i, ((kind, _, _, literal), value) in enumerate(zip(EXACT, row, strict=True))
        )
        for n, row in enumerate(rows)
    ]
    kinds = ", ".join(f"CAST({literal_of(i)} AS {nullable(kind)}) AS c{i}" for i, (kind, *_) in enumerate(EXACT))
    sql = " UNION ALL ".join([*selects, f"SELECT -1 AS n, {kinds} WHERE 0"])
    assert mart.replace(sql) == len(rows)
    found = mart.run(f"SELECT * FROM {mart.table} ORDER BY n")
    for n, (row, stored) in enumerate(zip(rows, found, strict=True)):
        assert [plain(value) for value in stored] == [n, *map(plain, row)]


def literal_of(number: int) -> str:
    kind = EXACT[number][0]
    return {"Arra": "[]", "Map(": "map()", "Tupl": "(0, NULL)"}.get(kind[:4], "NULL")


def plain(value: Any) -> Any:
    """A value that equals itself: NaN, and bytes as the driver gives them."""
    if isinstance(value, float):
        return struct.pack("<d", value) if not math.isnan(value) else "NaN"
    return bytes(value) if isinstance(value, memoryview) else value


# --- narrower marts: exact, or refused


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda v: (v, f"toInt64('{v}')")),
    st.sampled_from([0, 1, 32767, 32768, 2**24 + 1, 2**53, 2**53 + 1]).map(lambda v: (v, f"toInt64('{v}')")),
    st.decimals(-(10**6), 10**6, allow_nan=False, places=4).map(lambda v: (v, f"toDecimal64('{v:f}', 4)")),
    st.sampled_from(["1.5", "2.0000", "0.1", "99999.99", "1.005"]).map(
        lambda v: (Decimal(v), f"toDecimal64('{v}', 4)")
    ),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda v: (v, float_of(v))),
    st.sampled_from([1.5, 2.0, 0.1, 16777217.0, 1e300, 5e-324]).map(lambda v: (v, float_of(v))),
)
NARROW = ["smallint", "integer", "bigint", "numeric(7, 2)", "numeric", "real", "double precision", "text", "varchar(6)"]


@settings(
    max_examples=settings.default.max_examples * 2 // 3, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(number=NUMBERS, target=st.sampled_from(NARROW))
def test_a_number_is_the_same_in_a_narrower_mart_or_it_is_refused(
    mart: Mart, number: tuple[Any, str], target: str
) -> None:
    value, literal = number
    mart.make(f"v {target}")
    refused = ""
    try:
        mart.replace(f"SELECT {literal} AS v")
    except ValueRefusedError as e:
        refused = str(e)
    if refused:
        assert re.search(r"column v .* in row 1: ", refused)
        assert mart.run(f"SELECT count(*) FROM {mart.table}") == [(0,)]
        return
    # The shortest text of a real is not its exact value. A Decimal is compared with that text.
    shown = "v::float8" if isinstance(value, float) else "v"
    stored = mart.run(f"SELECT ({shown})::text FROM {mart.table}")[0][0]
    if isinstance(value, float):
        assert float(stored) == value
    elif target in ("real", "double precision") and isinstance(value, Decimal):
        assert Decimal(stored) == value  # the nearest float, which is written with the same digits
    else:
        assert Fraction(stored) == Fraction(value)
        assert target != "real" or abs(value) <= 2**24


@pytest.mark.parametrize(
    ("target", "expression", "stored"),
    [
        ("numeric(3, 1)", "toDecimal64('12.345', 3)", None),
        ("integer", "toDecimal32('2.00', 2)", "2"),
        ("numeric(3, 1)[]", "[toDecimal32('1.25', 2)]", None),
        ("varchar(2)", "'ab   '", None),
        ("varchar(2)[]", "['abc']", None),
        ("char(3)", "'ab '", None),
        ("char(3)", "'ab'", "ab"),
        ("name", "repeat('x', 64)", None),
        ("real", "toFloat64(16777217)", None),
        ("double precision", "toFloat32(0.1)", "0.10000000149011612"),
        ("numeric", "toFloat64(0.1)", "0.1"),
        ("numeric", "-0.0", None),
        ("numeric(5, 1)", "inf", None),
        ("numeric", "nan", "NaN"),
        ("timestamp(0)", "toDateTime64('2013-01-05 10:00:00.5', 1, 'UTC')", None),
        ("timestamptz", "toDateTime64('2013-01-05 10:00:00.123456789', 9, 'UTC')", None),
        ("timestamptz", "toDateTime64('2013-01-05 10:00:00.123456000', 9, 'UTC')", "2013-01-05 10:00:00.123456+00"),
        ("timestamptz", "toDateTime('2013-07-01 12:00:00', 'America/New_York')", "2013-07-01 16:00:00+00"),
        ("timestamptz", "toDate('2013-01-05')", "2013-01-05 00:00:00+00"),
        ("time", "CAST('12:34:56' AS Time)", "12:34:56"),
        ("time", "CAST('-12:34:56' AS Time)", None),
        ("text", "'a\\0b'", None),
        ("text", "unhex('61ff')", None),
        ("text", "toFixedString('ab', 2)", "ab"),
        ("text", "toFixedString('ab', 3)", None),
        ("text[]", "['a\\0']", None),
        ("text[]", "['a\"b\\\\c,{}', 'NULL', '']", '{"a\\"b\\\\c,{}","NULL",""}'),
        ("int[]", "[[1, 2], [3, 4]]", "{{1,2},{3,4}}"),
        ("int[]", "[[1], [2, 3]]", None),
        ("int[]", "CAST([[], []] AS Array(Array(Int32)))", None),
        ("inet", "toIPv6('2001:db8::1')", "2001:db8::1/128"),
        ("uuid[]", "[toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')]", "{61f0c404-5cb3-11e7-907b-a6006ad3dba0}"),
        ("jsonb", "CAST('{\"a\": {\"b\": 1}}' AS JSON)", '{"a": {"b": 1}}'),
        ("jsonb", "[tuple(1, 'a')]", '[[1, "a"]]'),
        ("jsonb", "tuple(toDateTime('2013-07-01 12:00:00', 'America/New_York'))", '["2013-07-01 16:00:00"]'),
        ("jsonb", "tuple(nan, -inf)", '["nan", "-inf"]'),
        ("jsonb", "CAST(([1, 1], ['a', 'b']) AS Map(Int8, String))", None),
        ("jsonb", "tuple(-0.0)", None),
        ("jsonb", "'{\"a\": 1, \"a\": 2}'", None),
        ("jsonb", "'{\"a\": 1.10}'", '{"a": 1.10}'),
        ("{schema}.color", "'red'", "red"),
        ("{schema}.color", "'green'", None),
        ("{schema}.positive", "5", "5"),
        ("{schema}.positive", "-1", None),
        ("integer", "'7'", "7"),
        ("integer", "' 7'", None),
        ("boolean", "'true'", "true"),
        ("date", "'2013-01-05'", "2013-01-05"),
        ("date", "'today'", None),
        ("integer NOT NULL", "CAST(NULL AS Nullable(Int32))", None),
    ],
)  # fmt: skip
def test_a_value_is_stored_as_it_is_or_refused_by_its_name(
    mart: Mart, target: str, expression: str, stored: str | None
) -> None:
    mart.make(f"k int PRIMARY KEY, v {target.format(schema=mart.schema)}")
    if stored is None:
        with pytest.raises(ValueRefusedError, match=r"column v .*in the row with k = 7.*Nothing was written"):
            mart.merge(f"SELECT 7 AS k, {expression} AS v")
        assert mart.run(f"SELECT count(*) FROM {mart.table}") == [(0,)]
    else:
        mart.merge(f"SELECT 7 AS k, {expression} AS v")
        assert mart.run(f"SELECT v::text FROM {mart.table}") == [(stored,)]


@pytest.mark.parametrize(
    ("target", "expression"),
    [
        ("date", "toDateTime('2013-01-05 23:59:59', 'UTC')"),
        ("timestamp", "toDateTime('2013-07-01 12:00:00', 'America/New_York')"),
        ("integer", "true"),
        ("boolean", "1"),
        ("text", "(1, 'a')"),
        ("text", "map('a', 1)"),
        ("text", "toIntervalDay(1)"),
        ("text", "sumState(1)"),
        ("money", "toDecimal32('1.25', 2)"),
    ],
)
def test_types_without_an_equal_are_refused_before_the_query_runs(mart: Mart, target: str, expression: str) -> None:
    mart.make(f"k int PRIMARY KEY, v {target}")
    with pytest.raises(ConfigurationError, match=r"column v is .* in the rows and .* in the table"):
        # the query would fail if it ran
        mart.merge(f"SELECT 1 AS k, {expression} AS v HAVING throwIf(count() > 0) = 0")


def test_the_row_and_the_number_of_such_rows_are_told(mart: Mart) -> None:
    mart.make("v smallint")
    with pytest.raises(ValueRefusedError, match=r"cannot hold '40003' .* in row 4: .* 6997 rows have such values"):
        mart.replace("SELECT if(number < 3, number, number + 40000) AS v FROM numbers(7000) ORDER BY number")


# --- tables as people declare them


@pytest.mark.parametrize(
    ("columns", "sql"),
    [
        ("id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k int NOT NULL UNIQUE, v text", "SELECT 1 AS k, 'a' AS v"),
        ("id bigserial, k int PRIMARY KEY, v text", "SELECT 1 AS k, 'a' AS v"),
        ("k int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED NOT NULL", "SELECT 1 AS k, 5 AS v"),
        ("k int PRIMARY KEY, v text, at timestamptz NOT NULL DEFAULT now()", "SELECT 1 AS k, 'a' AS v"),
        ('k int PRIMARY KEY, "share %" float8, "Ünï""quoted`" text, "%s" int',
         "SELECT 1 AS k, 0.5 AS `share %`, 'x' AS `Ünï\"quoted\\``, 1 AS `%s`"),
        ("k int PRIMARY KEY, v text", "SELECT 1 AS k, 'a;b%' AS v; -- done"),
        ("k int PRIMARY KEY, v text", "WITH 'LIKE %' AS p SELECT 1 AS k, p AS v /* ; */"),
    ],
)  # fmt: skip
def test_a_table_as_people_declare_it_takes_rows(mart: Mart, columns: str, sql: str) -> None:
    mart.make(columns)
    assert mart.merge(sql) == (1, 0)
    assert mart.merge(sql) == (0, 1)
    assert mart.run(f"SELECT count(*) FROM {mart.table}") == [(1,)]


@pytest.mark.parametrize(
    ("columns", "sql", "says"),
    [
        ("k int PRIMARY KEY, w text NOT NULL", "SELECT 1 AS k", "column w is NOT NULL without a default"),
        ("k int PRIMARY KEY", "SELECT 1 AS k, 2 AS more", "the table has no column more"),
        ("k int PRIMARY KEY, v text", "SELECT 1 AS k, upper('a')", r"the table has no column upper\('a'\)"),
        ("k int PRIMARY KEY, v text", "SELECT 1 AS k, 'a' AS v, 'a' AS v", "column v is given twice"),
        ("k int PRIMARY KEY, w int GENERATED ALWAYS AS (k * 2) STORED", "SELECT 1 AS k, 2 AS w", "computed by"),
        ("k int PRIMARY KEY, i int GENERATED ALWAYS AS IDENTITY", "SELECT 1 AS k, 2 AS i", "ALWAYS AS IDENTITY"),
        ("k int PRIMARY KEY", "SELECT 1 AS k FORMAT JSONEachRow", "ends in FORMAT JSONEachRow"),
        ("k int PRIMARY KEY", "SELECT 1 AS k; SELECT 2 AS k", "2 statements"),
        ("k int PRIMARY KEY", "INSERT INTO x VALUES (1)", "returns no rows"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_table_is_refused_by_name(mart: Mart, columns: str, sql: str, says: str) -> None:
    mart.make(columns)
    with pytest.raises(ConfigurationError, match=says):
        mart.merge(sql)


def test_a_mart_that_is_not_there_is_named(mart: Mart) -> None:
    mart.run(f"DROP TABLE IF EXISTS {mart.table}")
    with pytest.raises(ConfigurationError, match=f"has no table {mart.table}"):
        mart.merge("SELECT 1 AS k")


def test_the_operator_replaces_a_window_by_a_column_with_a_percent_sign(
    platform: Platform, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    mart.make('"day %" timestamptz NOT NULL, v jsonb')
    task = make(
        ClickHouseToPostgresOperator,
        sql="SELECT toDateTime64('2013-01-31 23:59:59.9', 3, 'UTC') AS `day %`, map('like', 'a%') AS v",
        table=mart.table,
        date="day %",
        data_set=DataSet("months", grain="month", date="d", shard_by="k"),
        start="2013-01",
    )
    assert task.execute(context())["rows"] == 1
    assert task.execute(context())["rows"] == 1
    found = mart.run(f"SELECT * FROM {mart.table}")
    assert found == [(datetime(2013, 1, 31, 23, 59, 59, 900000, tzinfo=UTC), json.loads('{"like": "a%"}'))]
