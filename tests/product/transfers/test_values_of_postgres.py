"""Values of every type of PostgreSQL in Parquet, in CSV and in Iceberg: equal, or refused by name. On the real engines.

The types are those of the table in docs/reference/types.md. `make test-nightly` draws more values (`TRILAKE_SEEDS`).
"""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest

from support.any_values import bits_of, float_of
from trilake import s3
from trilake.cli.type_table import find
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.catalog import open_catalog
from trilake.lake.dimensions import replace_table
from trilake.postgres.connection import connect
from trilake.postgres.extract import extract, one_moment

SEEDS = int(os.environ.get("TRILAKE_SEEDS", "3"))
seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, SEEDS + 1))]
)
ROWS = 12
_LAST_MICRO = (datetime.max - datetime.min) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Kind:
    """A type of PostgreSQL: random values as text, and as Arrow gives them back."""

    name: str
    draw: Callable[[Random], Any]
    text: Callable[[Any], str] = str
    held: Callable[[Any], Any] = lambda value: value


def whole(name: str, bits: int) -> Kind:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return Kind(name, lambda c: c.choice([low, high, 0, c.randint(low, high)]))


def floating(name: str, bits: int) -> Kind:
    edges = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), float_of(1, bits), 0.1 if bits == 64 else 0.5]
    return Kind(
        name, lambda c: c.choice([*edges, float_of(c.getrandbits(bits), bits)]), repr, lambda v: bits_of(v, bits)
    )


def numeric(precision: int, scale: int) -> Kind:
    limit = 10**precision - 1
    return Kind(
        f"numeric({precision}, {scale})",
        lambda c: Decimal(f"{c.choice([limit, -limit, 0, 1, c.randint(-limit, limit)])}e-{scale}"),
        lambda value: f"{value:f}",
    )


def _moment(chance: Random) -> datetime:
    micros = chance.choice([0, _LAST_MICRO, chance.randint(0, _LAST_MICRO)])
    return datetime(1, 1, 1) + timedelta(microseconds=micros)


TEXTS = ["", " ", "a", "NULL", "\\N", "a,b\t\"c'\\", "line\r\nbreak\n", "Z\u00fcrich \U0001f980\u2028", "x" * 5_000]
SHORT = ["", "ab", 'a"b', "\u00e4\U0001f980"]
KINDS = (
    Kind("boolean", lambda c: c.random() < 0.5),
    whole("smallint", 16), whole("integer", 32), whole("bigint", 64), floating("real", 32),
    floating("double precision", 64), numeric(38, 10), numeric(10, 2), numeric(5, 0), numeric(3, 3),
    Kind("text", lambda c: c.choice(TEXTS)), Kind("varchar(9)", lambda c: c.choice(SHORT)),
    Kind("char(5)", lambda c: c.choice(SHORT), held=lambda v: v.ljust(5)), Kind("name", lambda c: c.choice(SHORT)),
    Kind("bytea", lambda c: c.choice([b"", b"\x00\xff", c.randbytes(9)]), lambda v: f"\\x{v.hex()}"),
    Kind("date", lambda c: c.choice([date(1, 1, 1), date(9999, 12, 31), date(1969, 12, 31), _moment(c).date()])),
    Kind("time", lambda c: c.choice([time(0), time(23, 59, 59, 999999), _moment(c).time()])),
    Kind("timestamp", _moment), Kind("timestamptz", lambda c: _moment(c).replace(tzinfo=UTC)),
    Kind("uuid", lambda c: UUID(int=c.getrandbits(128)), held=str),
    Kind("json", lambda c: c.choice(['{"a": 1.50, "a": null}', "[]", '"\u00e4"', "1e400"])),
    Kind("jsonb", lambda c: c.choice(['{"a": [1, null]}', "[]", '"\u00e4"', "123456789012345678901234567890"])),
    Kind("inet", lambda c: c.choice(["1.2.3.4", "10.0.0.0/8", "::1"])),
    Kind("cidr", lambda c: c.choice(["10.0.0.0/8"])),
    Kind("oid", lambda c: c.choice([0, 2**32 - 1])), Kind("{schema}.color", lambda c: c.choice(["red", "b'lue"])),
    Kind("{schema}.positive", lambda c: c.choice([1, 2**31 - 1])),
)  # fmt: skip


class Source:
    """A table of PostgreSQL with random rows, and where they go."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints, self.data_set = endpoints, DataSet(f"v_{secrets.token_hex(4)}")
        self.schema, self.key = self.data_set.name, f"{self.data_set.name}/file"
        self.table, self.s3 = f"{self.schema}.t", s3.client(endpoints.s3)
        self.run(f"CREATE SCHEMA {self.schema}")
        self.run(f"CREATE TYPE {self.schema}.color AS ENUM ('red', 'b''lue')")
        self.run(f"CREATE DOMAIN {self.schema}.positive AS int CHECK (VALUE > 0)")

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def fill(self, seed: int) -> list[list[Any]]:
        chance = Random(seed)
        types = [kind.name.format(schema=self.schema) for kind in KINDS]
        self.run(f"CREATE TABLE {self.table} (n int, {', '.join(f'c{i} {kind}' for i, kind in enumerate(types))})")
        rows = [[None if chance.random() < 0.2 else kind.draw(chance) for kind in KINDS] for _ in range(ROWS)]
        for n, row in enumerate(rows):
            texts = [None if value is None else kind.text(value) for kind, value in zip(KINDS, row, strict=True)]
            self.run(f"INSERT INTO {self.table} VALUES ({n}, {', '.join(['%s'] * len(KINDS))})", *texts)
        return rows

    def extract(self, file_format: Any, sql: str = "") -> bytes:
        with connect(self.endpoints.oltp) as connection, one_moment(connection) as cursor:
            query = sql or f"SELECT * FROM {self.table} ORDER BY n"
            extract(cursor, query, {}, self.s3, "raw", self.key, file_format=file_format)
        return self.s3.get_object(Bucket="raw", Key=self.key)["Body"].read()

    def drop(self) -> None:
        self.run(f"DROP SCHEMA {self.schema} CASCADE")
        s3.remove(self.s3, "raw", s3.list_keys(self.s3, "raw", f"{self.data_set.name}/"))


@pytest.fixture
def source(endpoints: Endpoints) -> Iterator[Source]:
    made = Source(endpoints)
    yield made
    made.drop()


def expected(kind: Kind, value: Any) -> Any:
    return None if value is None else kind.held(value)


def found(kind: Kind, value: Any) -> Any:
    """A value of Arrow, which equals itself: floats as bits."""
    if value is None or kind.name not in ("real", "double precision"):
        return value
    return bits_of(value, 32 if kind.name == "real" else 64)


@seeds
def test_values_arrive_in_parquet_and_csv_as_they_are(source: Source, seed: int) -> None:
    rows = source.fill(seed)
    table = pq.read_table(io.BytesIO(source.extract("parquet")))
    for i, kind in enumerate(KINDS):
        values = [found(kind, value) for value in table[f"c{i}"].to_pylist()]
        assert values == [expected(kind, row[i]) for row in rows], kind.name
    # each text is the one that PostgreSQL itself writes, and "" is not NULL
    texts = source.run(
        "SET TIME ZONE 'UTC'; SET bytea_output = hex; SELECT "
        + ", ".join(f"format('%s', c{i}), c{i} IS NULL" for i in range(len(KINDS)))
        + f" FROM {source.table} ORDER BY n"
    )
    content = source.extract("csv").decode()
    lines = [re.findall(r'(?:^|(?<=[,\n]))("(?:[^"]|"")*"|[^,\n"]*)(?=[,\n])', content)]
    fields = lines[0][len(KINDS) + 1 :]
    for n in range(ROWS):
        line = fields[n * (len(KINDS) + 1) + 1 : (n + 1) * (len(KINDS) + 1)]
        for i, kind in enumerate(KINDS):
            text, null = texts[n][2 * i], texts[n][2 * i + 1]
            read = line[i][1:-1].replace('""', '"') if line[i].startswith('"') else line[i]
            shown = {"t": "t", "f": "f"}.get(text, text)
            assert (read, line[i] == "") == ("" if null else shown, null), kind.name


@seeds
def test_values_arrive_in_iceberg_as_they_are(source: Source, seed: int) -> None:
    rows = source.fill(seed)
    catalog = open_catalog(source.endpoints.lake, source.endpoints.s3)
    try:
        with connect(source.endpoints.oltp) as connection:
            replace_table(catalog, source.data_set, connection, source.table, run_id="values")
        table = catalog.load_table(source.data_set.curated)
        held = table.scan().to_arrow().sort_by("n")
        for i, kind in enumerate(KINDS):
            values = [found(kind, value) for value in held[f"c{i}"].to_pylist()]
            assert values == [expected(kind, row[i]) for row in rows], kind.name
        types = {field.name: str(field.field_type) for field in table.schema().fields}
    finally:
        if catalog.table_exists(source.data_set.curated):
            catalog.drop_table(source.data_set.curated)
        catalog.close()
    for i, kind in enumerate(KINDS):
        assert types[f"c{i}"] == target("postgres-iceberg", kind.name), kind.name


def listed(text: str) -> list[str]:
    return re.split(r",\s*(?![^(]*\))", text)


def target(path: str, kind: str) -> str:
    """The type that the table of types says of one of PostgreSQL."""
    general = re.sub(r"\(\d+, \d+\)", "(p, s)", re.sub(r"\(\d+\)", "(n)", kind))
    general = {"{schema}.color": "enum", "{schema}.positive": "integer"}.get(general, general)
    rules = find(path)
    assert rules
    found = next(rule.target for rule in rules.rules if general in listed(rule.source))
    return found.replace("(p, s)", kind.removeprefix("numeric")) if general.startswith("numeric") else found


NO_PARQUET = {
    "array": "ARRAY[1]", "interval": "interval '1 day'", "numeric without a precision": "1.5::numeric",
    "money": "1::money", "timetz": "'10:00+01'::timetz", "xml": "NULL::xml", "point": "point(1, 2)",
    "range": "int4range(1, 2)", "bit": "B'101'",
}  # fmt: skip


def test_the_types_that_have_no_equal_are_refused_by_the_column(source: Source) -> None:
    for path in ("postgres-s3", "postgres-iceberg"):
        rules = find(path)
        assert rules
        assert {name for rule in rules.rules if not rule.target for name in listed(rule.source)} == set(NO_PARQUET)
    for name, sql in NO_PARQUET.items():
        with pytest.raises(ConfigurationError, match=r"Column v "):
            source.extract("parquet", f"SELECT {sql} AS v")
        assert name
