"""Values of every type on each path from and to ClickHouse: equal, or refused by name. On the real engines.

Columns and values are drawn by a seed from the types of the table in docs/reference/types.md. `make test-nightly` draws
more (`TRILAKE_SEEDS`).
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from random import Random
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from airflow.sdk.execution_time.comms import _new_encoder
from airflow.sdk.serde import deserialize, serialize

from support.any_values import BYTES, SCALARS, Kind, array, columns_of, nullable, plain, python, rows_sql
from support.clickhouse_types import FAMILIES, OTHER_NAMES
from support.running_platform import Platform
from support.transfer_task import connect_airflow
from trilake import s3
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.export import Source, export
from trilake.clickhouse.reading import UnreadableValueError
from trilake.endpoints import Endpoints
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.clickhouse_inserts import ValueRefusedError
from trilake.operators.xcom_values import NotHeldError, as_xcom
from trilake.postgres.connection import connect

SEEDS = int(os.environ.get("TRILAKE_SEEDS", "3"))
seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, SEEDS + 1))]
)
ROWS, MORE = 4, 20


class Tables:
    """Tables in the database of each shard, with rows of the first one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.names = cluster, list[str]()
        self.database = cluster.shards[0].database

    def make(self, kinds: Sequence[Kind]) -> str:
        name = f"values_{secrets.token_hex(4)}"
        self.names.append(name)
        columns = "".join(f", c{i} {kind.name}" for i, kind in enumerate(kinds))
        self.cluster.every_shard(
            Statement(f"CREATE TABLE {{shard}}.{name} (n UInt32{columns}) ENGINE = MergeTree ORDER BY n")
        )
        return name

    def fill(self, name: str, kinds: Sequence[Kind], rows: Sequence[Sequence[Any]]) -> None:
        client = self.cluster.client(self.cluster.shards[0])
        for n, row in enumerate(rows):
            sql = rows_sql(kinds, [row]).replace("toUInt32(0) AS n", f"toUInt32({n}) AS n")
            client.command(f"INSERT INTO {self.database}.{name} {sql}", settings={"max_query_size": 10**8})

    def content(self, name: str) -> bytes:
        """All bytes of a table's rows in the first shard."""
        client = self.cluster.client(self.cluster.shards[0])
        return client.raw_query(f"SELECT * FROM {self.database}.{name} ORDER BY n", fmt="RowBinary")

    def drop(self) -> None:
        for name in self.names:
            self.cluster.every_shard(Statement(f"DROP TABLE {{shard}}.{name} SYNC"))


@pytest.fixture
def tables(endpoints: Endpoints) -> Iterator[Tables]:
    with Cluster(endpoints.clickhouse) as cluster:
        made = Tables(cluster)
        yield made
        made.drop()


@pytest.fixture
def hook(platform: Platform, monkeypatch: pytest.MonkeyPatch, tables: Tables) -> ClickHouseHook:
    connect_airflow(monkeypatch, platform.env)
    return ClickHouseHook(database=tables.database)


def drawn(seed: int, *leave_out: str) -> tuple[list[Kind], list[list[Any]]]:
    chance = Random(seed)
    kinds = columns_of(chance, [kind for kind in SCALARS if kind.family not in leave_out], MORE)
    return kinds, [[kind.value(chance) for kind in kinds] for _ in range(ROWS)]


def test_the_engine_has_no_other_types(hook: ClickHouseHook) -> None:
    found = {row[0] for row in hook.get_records("SELECT name FROM system.data_type_families WHERE alias_to = ''")}
    assert found == FAMILIES | OTHER_NAMES


# --- ClickHouse to S3


def of_arrow(kind: Kind, value: Any) -> Any:
    """The plain form of a scalar of Arrow, by the rules of `clickhouse-s3`."""
    if not value.is_valid:
        return None
    match kind.family:
        case "Array":
            return [of_arrow(kind.parts[0], item) for item in value]
        case "Map":
            entries = value.values
            return [
                [of_arrow(kind.parts[0], entries[i]["key"]), of_arrow(kind.parts[1], entries[i]["value"])]
                for i in range(len(entries))
            ]
        case "Tuple":
            return {name: of_arrow(part, value[name]) for name, part in zip(kind.names, kind.parts, strict=True)}
    return _of_arrow(kind, value)


def _of_arrow(kind: Kind, value: Any) -> Any:
    match kind.family:
        case "String" | "FixedString":
            found: Any = value.as_buffer().to_pybytes()
        case "Enum8":
            found = value.as_buffer().to_pybytes().decode()
        case "DateTime" | "DateTime64":
            unit = {"ms": 3, "us": 6, "ns": 9}[value.type.unit]
            assert value.type.tz == "UTC"
            found, rest = divmod(value.value, 10 ** (unit - kind.digits))
            assert rest == 0
        case "IPv6":
            found = int.from_bytes(value.as_buffer().to_pybytes(), "big")
        case "IPv4":
            found = value.as_py()
        case "Int128" | "Int256":
            found = int.from_bytes(value.as_buffer().to_pybytes(), "little", signed=True)
        case "UInt128" | "UInt256":
            found = int.from_bytes(value.as_buffer().to_pybytes(), "little")
        case _:
            found = plain(kind, value.as_py())
    return found


@seeds
def test_values_are_exported_as_they_are(endpoints: Endpoints, tables: Tables, seed: int) -> None:
    kinds, rows = drawn(seed, "Time", "Time64")
    kinds.append(nullable(BYTES))
    rows = [[*row, kinds[-1].value(Random(n))] for n, row in enumerate(rows)]
    name, store = tables.make(kinds), s3.client(endpoints.s3)
    tables.fill(name, kinds, rows)
    done = export(
        tables.cluster, store, f"values/{name}", {"all": Source(f"SELECT * FROM {{shard}}.{name} ORDER BY n")}
    )
    content = store.get_object(Bucket="exports", Key=done.objects[0].key)["Body"].read()
    found = pq.read_table(io.BytesIO(content))
    for i, kind in enumerate(kinds):
        assert [of_arrow(kind, value) for value in found[f"c{i}"]] == [row[i] for row in rows], kind.name


# --- the hook's inserts and reads


def given(kind: Kind, value: Any) -> Any:
    """A value as a task gives it to `insert_rows`."""
    return value if kind.family == "FixedString" else python(kind, value)


@seeds
def test_rows_of_python_are_inserted_as_they_are(tables: Tables, hook: ClickHouseHook, seed: int) -> None:
    kinds, rows = drawn(seed)
    expected, found = tables.make(kinds), tables.make(kinds)
    tables.fill(expected, kinds, rows)
    hook.insert_rows(
        found,
        [(n, *(given(kind, value) for kind, value in zip(kinds, row, strict=True))) for n, row in enumerate(rows)],
    )
    if tables.content(found) != tables.content(expected):
        client = tables.cluster.client(tables.cluster.shards[0])
        for i, kind in enumerate(kinds):
            shown = [
                client.raw_query(f"SELECT c{i} FROM {tables.database}.{name} ORDER BY n", fmt="RowBinary")
                for name in (found, expected)
            ]
            assert shown[0] == shown[1], (kind.name, [row[i] for row in rows])


def readable(kind: Kind, value: Any) -> bool:
    """Whether Python can hold a value: not nanoseconds."""
    if value is None:
        return True
    if kind.family == "DateTime64" and kind.digits > 6:
        return value % 10 ** (kind.digits - 6) == 0
    if kind.family == "Array":
        return all(readable(kind.parts[0], item) for item in value)
    if kind.family == "Map":
        return all(readable(kind.parts[0], key) and readable(kind.parts[1], item) for key, item in value)
    if kind.family == "Tuple":
        return all(readable(part, value[name]) for name, part in zip(kind.names, kind.parts, strict=True))
    return True


@seeds
def test_rows_are_read_as_they_are_or_the_value_is_named(tables: Tables, hook: ClickHouseHook, seed: int) -> None:
    kinds, rows = drawn(seed)
    name = tables.make(kinds)
    tables.fill(name, kinds, rows)
    good = [i for i, kind in enumerate(kinds) if all(readable(kind, row[i]) for row in rows)]
    found = hook.get_records(f"SELECT {', '.join(f'c{i}' for i in good)} FROM {name} ORDER BY n")
    for i, *values in zip(good, *found, strict=True):
        assert [plain(kinds[i], value) for value in values] == [row[i] for row in rows], kinds[i].name
    for i in {*range(len(kinds))} - {*good}:
        with pytest.raises(UnreadableValueError, match=rf"Column c{i} .*nanoseconds"):
            hook.get_records(f"SELECT c{i} FROM {name} ORDER BY n")


def has_null_floats(kind: Kind) -> bool:
    return (kind.nullable and kind.family.startswith("Float")) or any(map(has_null_floats, kind.parts))


@pytest.mark.parametrize("way", ["arrow", "frame"])
@seeds
def test_what_was_read_as_arrow_or_a_frame_is_inserted_as_it_was_or_named(
    tables: Tables, hook: ClickHouseHook, seed: int, way: str
) -> None:
    kinds, rows = drawn(seed)
    some = range(len(kinds)) if seed else Random(way).sample(range(len(kinds)), 6)
    for i in some:
        kind, values = kinds[i], [[row[i]] for row in rows]
        if way == "frame" and has_null_floats(kind):
            continue  # NaN and NULL are one there
        expected, found = tables.make([kind]), tables.make([kind])
        tables.fill(expected, [kind], values)
        sql = f"SELECT * FROM {expected} ORDER BY n"
        try:
            if way == "arrow":
                hook.insert_arrow(found, hook.query_arrow(sql, text=False))
            else:
                hook.insert_df(found, hook.query_df(sql))
        except ValueRefusedError as e:
            assert "column c0, row" in str(e), kind.name  # noqa: PT017 - either of two outcomes
        except ClickHouseError as e:
            assert "column" in str(e), kind.name  # noqa: PT017
            assert kind.has("Time", "Time64"), kind.name  # Arrow has times of one day
        else:
            assert tables.content(found) == tables.content(expected), (kind.name, values)


@pytest.mark.parametrize("kind", [BYTES, array(BYTES)], ids=lambda kind: kind.name)
def test_bytes_that_are_no_text_are_named(tables: Tables, hook: ClickHouseHook, kind: Kind) -> None:
    name, value = tables.make([kind]), b"caf\xe9"
    tables.fill(name, [kind], [[value if kind is BYTES else [value]]])
    with pytest.raises(UnreadableValueError, match=r"Column c0 .*row.* b'caf\\xe9' is not UTF-8"):
        hook.get_records(f"SELECT c0 FROM {name}")


# --- XCom


def through_airflow(cursor: Any, value: Any) -> Any:
    """A value as the next task gets it: to the supervisor and back as MessagePack, in PostgreSQL as jsonb."""

    def message(item: Any) -> Any:
        return msgspec.msgpack.decode(_new_encoder().encode(item))

    cursor.execute("SELECT (%s::jsonb)::text", (json.dumps(message(serialize(value)), allow_nan=False),))
    return deserialize(message(json.loads(cursor.fetchone()[0])))


_SPAN = re.compile(r"(?:(?P<days>-?\d+) days?, )?(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)(?:\.(?P<us>\d{6}))?")


def of_xcom(kind: Kind, value: Any) -> Any:
    """The plain form of a value of XCom, by the rules of `clickhouse-xcom`. The key of a map is a text."""
    match kind.family if value is not None else "":
        case "Array":
            made: Any = [of_xcom(kind.parts[0], item) for item in value]
        case "Map":
            made = [[of_xcom(kind.parts[0], key), of_xcom(kind.parts[1], item)] for key, item in value.items()]
        case "Tuple":
            made = {name: of_xcom(part, value[name]) for name, part in zip(kind.names, kind.parts, strict=True)}
        case _:
            made = _of_xcom(kind, value)
    return made


def span_of(text: str) -> timedelta:
    span = _SPAN.fullmatch(text)
    assert span, text
    days, hours, minutes, seconds, micros = (int(span[name] or 0) for name in ("days", "h", "m", "s", "us"))
    return timedelta(days, seconds, micros, minutes=minutes, hours=hours)


def _of_xcom(kind: Kind, value: Any) -> Any:
    of_text: dict[str, Any] = {
        **dict.fromkeys(("Date", "Date32"), date.fromisoformat),
        **dict.fromkeys(("DateTime", "DateTime64"), datetime.fromisoformat),
        **dict.fromkeys(("Float32", "Float64"), float),
        **dict.fromkeys(("IPv4", "IPv6"), ip_address),
        **dict.fromkeys(("Time", "Time64"), span_of),
        "Decimal": Decimal,
    }
    if "Int" in kind.family:
        return value if value is None else int(value)
    return plain(kind, of_text[kind.family](value) if isinstance(value, str) and kind.family in of_text else value)


def in_order(kind: Kind, value: Any) -> Any:
    """A value whose maps have their keys in one order: jsonb keeps none."""
    if value is None or not kind.parts:
        return value
    if kind.family == "Map":
        return sorted(([key, in_order(kind.parts[1], item)] for key, item in value), key=repr)
    if kind.family == "Array":
        return [in_order(kind.parts[0], item) for item in value]
    return {name: in_order(part, value[name]) for name, part in zip(kind.names, kind.parts, strict=True)}


@seeds
def test_rows_are_the_same_in_xcom(endpoints: Endpoints, tables: Tables, hook: ClickHouseHook, seed: int) -> None:
    kinds, rows = drawn(seed, "FixedString")
    name = tables.make(kinds)
    tables.fill(name, kinds, rows)
    good = [i for i, kind in enumerate(kinds) if all(readable(kind, row[i]) for row in rows)]
    found = hook.get_records(f"SELECT {', '.join(f'c{i}' for i in good)} FROM {name} ORDER BY n")
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        held = through_airflow(cursor, [[as_xcom(value) for value in row] for row in found])
    for i, *values in zip(good, *held, strict=True):
        kind, expected = kinds[i], [in_order(kinds[i], row[i]) for row in rows]
        assert [in_order(kind, of_xcom(kind, value)) for value in values] == expected, kind.name


def test_what_xcom_changes_becomes_a_text_or_is_refused(endpoints: Endpoints) -> None:
    texts = [-0.0, 1e16, 1.5e300, float("nan"), float("-inf"), 2**64, -(2**63) - 1]
    kept = [0.0, 1.0, 0.1, 5e-324, 9007199254740993, 2**64 - 1, -(2**63)]
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        assert through_airflow(cursor, as_xcom(texts)) == [str(value) for value in texts]
        found = through_airflow(cursor, as_xcom(kept))
    assert [(type(value), value) for value in found] == [(type(value), value) for value in kept]
    for value in ("a\0b", {"a\0": 1}, {"__classname__": 1}, b"\xff"):
        with pytest.raises(NotHeldError, match="so XCom cannot hold it"):
            as_xcom(value)
