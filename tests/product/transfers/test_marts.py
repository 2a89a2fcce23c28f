"""Marts in PostgreSQL, replaced or changed by what a query of ClickHouse gives."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import pytest

from support.clickhouse_gateway import PLUGINS, TESTS
from support.kubernetes_api import await_true
from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.marts import stage_result
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError, CountMismatchError
from trilake.lake import DataSet
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace
from trilake.postgres.marts import DuplicateKeyError, merge_from, replace_from
from trilake.postgres.staging import ValueRefusedError
from trilake.transfers import clickhouse_to_postgres as transfer
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator


@pytest.fixture
def mart(endpoints: Endpoints) -> Iterator[str]:
    name = f"marts.m_{secrets.token_hex(4)}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (m int, n int)")
        cursor.execute(f"INSERT INTO {name} VALUES (1, 10), (2, 20)")
    yield name
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")


def rows(endpoints: Endpoints, mart: str) -> list[tuple[int, int]]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT m, n FROM {mart} ORDER BY m, n")
        return cursor.fetchall()


def replace_by_query(endpoints: Endpoints, mart: str, sql: str) -> int:
    with Cluster(endpoints.clickhouse) as cluster, connect(endpoints.oltp) as connection:
        with connection.cursor() as cursor:
            columns, staged, sent = stage_result(cluster.client(cluster.shards[0]), cursor, mart, sql)
        return replace_from(connection, mart, columns, staged, sent, where="m = %s", parameters=(1,))


def test_what_matches_is_replaced_and_the_rest_stays(endpoints: Endpoints, mart: str) -> None:
    assert replace_by_query(endpoints, mart, "SELECT 1 AS m, number AS n FROM numbers(2)") == 2
    assert rows(endpoints, mart) == [(1, 0), (1, 1), (2, 20)]


def test_a_window_that_has_no_row_any_more_is_emptied(endpoints: Endpoints, mart: str) -> None:
    assert replace_by_query(endpoints, mart, "SELECT 1 AS m, 2 AS n WHERE 0") == 0
    assert rows(endpoints, mart) == [(2, 20)]


def test_rows_outside_of_what_is_replaced_are_refused_and_nothing_changes(endpoints: Endpoints, mart: str) -> None:
    with pytest.raises(CountMismatchError, match="outside of the part that is replaced"):
        replace_by_query(endpoints, mart, "SELECT 3 AS m, 2 AS n")
    assert rows(endpoints, mart) == [(1, 10), (2, 20)]


# --- merged by a key


@pytest.fixture
def keyed(endpoints: Endpoints) -> Iterator[str]:
    name = f"marts.k_{secrets.token_hex(4)}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (m int, d date, n int, note text DEFAULT 'kept', PRIMARY KEY (m, d))")
        cursor.execute(f"INSERT INTO {name} VALUES (1, '2013-01-01', 10, 'old'), (2, '2013-01-01', 20, 'old')")
    yield name
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")


def all_of(endpoints: Endpoints, table: str) -> list[tuple[object, ...]]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT m, d::text, n, note FROM {table} ORDER BY 1, 2")
        return cursor.fetchall()


OLD = [(1, "2013-01-01", 10, "old"), (2, "2013-01-01", 20, "old")]
MERGED = [(1, "2013-01-01", 11, "old"), (2, "2013-01-01", 20, "old"), (3, "2013-01-01", 13, "kept")]


def merge(platform: Platform, monkeypatch: pytest.MonkeyPatch, table: str, sql: str, **options: Any) -> dict[str, Any]:
    connect_airflow(monkeypatch, platform.env)
    options = {"key": ("m", "d"), **options}
    found: dict[str, Any] = make(ClickHouseToPostgresOperator, sql=sql, table=table, **options).execute(context())
    return found


def test_rows_whose_key_is_there_are_updated_and_the_others_inserted(
    platform: Platform, keyed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT toInt32(number) AS m, toDate('2013-01-01') AS d, number + 10 AS n FROM numbers(4) WHERE m IN (1, 3)"
    found = merge(platform, monkeypatch, keyed, sql)
    assert found == {"table": keyed, "rows": 2, "inserted": 1, "updated": 1}
    assert all_of(platform.endpoints, keyed) == MERGED
    assert merge(platform, monkeypatch, keyed, sql)["updated"] == 2  # again: the same
    assert all_of(platform.endpoints, keyed) == MERGED
    assert merge(platform, monkeypatch, keyed, sql + " AND m > 5")["rows"] == 0
    keys_alone = "SELECT toInt32(number) AS m, toDate('2013-01-01') AS d FROM numbers(5) WHERE m > 2"
    assert merge(platform, monkeypatch, keyed, keys_alone) == {"table": keyed, "rows": 2, "inserted": 1, "updated": 1}


def test_a_window_of_the_run_narrows_the_query_that_is_merged(
    platform: Platform, keyed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    months = DataSet("months", grain="month", date="d", shard_by="m")
    sql = "SELECT toInt32(toMonth({start:Date})) AS m, {start:Date} AS d, toInt32({stop:Date} - {start:Date}) AS n"
    merge(platform, monkeypatch, keyed, sql, data_set=months, start="2013-03")
    assert all_of(platform.endpoints, keyed) == [*OLD, (3, "2013-03-01", 31, "kept")]


@pytest.mark.parametrize(
    ("sql", "key", "error", "says"),
    [
        (
            "SELECT toInt32(number % 2) AS m, toDate('2013-01-01') AS d, 0 AS n FROM numbers(5)",
            ("m", "d"),
            DuplicateKeyError,
            r"2 keys \(m, d\) occur more than once, such as \(\d, datetime.date\(2013, 1, 1\)\) in [23] rows",
        ),
        (
            "SELECT NULL AS m, toDate('2013-01-01') AS d, 0 AS n",
            ("m", "d"),
            ValueRefusedError,
            r"column m \(integer\) cannot hold NULL .* the column is NOT NULL",
        ),
        ("SELECT toInt32(1) AS m, 0 AS n", ("m", "d"), ConfigurationError, "have no column d"),
        (
            "SELECT toInt32(7) AS m, toDate('2013-01-01') AS d",
            ("m",),
            ConfigurationError,
            r"no unique constraint on \(m\)",
        ),
    ],
)
def test_what_cannot_be_merged_is_an_error_and_nothing_changes(
    platform: Platform,
    keyed: str,
    monkeypatch: pytest.MonkeyPatch,
    sql: str,
    key: tuple[str, ...],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        merge(platform, monkeypatch, keyed, sql, key=key)
    assert all_of(platform.endpoints, keyed) == OLD


def values(row: str) -> str:
    """One staged row, as written after FROM."""
    return f"(VALUES ({row})) AS staged (m, d, n)"


def test_a_key_that_may_be_null_is_refused_where_it_is(endpoints: Endpoints, keyed: str) -> None:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {keyed} ADD UNIQUE (n)")
    with (
        pytest.raises(DuplicateKeyError, match="1 rows have a NULL in their key"),
        connect(endpoints.oltp) as connection,
    ):
        merge_from(connection, keyed, ("m", "d", "n"), values("5, date'2013-01-01', NULL::int"), 1, key=("n",))
    assert all_of(endpoints, keyed) == OLD


def test_two_mergers_of_one_table_wait_for_each_other(endpoints: Endpoints, keyed: str) -> None:
    """Each adds the same new key: one inserts it, the other updates it."""

    def one(number: int) -> tuple[int, int]:
        with connect(endpoints.oltp) as connection:
            rows = values(f"9, date'2013-01-01', {number}")
            return merge_from(connection, keyed, ("m", "d", "n"), rows, 1, key=("m", "d"))

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(one, range(4))) == [(0, 1), (0, 1), (0, 1), (1, 0)]


@pytest.mark.parametrize("how", [{"date": "d"}, {"key": ("m", "d")}], ids=["replaced", "merged"])
def test_of_two_runs_that_meet_the_one_whose_query_saw_less_is_not_the_last_to_write(
    platform: Platform, keyed: str, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """The first one's rows are read, and on their way, when more is published and a second run brings that."""
    shown = f"{platform.endpoints.clickhouse.shards[0].database}.shown_{secrets.token_hex(4)}"
    sql = f"SELECT toInt32(1) AS m, toDate('2013-01-01') AS d, max(v) AS n FROM {shown}"
    months = DataSet("months", grain="month", date="d", shard_by="m")
    options: dict[str, Any] = {"key": (), "data_set": months, "start": "2013-01", **how}
    name = "merge_from" if how.get("key") else "replace_from"
    write, second = (
        getattr(transfer, name),
        Thread(target=merge, args=(platform, monkeypatch, keyed, sql), kwargs=options),
    )

    def writing(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(transfer, name, write)
        cluster.client(shard).command(f"INSERT INTO {shown} VALUES (2)")
        second.start()
        await_true(lambda: not second.is_alive() or waits_for_a_mart(platform.endpoints))
        return write(*given, **named)

    with Cluster(platform.endpoints.clickhouse) as cluster:
        shard = cluster.shards[0]
        cluster.client(shard).command(f"CREATE TABLE {shown} (v Int32) ENGINE = MergeTree ORDER BY v")
        try:
            cluster.client(shard).command(f"INSERT INTO {shown} VALUES (1)")
            monkeypatch.setattr(transfer, name, writing)
            merge(platform, monkeypatch, keyed, sql, **options)
            second.join(60)
        finally:
            cluster.client(shard).command(f"DROP TABLE {shown}")
    assert {(m, n) for m, _, n, _ in all_of(platform.endpoints, keyed)} - {(2, 20)} == {(1, 2)}


def waits_for_a_mart(endpoints: Endpoints) -> bool:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_locks WHERE classid = %s AND NOT granted", (LockSpace.MART,))
        return bool(cursor.fetchall())


def test_a_mart_is_replaced_or_merged_and_not_both() -> None:
    for options in ({}, {"date": "d", "key": ("m",)}, {"key": "m"}):
        with pytest.raises(ConfigurationError, match=r"which rows of x\.y to replace"):
            make(ClickHouseToPostgresOperator, sql="SELECT 1", table="x.y", **options)


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_merged(platform: Platform, keyed: str) -> None:
    program = """
import sys
from support.transfer_task import context, make
from trilake.transfers import clickhouse_to_postgres as transfer
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator
columns = "toInt32(number) + 100 AS m, toDate('2013-01-01') AS d, 1 AS n, repeat('x', 200) AS note"
rows = f"SELECT {columns} FROM numbers({sys.argv[2]})"
found = make(ClickHouseToPostgresOperator, sql=rows, table=sys.argv[1], key=("m", "d")).execute(context())
assert found["rows"] == int(sys.argv[2])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    env = {**platform.env, "PYTHONPATH": os.pathsep.join(map(str, (PLUGINS, TESTS)))}
    peaks = {}
    for rows in (50_000, 200_000):
        command = [sys.executable, "-c", program, keyed, str(rows)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[rows] = int(done.stdout.splitlines()[-1])
    # in KiB; the 150,000 rows more are 60 MB as Python's objects
    assert peaks[200_000] - peaks[50_000] < 30_000, peaks
