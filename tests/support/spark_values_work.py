"""Values of every type between Spark, ClickHouse and PostgreSQL, in a driver's session: see `spark_session.py`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from support.any_values import BYTES, SCALARS, Kind, array, bits_of, float_of, nullable, plain, rows_sql
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.clickhouse.export import Source
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.postgres.connection import connect
from trilake.spark.clickhouse import ClickHouseReader, _spark_type
from trilake.spark.postgres import write_postgres

_EPOCH = datetime(1970, 1, 1)


def readable(kind: Kind) -> bool:
    try:
        _spark_type("c", kind.name)
    except ConfigurationError:
        return False
    return True


def in_spark(kind: Kind, column: str) -> str:
    """An expression that Python reads as it is: bytes of a text, and microseconds of a moment."""
    if kind.family == "Array":
        return f"transform({column}, e -> {in_spark(kind.parts[0], 'e')})"
    if kind.family == "String":
        return f"cast({column} AS binary)"
    return f"unix_micros({column})" if kind.family in ("DateTime", "DateTime64") else column


def of_spark(kind: Kind, value: Any) -> Any:
    if value is None:
        return None
    if kind.family == "Array":
        return [of_spark(kind.parts[0], item) for item in value]
    if kind.family in ("DateTime", "DateTime64"):
        found, rest = divmod(value, 10 ** (6 - kind.digits))
        return found if rest == 0 else f"{value} us"
    return int(value) if kind.family == "UInt64" else plain(kind, value)


def read_clickhouse(spark: Any, seed: str) -> Any:
    """Columns of all types that a job can read: how many there were, and those that differ."""
    chance = Random(int(seed))
    known = [kind for kind in (*SCALARS, BYTES) if readable(kind)]
    kinds = [nullable(kind) if chance.random() < 0.5 else kind for kind in known]
    kinds += [array(nullable(kind) if chance.random() < 0.5 else kind) for kind in known]
    kinds += [array(array(chance.choice(known))) for _ in range(5)]
    rows = [[kind.value(chance) for kind in kinds] for _ in range(4)]
    table = f"values_{secrets.token_hex(4)}"
    columns = "".join(f", c{i} {kind.name}" for i, kind in enumerate(kinds))
    with Cluster(Endpoints.from_environment().clickhouse) as cluster:
        make = f"CREATE TABLE {{shard}}.{table} (n UInt32{columns}) ENGINE = MergeTree ORDER BY n"
        cluster.every_shard(Statement(make))
        try:
            client, database = cluster.client(cluster.shards[0]), cluster.shards[0].database
            for n, row in enumerate(rows):
                sql = rows_sql(kinds, [row]).replace("toUInt32(0) AS n", f"toUInt32({n}) AS n")
                client.command(f"INSERT INTO {database}.{table} {sql}", settings={"max_query_size": 10**8})
            with ClickHouseReader(Endpoints.from_environment()) as reader:
                frame = reader.read_table(spark, Source(f"SELECT * FROM {{shard}}.{table}"))
                shown = [f"{in_spark(kind, f'c{i}')} AS c{i}" for i, kind in enumerate(kinds)]
                found = frame.orderBy("n").selectExpr(*shown).collect()
        finally:
            cluster.every_shard(Statement(f"DROP TABLE {{shard}}.{table} SYNC"))
    wrong = [
        [kind.name, repr(values), repr(expected)]
        for i, kind in enumerate(kinds)
        if (values := [of_spark(kind, row[i]) for row in found]) != (expected := [row[i] for row in rows])
    ]
    return {"columns": len(kinds), "wrong": wrong}


@dataclass(frozen=True)
class Pair:
    """A type of Spark and one of PostgreSQL.

    :param made: the value as `createDataFrame` takes it, and `sql`, what makes the type of it.
    :param held: the value as PostgreSQL gives it back.
    """

    spark: str
    postgres: str
    draw: Callable[[Random], Any]
    given: str = ""
    sql: str = "{}"
    held: Callable[[Any], Any] = lambda value: value


def _whole(spark: str, postgres: str, bits: int, held: Callable[[Any], Any] = lambda value: value) -> Pair:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return Pair(spark, postgres, lambda c: c.choice([low, high, 0, c.randint(low, high)]), held=held)


def _floating(spark: str, postgres: str, bits: int) -> Pair:
    edges = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), float_of(1, bits), 0.1 if bits == 64 else 0.5]
    draw = lambda c: c.choice([*edges, float_of(c.getrandbits(bits), bits)])  # noqa: E731
    return Pair(spark, postgres, draw, held=lambda value: bits_of(value, bits))


def _decimal(precision: int, scale: int, postgres: str) -> Pair:
    limit = 10**precision - 1
    draw = lambda c: Decimal(f"{c.choice([limit, -limit, 0, 1, c.randint(-limit, limit)])}e-{scale}")  # noqa: E731
    return Pair(f"decimal({precision},{scale})", postgres, draw)


_FIRST, _LAST = ((moment - _EPOCH) // timedelta(microseconds=1) for moment in (datetime.min, datetime.max))


def _micros(chance: Random) -> int:
    return chance.choice([_FIRST, _LAST, 0, -1, chance.randint(_FIRST, _LAST)])


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


_TEXTS = [
    "",
    " ",
    "a",
    "NULL",
    "\\N",
    "\\.",
    "a,b\t\"c'\\",
    "line\r\nbreak\n",
    "Z\u00fcrich \U0001f980\u2028",
    "x" * 5_000,
]
_JSON = (
    ("array<int>", lambda c: c.choice([[], [None], [1, None, -(2**31)]])),
    ("map<string,bigint>", lambda c: c.choice([{}, {"a": None}, {"": 2**63 - 1, '\u00e4"': -(2**63)}])),
    ("struct<a:decimal(38,2),b:string>", lambda c: c.choice([(Decimal("-1.50"), None), (None, '\U0001f980\n"')])),
    ("array<map<string,array<boolean>>>", lambda c: c.choice([[], [{"k": [True, None]}, {}]])),
)
PAIRS = (
    _whole("tinyint", "smallint", 8), _whole("smallint", "smallint", 16), _whole("int", "integer", 32),
    _whole("bigint", "bigint", 64), _whole("bigint", "numeric", 64), _whole("bigint", "text", 64, str),
    _floating("float", "real", 32), _floating("double", "double precision", 64), _decimal(38, 10, "numeric(38, 10)"),
    _decimal(9, 2, "numeric"), _decimal(5, 0, "integer"),
    Pair("boolean", "boolean", lambda c: c.random() < 0.5),
    Pair("string", "text", lambda c: c.choice(_TEXTS)),
    Pair("string", "varchar(9)", lambda c: c.choice(["", "\u00e4\U0001f980"])),
    Pair("binary", "bytea", lambda c: c.choice([b"", b"\x00\xff", c.randbytes(9)])),
    Pair("date", "date", lambda c: c.choice([date.min, date.max, date(1969, 12, 31), _moment(_micros(c)).date()])),
    Pair("timestamp", "timestamptz", _micros, "bigint", "timestamp_micros({})",
         lambda v: _moment(v).replace(tzinfo=UTC)),
    Pair("timestamp", "timestamp", _micros, "bigint", "timestamp_micros({})", _moment),
    Pair("timestamp_ntz", "timestamp", _micros, "bigint", "to_timestamp_ntz(timestamp_micros({}))", _moment),
    *(Pair(spark, postgres, draw) for spark, draw in _JSON for postgres in ("json", "jsonb")),
)  # fmt: skip


def _of_json(spark: str, value: Any) -> Any:
    """A value of Spark as JSON has it. A struct is a tuple here."""
    if spark.startswith("struct"):
        return dict(zip("ab", value, strict=True))
    return value


def write_postgres_values(spark: Any, seed: str, table: str) -> Any:
    """Columns of pairs of types from a frame to a table: how many there were, and those that differ."""
    chance = Random(int(seed))
    rows = [[None if chance.random() < 0.2 else pair.draw(chance) for pair in PAIRS] for _ in range(8)]
    endpoints = Endpoints.from_environment()
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        listed = ", ".join(f"c{i} {pair.postgres}" for i, pair in enumerate(PAIRS))
        cursor.execute(f"CREATE TABLE {table} (n int, {listed})")
    schema = "n int, " + ", ".join(f"c{i} {pair.given or pair.spark}" for i, pair in enumerate(PAIRS))
    frame = spark.createDataFrame([(n, *row) for n, row in enumerate(rows)], schema)
    frame = frame.selectExpr("n", *(f"{pair.sql.format(f'c{i}')} AS c{i}" for i, pair in enumerate(PAIRS)))
    types = dict(frame.dtypes)
    write_postgres(frame.repartition(2), table)
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        shown = ", ".join(
            f"c{i}::text" if pair.postgres.startswith("json") else f"c{i}" for i, pair in enumerate(PAIRS)
        )
        cursor.execute(f"SET TIME ZONE 'UTC'; SELECT {shown} FROM {table} ORDER BY n")
        found = cursor.fetchall()
    wrong = []
    for i, pair in enumerate(PAIRS):
        if types[f"c{i}"] != pair.spark:
            wrong.append([pair.spark, "is", types[f"c{i}"]])
        values = [_read(pair, row[i]) for row in found]
        expected = [None if row[i] is None else _expected(pair, row[i]) for row in rows]
        if values != expected:
            wrong.append([f"{pair.spark} -> {pair.postgres}", repr(values), repr(expected)])
    return {"columns": len(PAIRS), "wrong": wrong}


def _expected(pair: Pair, value: Any) -> Any:
    return _of_json(pair.spark, value) if pair.postgres.startswith("json") else pair.held(value)


def _read(pair: Pair, value: Any) -> Any:
    if value is None:
        return None
    if pair.postgres.startswith("json"):
        return json.loads(value, parse_float=Decimal)
    if pair.spark in ("float", "double"):
        return bits_of(value, 32 if pair.spark == "float" else 64)
    return bytes(value) if isinstance(value, memoryview) else value
