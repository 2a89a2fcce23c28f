"""Values through ClickHouseHook on a running server: what comes out equals what went in, or it was refused by name."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway
from trilake.clickhouse.reading import UnreadableValueError
from trilake.errors import ConfigurationError
from trilake.hooks.clickhouse import ClickHouseHook, ValueRefusedError

pytest_plugins = ["support.clickhouse_fixtures"]

EXACT = Context(prec=100)
LATIN = "SELECT number + 1 AS k, ['plain', unhex('636166E9'), 'Zürich'][number + 1] AS v FROM numbers(3)"


@pytest.fixture(autouse=True)
def hook(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> ClickHouseHook:
    document = {
        "conn_type": "clickhouse_cluster",
        "host": "127.0.0.1",
        "port": gateway.port,
        "login": USER,
        "password": PASSWORD,
        "schema": "shard_1",
        "extra": {"shards": [{"database": "shard_1"}, {"database": "shard_2"}]},
    }
    monkeypatch.setenv("AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT", json.dumps(document))
    return ClickHouseHook()


@pytest.fixture
def made(gateway: RunningGateway) -> Iterator[Any]:
    """Makes the table `v` with the given columns, and none before."""

    def make(**kinds: str) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        allowed = "allow_suspicious_low_cardinality_types"
        gateway.sql(f"CREATE OR REPLACE TABLE shard_1.v ({columns}) ENGINE = Memory", **{allowed: 1})
        return "v"

    yield make
    gateway.sql("DROP TABLE IF EXISTS shard_1.v")


def moments(first: datetime, last: datetime) -> st.SearchStrategy[datetime]:
    """Without fold, which says nothing of a moment in UTC."""
    return st.datetimes(first, last).map(lambda value: value.replace(fold=0))


TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["", "\0", "\\N", "NULL", "'", "🦆", "x" * 300]
)
SECONDS = st.datetimes(datetime(1970, 1, 1), datetime(2106, 2, 7, 6, 28, 15)).map(
    lambda value: value.replace(microsecond=0, fold=0)
)
# Columns, and values that they hold. The hook reads back what it was given.
HELD: dict[str, st.SearchStrategy[Any]] = {
    **{f"Int{bits}": st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64, 128, 256)},
    **{f"UInt{bits}": st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64, 128, 256)},
    "Float64": st.floats(),
    "Float32": st.floats(width=32),
    "Decimal(9, 2)": st.decimals(-9_999_999, 9_999_999, places=2),
    "Decimal(38, 10)": st.decimals(Decimal("-9e27"), Decimal("9e27"), places=10),
    "Decimal(76, 38)": st.decimals(Decimal("-9e36"), Decimal("9e36"), places=38),
    "Bool": st.booleans(),
    "String": TEXT,
    "LowCardinality(String)": TEXT,
    "FixedString(3)": st.binary(min_size=3, max_size=3),
    "Enum8('a' = 1, 'it\\'s' = -2, '' = 3)": st.sampled_from(["a", "it's", ""]),
    "Date": st.dates(date(1970, 1, 1), date(2149, 6, 6)),
    "Date32": st.dates(),
    "DateTime('UTC')": SECONDS,
    "DateTime64(6, 'UTC')": moments(datetime(1, 1, 2), datetime.max),
    "DateTime64(9, 'UTC')": moments(datetime(1678, 1, 1), datetime(2262, 1, 1)),
    "DateTime64(6, 'America/New_York')": moments(datetime(1900, 1, 2), datetime(2200, 1, 1)).map(
        lambda v: v.replace(tzinfo=UTC)
    ),
    "Time64(6)": st.timedeltas(timedelta(hours=-999), timedelta(hours=999)),
    "UUID": st.uuids(),
    "IPv4": st.ip_addresses(v=4),
    "IPv6": st.ip_addresses(v=6),
    "Array(Array(Int16))": st.lists(st.lists(st.integers(-(1 << 15), (1 << 15) - 1), max_size=3), max_size=3),
    "Array(Nullable(String))": st.lists(st.none() | TEXT, max_size=3),
    "Map(String, Nullable(Float64))": st.dictionaries(TEXT, st.none() | st.floats(), max_size=3),
    "Tuple(a Nullable(Int8), b Array(String))": st.fixed_dictionaries(
        {"a": st.none() | st.integers(-128, 127), "b": st.lists(TEXT, max_size=2)}
    ),
}  # fmt: skip
ORDINARY = [kind for kind in HELD if not kind.startswith(("Array", "Map", "Tuple", "LowCardinality"))]


def nullable(kind: str) -> st.SearchStrategy[tuple[str, st.SearchStrategy[Any]]]:
    return st.just((f"Nullable({kind})", st.none() | HELD[kind]))


COLUMNS = st.sampled_from(list(HELD.items())) | st.sampled_from(ORDINARY).flatmap(nullable)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), columns=st.lists(COLUMNS, min_size=1, max_size=5))
def test_rows_come_back_as_they_went(
    hook: ClickHouseHook, made: Any, data: st.DataObject, columns: list[tuple[str, st.SearchStrategy[Any]]]
) -> None:
    rows = data.draw(st.lists(st.tuples(*(values for _, values in columns)), min_size=1, max_size=5))
    table = made(k="Int32", **{f"c{number}": kind for number, (kind, _) in enumerate(columns)})
    assert hook.insert_rows(table, [(k, *row) for k, row in enumerate(rows)], commit_every=2) == len(rows)
    names = ", ".join(f"c{number}" for number in range(len(columns)))
    sql = f"SELECT {names} FROM {table} ORDER BY k"
    found = hook.get_records(sql)
    assert repr([list(map(plain, row)) for row in found]) == repr([list(map(plain, row)) for row in rows])
    assert repr(list(hook.stream_rows(sql))) == repr(list(map(tuple, found)))


def plain(value: Any) -> Any:
    """In one form: moments of other zones, zeros at the end of a Decimal, dicts in another order."""
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC)
    if isinstance(value, Decimal):
        return value.normalize(EXACT) if value else Decimal(0)
    if isinstance(value, dict):
        return sorted(value.items())
    return value


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_a_naive_datetime_is_in_utc_wherever_the_worker_is(
    hook: ClickHouseHook, gateway: RunningGateway, made: Any, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon = datetime(2013, 7, 1, 12)
    table = made(w="String", a="DateTime", b="DateTime64(6, 'UTC')")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        hook.insert_rows(
            table, [("naive", noon, noon), ("aware", noon.replace(tzinfo=UTC), noon.astimezone(UTC).replace(hour=12))]
        )
        hook.insert_df(table, pd.DataFrame({"w": ["frame"], "a": [noon], "b": [noon]}))
        hook.insert_arrow(table, pa.table({"w": ["arrow"], "a": pa.array([noon]), "b": pa.array([noon])}))
        read = hook.get_records(f"SELECT a, b FROM {table} WHERE w = 'frame'")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert read == [(noon, noon)]
    moments = gateway.sql(
        "SELECT w, formatDateTime(a, '%T', 'UTC'), formatDateTime(b, '%T', 'UTC') FROM shard_1.v ORDER BY w"
    )
    assert moments.splitlines() == [f"{w}\t12:00:00\t12:00:00" for w in ("arrow", "aware", "frame", "naive")]


@pytest.mark.parametrize("how", ["rows", "frame", "arrow", "file"])
def test_a_value_that_is_refused_is_named_and_nothing_of_its_block_is_in(
    hook: ClickHouseHook, gateway: RunningGateway, made: Any, how: str, tmp_path: Path
) -> None:
    table = made(k="Int32", v="Int8")
    rows = [(1, 1), (2, 2), (3, 3), (4, 300)]
    frame = pd.DataFrame(rows, columns=["k", "v"])
    file = tmp_path / "v.tsv"
    file.write_text("".join(f"{k}\t{v}\n" for k, v in rows))
    inserts = {
        "rows": lambda: hook.insert_rows(table, rows, commit_every=2),
        "frame": lambda: hook.insert_df(table, frame, block_rows=2),
        "arrow": lambda: hook.insert_arrow(table, pa.Table.from_pandas(frame), block_rows=2),
        "file": lambda: hook.bulk_load(table, str(file)),
    }
    with pytest.raises(ValueRefusedError) as caught:
        inserts[how]()
    sent = 0 if how == "file" else 2
    assert (caught.value.column, caught.value.row, caught.value.sent) == ("v", 4, sent)
    assert "v, column v, row 4: " in caught.value.message
    assert "300" in caught.value.message
    assert "not from -128 to 127" in caught.value.message
    assert gateway.sql("SELECT count() FROM shard_1.v") == str(sent)


def test_a_column_that_the_table_has_not_is_refused(hook: ClickHouseHook, made: Any) -> None:
    table = made(k="Int32", m="Int32 MATERIALIZED k + 1")
    for name in ("x", "m"):
        with pytest.raises(ConfigurationError, match=f"column '{name}'"):
            hook.insert_rows(table, [(1,)], [name])


def test_text_in_json_stays_text(hook: ClickHouseHook, made: Any) -> None:
    document = {"at": "2013-01-01T00:00:00Z", "day": "2013-01-01", "n": 5, "l": [1, "x", None], "o": {"e": 1.5}}
    table = made(j="JSON")
    hook.insert_rows(table, [(document,), (json.dumps(document),)])
    assert hook.get_records(f"SELECT j FROM {table}") == [(document,), (document,)]


def test_a_table_is_dumped_and_loaded_with_each_of_its_values(
    hook: ClickHouseHook, gateway: RunningGateway, made: Any, tmp_path: Path
) -> None:
    columns: dict[str, tuple[str, Any]] = {
        "k": ("Int32", 1),
        "s": ("String", b"caf\xe9\t\n\\"),
        "f": ("Float64", 0.1 + 0.2),
        "n": ("Nullable(Decimal(38, 10))", None),
        "a": ("Array(Nullable(String))", ["it's", None, ""]),
        "m": ("Map(String, Array(Int8))", {"a": [1]}),
        "t": ("Tuple(Int8, String)", (1, "x")),
        # the second half past one of that night
        "z": ("DateTime('America/New_York')", datetime(2013, 11, 3, 6, 30, tzinfo=UTC)),
        "j": ("JSON", {"a": "x"}),
        "u": ("UUID", UUID(int=5)),
        "i": ("IPv4", IPv4Address("10.0.0.1")),
        "b": ("Bool", True),
    }
    table = made(**{name: kind for name, (kind, _) in columns.items()})
    hook.insert_rows(table, [tuple(value for _, value in columns.values())])
    before = gateway.sql("SELECT *, toUnixTimestamp(z) FROM shard_1.v")
    hook.bulk_dump(table, str(tmp_path / "v.tsv"))
    gateway.sql("TRUNCATE TABLE shard_1.v")
    hook.bulk_load(table, str(tmp_path / "v.tsv"))
    assert gateway.sql("SELECT *, toUnixTimestamp(z) FROM shard_1.v") == before


@pytest.mark.parametrize(
    "kind", ["DateTime", "DateTime('UTC')", "DateTime64(6, 'Asia/Tokyo')", "Array(DateTime('Asia/Tokyo'))"]
)
def test_a_naive_datetime_is_bound_in_utc_whatever_the_type_names(hook: ClickHouseHook, kind: str) -> None:
    noon = datetime(2013, 7, 1, 12)
    value = [noon] if kind.startswith("Array") else noon
    found = f"{{x:{kind}}}" + ("[1]" if kind.startswith("Array") else "")
    rows = hook.stream_rows(f"SELECT formatDateTime({found}, '%F %T', 'UTC')", {"x": value})
    assert list(rows) == [("2013-07-01 12:00:00",)]


# --- reading


@pytest.mark.parametrize(
    "how", ["get_records", "get_first", "stream_rows", "query_df", "get_df", "query_arrow", "stream_arrow"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_not_utf8_is_refused_and_never_digits(hook: ClickHouseHook, how: str, nested: bool) -> None:
    sql = f"SELECT [v] AS v FROM ({LATIN}) ORDER BY v[1] = 'plain'" if nested else LATIN
    with pytest.raises(UnreadableValueError, match=r"Column v.*UTF-8") as caught:
        list(getattr(hook, how)(sql))
    assert "base64Encode" in (caught.value.hint or "")
    if not nested:
        assert r"row 2: b'caf\xe9'" in caught.value.message
    assert hook.get_records("SELECT '636166e9'") == [("636166e9",)]


def test_bytes_are_read_as_bytes_if_they_are_asked_for(hook: ClickHouseHook) -> None:
    assert hook.query_arrow(LATIN, text=False).column("v").to_pylist() == [b"plain", b"caf\xe9", "Zürich".encode()]
    assert next(hook.stream_arrow(LATIN, text=False)).column("v").to_pylist()[1] == b"caf\xe9"


def test_a_stream_names_the_row_of_all_rows(hook: ClickHouseHook) -> None:
    hook = ClickHouseHook(session_settings={"max_block_size": 1000})
    rows = hook.stream_rows("SELECT if(number = 4321, unhex('ff'), 'x') AS v FROM numbers(9000)")
    with pytest.raises(UnreadableValueError, match="row 4322"):
        list(rows)


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT toDateTime64('2013-01-01 00:00:00.123456789', 9, 'UTC') AS v", "nanoseconds"),
        ("SELECT [toDateTime64('2013-01-01 00:00:00.123456789', 9, 'UTC')] AS v", "nanoseconds"),
        ("SELECT map('a', 1, 'a', 2) AS v", "'a' occurs twice"),
    ],
)
def test_what_python_cannot_hold_is_refused(hook: ClickHouseHook, sql: str, problem: str) -> None:
    with pytest.raises(UnreadableValueError, match=f"Column v .*{problem}"):
        hook.get_records(sql)


@pytest.mark.parametrize("kind", ["Int128", "UInt256", "Nullable(Int256)", "Variant(Int64, Float64)", "Dynamic"])
def test_a_frame_holds_integers_of_several_blocks_exactly(hook: ClickHouseHook, kind: str) -> None:
    """pandas makes one block int64, another uint64 or floats, and joins them as floats."""
    values = [2**53 + 1, 2**63 if "128" in kind or "256" in kind else 1.5, 3]
    selects = [
        f"SELECT {n} AS n, CAST({'toInt64' if value != 1.5 and 'Variant' in kind else ''}({value}), '{kind}') AS v"
        for n, value in enumerate(values)
    ]
    sql = f"SELECT v FROM ({' UNION ALL '.join(selects)}) ORDER BY n SETTINGS max_block_size = 1"
    for frame in (hook.query_df(sql), hook.get_df(sql)):
        assert list(frame["v"]) == values


def test_frames_hold_what_they_read(hook: ClickHouseHook) -> None:
    sql = (
        "SELECT arrayJoin([toNullable(toInt64(1152921504606846977)), NULL]) AS i, toUInt64(18446744073709551615) AS u, "
        "toDecimal128('1234567890123456789.25', 2) AS d, toDate32('2299-12-31') AS day"
    )
    for frame in (hook.get_df(sql), hook.query_df(sql)):
        assert frame["i"].tolist()[0] == 1152921504606846977
        assert pd.isna(frame["i"].tolist()[1])
        assert frame["u"].tolist()[0] == 18446744073709551615
        assert frame["d"].tolist()[0] == Decimal("1234567890123456789.25")
        assert str(frame["day"].tolist()[0])[:10] == "2299-12-31"
    nanoseconds = hook.query_df("SELECT toDateTime64('2013-01-01 00:00:00.123456789', 9, 'UTC') AS v")["v"][0]
    assert nanoseconds.nanosecond == 789


def test_the_server_parses_a_float_as_python_does(hook: ClickHouseHook) -> None:
    values = [random.Random(7).uniform(-1, 1) * 10**exponent for exponent in range(-30, 31)]
    values += [random.Random(exponent).random() for exponent in range(200)]
    listed = ", ".join(f"toFloat64('{value!r}')" for value in values)
    (found,) = hook.get_first(f"SELECT [{listed}]")
    assert found == values


# --- statements


def test_a_statement_that_only_changes_a_session_is_refused_before_the_first_is_sent(
    hook: ClickHouseHook, gateway: RunningGateway, made: Any
) -> None:
    table = made(k="Int32")
    hook.insert_rows(table, [(1,)])
    texts: list[Any] = [
        "TRUNCATE TABLE v; USE shard_2; TRUNCATE TABLE v -- all",
        ["TRUNCATE TABLE v", "SET max_threads = 1"],
    ]
    for text in texts:
        with pytest.raises(ConfigurationError, match=r"Statement 2 of this call is (USE|SET)"):
            hook.run(text, split_statements=True)
    assert gateway.sql("SELECT count() FROM shard_1.v") == "1"


def test_the_last_statement_of_a_text_is_sent(hook: ClickHouseHook, gateway: RunningGateway, made: Any) -> None:
    made(k="Int32")
    hook.run("INSERT INTO v VALUES (1);\nINSERT INTO v VALUES (2) -- the second", split_statements=True)
    assert gateway.sql("SELECT k FROM shard_1.v ORDER BY k") == "1\n2"
    assert hook.get_records("SELECT 1 -- one") == [(1,)]
