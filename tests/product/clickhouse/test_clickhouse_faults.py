"""A network that cuts, stalls and lies between the hook, the operators, the publisher and ClickHouse."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import DAG

from support.airflow_task import Store
from support.clickhouse_gateway import PASSWORD, USER, RunningGateway, wait_until
from support.tcp_proxy import Fault, TcpProxy, http_error
from trilake import retry
from trilake.clickhouse.cluster import ClickHouseError, Cluster, ClusterError, Statement
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard
from trilake.errors import UnreachableError
from trilake.hooks.clickhouse import ClickHouseHook, InsertFailedError
from trilake.operators.clickhouse import ClickHouseOperator, QueryFailedError
from trilake.triggers import clickhouse as triggers
from trilake.triggers.clickhouse import ClickHouseQueryTrigger

pytest_plugins = ["support.clickhouse_fixtures"]

ROWS = [(n, "x" * 50) for n in range(20_000)]
ARROW = pa.table({"n": pa.array([n for n, _ in ROWS], pa.uint64()), "s": [s for _, s in ROWS]})


@pytest.fixture
def proxy(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", gateway.port) as running:
        connect(monkeypatch, running.port)
        yield running


def connect(monkeypatch: pytest.MonkeyPatch, port: int, **client: Any) -> None:
    document = {
        "conn_type": "clickhouse_cluster",
        "host": "127.0.0.1",
        "port": port,
        "login": USER,
        "password": PASSWORD,
        "schema": "analytics",
        "extra": {"shards": [{"database": "shard_1"}, {"database": "shard_2"}], "client_kwargs": client},
    }
    monkeypatch.setenv("AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT", json.dumps(document))


@pytest.fixture
def table(gateway: RunningGateway, request: pytest.FixtureRequest) -> Iterator[str]:
    """One that remembers the last blocks that it was given."""
    name = f"shard_1.`{request.node.name}`"
    gateway.sql(
        f"CREATE TABLE {name} (n UInt64, s String) ENGINE = MergeTree ORDER BY n "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    yield name
    gateway.sql(f"DROP TABLE {name}")


def count(gateway: RunningGateway, table: str) -> int:
    return int(gateway.sql(f"SELECT count() FROM {table}"))


def insert(how: str, table: str, **options: Any) -> int:
    hook = ClickHouseHook()
    if how == "rows":
        return hook.insert_rows(table, ROWS, ["n", "s"], commit_every=5_000, **options)
    if how == "df":
        return hook.insert_df(table, ARROW.to_pandas(), block_rows=5_000, **options)
    return hook.insert_arrow(table, ARROW, block_rows=5_000, **options)


# --- writing


@pytest.mark.parametrize("how", ["rows", "arrow", "df"])
@pytest.mark.parametrize("answer", [False, True], ids=["request", "answer"])
def test_an_insert_that_is_cut_says_what_is_in_and_a_second_one_adds_the_rest(
    gateway: RunningGateway, proxy: TcpProxy, table: str, how: str, answer: bool
) -> None:
    """Whether the cut comes before the server has the block or after: with a token nothing is in twice."""
    assert insert(how, table, deduplication_token="run 1") == len(ROWS)
    assert count(gateway, table) == len(ROWS)
    gateway.sql(f"TRUNCATE TABLE {table}")
    # the third block's statement, by its token
    fault = Fault(b"run+2%3A2", cut_answer_after=0) if answer else Fault(b"run+2%3A2", cut_request_after=1_000)
    proxy.fault = replace(fault, times=1)
    with pytest.raises(InsertFailedError, match=f"10000 rows were inserted.*127.0.0.1:{proxy.port}") as caught:
        insert(how, table, deduplication_token="run 2")
    assert proxy.hits == 1, "it was sent again"
    assert caught.value.sent == 10_000
    wait_until(lambda: count(gateway, table) == (15_000 if answer else 10_000))
    assert insert(how, table, deduplication_token="run 2") == len(ROWS)
    assert count(gateway, table) == len(ROWS)


def test_without_a_token_an_insert_that_failed_warns_of_rows_that_come_twice(
    gateway: RunningGateway, proxy: TcpProxy, table: str
) -> None:
    proxy.fault = Fault(b"INSERT", cut_answer_after=0, times=1)
    with pytest.raises(InsertFailedError, match="its rows would be inserted a second time"):
        insert("arrow", table)
    assert proxy.hits == 1
    wait_until(lambda: count(gateway, table) == 5_000)


@pytest.mark.parametrize("how", ["rows", "arrow"])
def test_an_answer_with_a_code_is_an_error_with_that_code(proxy: TcpProxy, table: str, how: str) -> None:
    proxy.fault = Fault(b"INSERT", answer=http_error(500, "Code: 241. DB::Exception: Memory limit exceeded", 241))
    with pytest.raises(InsertFailedError, match="Memory limit exceeded") as caught:
        insert(how, table)
    assert (caught.value.code, caught.value.sent) == (241, 0)


# --- reading


def read(how: str, sql: str) -> Any:
    hook = ClickHouseHook()
    if how == "stream_rows":
        return list(hook.stream_rows(sql))
    if how == "stream_arrow":
        return list(hook.stream_arrow(sql))
    return hook.get_records(sql) if how == "get_records" else getattr(hook, how)(sql)


READERS = ["stream_rows", "stream_arrow", "query_arrow", "query_df", "get_records"]


@pytest.mark.parametrize("how", READERS)
def test_an_answer_that_is_cut_is_no_short_result(proxy: TcpProxy, how: str) -> None:
    proxy.fault = Fault(b"read_me", cut_answer_after=100_000)
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{proxy.port}"):
        read(how, "SELECT number AS read_me, toString(cityHash64(number)) AS s FROM numbers(500000)")


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (http_error(500, "Code: 159. DB::Exception: Timeout exceeded", 159), ClickHouseError, 159),
        (http_error(500, "no words of ClickHouse's", 202), ClickHouseError, 202),
        (http_error(502, "<html>Bad Gateway</html>"), UnreachableError, None),
    ],
    ids=["code", "bare code", "another's error"],
)
def test_an_http_error_is_typed(proxy: TcpProxy, how: str, answer: bytes, kind: type, code: int | None) -> None:
    proxy.fault = Fault(b"read_me", answer=answer)
    with pytest.raises(kind, match=f"127.0.0.1:{proxy.port}") as caught:
        read(how, "SELECT 1 AS read_me")
    assert getattr(caught.value, "code", None) == code


@pytest.mark.parametrize("how", [*READERS, "bulk_dump"])
def test_a_server_that_stalls_is_given_up_in_the_time_that_the_connection_says(
    gateway: RunningGateway, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    connect(monkeypatch, proxy.port, send_receive_timeout=1)
    proxy.fault = Fault(b"read_me", stall=True)
    dump = partial(ClickHouseHook().bulk_dump, "(SELECT 1 AS read_me)", str(tmp_path / "dump.tsv"))
    with pytest.raises(UnreachableError, match=rf"127.0.0.1:{proxy.port}.*ReadTimeoutError"):
        dump() if how == "bulk_dump" else read(how, "SELECT 1 AS read_me")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_named(proxy: TcpProxy, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RESTART_S", 1.0)
    proxy.refuse()
    work = (partial(read, "query_df", "SELECT 1"), partial(insert, "rows", table), ClickHouseHook().get_conn)
    with ThreadPoolExecutor(len(work)) as pool:  # each waits for a server's restart
        for outcome in [pool.submit(some) for some in work]:
            with pytest.raises(UnreachableError, match=rf"127.0.0.1:{proxy.port}.*(Refused|NewConnection)"):
                outcome.result()


# --- the operator


class Task:
    def __init__(self, sql: str, **options: Any) -> None:
        with DAG("faults", schedule=None):
            self.operator = ClickHouseOperator(task_id="t", sql=sql, poll_interval=0.1, **options)
        self.store = Store()

    def run(self) -> Any:
        ti = SimpleNamespace(
            dag_id="faults",
            task_id="t",
            run_id="r",
            map_index=-1,
            try_number=1,
            max_tries=3,
            start_date=datetime.now(UTC),
        )
        self.context = {"ti": ti, "task": self.operator, "run_id": "r", "task_state_store": self.store}
        return self.operator.execute(self.context)


def test_a_tasks_query_does_not_outlive_it_though_its_client_hears_nothing(
    gateway: RunningGateway, proxy: TcpProxy, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An INSERT SELECT goes on without its client."""
    connect(monkeypatch, proxy.port, send_receive_timeout=1)
    proxy.fault = Fault(b"INSERT INTO", stall=True)
    slow = f"INSERT INTO {table} SELECT number, toString(sleepEachRow(0.1)) FROM numbers(100000)"
    task = Task(
        f"{slow} SETTINGS max_block_size = 1, max_threads = 1",
        deferrable=False,
        execution_timeout=timedelta(seconds=10),
    )
    with pytest.raises(UnreachableError):
        task.run()
    query_id = task.operator._submission.query_id
    assert gateway.running(query_id), "there was nothing to outlive"
    wait_until(lambda: not gateway.running(query_id))


def test_an_answer_that_is_lost_is_not_sent_again_by_the_next_try(
    gateway: RunningGateway, proxy: TcpProxy, table: str
) -> None:
    sql = f"INSERT INTO {table} SELECT number, 'once' FROM numbers(10)"
    proxy.fault = Fault(b"INSERT INTO", cut_answer_after=0, times=1)
    task = Task(sql, deferrable=False)
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{proxy.port}"):
        task.run()
    wait_until(lambda: count(gateway, table) == 10)
    assert task.run()["written_rows"] == 10
    assert (count(gateway, table), proxy.hits) == (10, 1)


def test_a_statement_that_was_never_sent_for_want_of_a_server_is_sent_by_the_next_try(
    gateway: RunningGateway, proxy: TcpProxy, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RESTART_S", 1.0)
    task = Task(f"INSERT INTO {table} SELECT number, 'once' FROM numbers(10)")
    proxy.refuse()
    with pytest.raises(UnreachableError):
        task.run()
    proxy.listen()
    assert task.run()["written_rows"] == 10
    assert count(gateway, table) == 10


def test_a_code_from_the_server_fails_the_task_with_it(proxy: TcpProxy) -> None:
    proxy.fault = Fault(b"read_me", answer=http_error(500, "Code: 241. DB::Exception: Memory limit exceeded", 241))
    with pytest.raises(QueryFailedError, match="Memory limit exceeded") as caught:
        Task("SELECT 1 AS read_me").run()
    assert caught.value.code == 241


# --- the cluster: each shard behind a proxy of its own


@pytest.fixture
def two(gateway: RunningGateway) -> Iterator[tuple[TcpProxy, TcpProxy, Cluster]]:
    with TcpProxy("127.0.0.1", gateway.port) as one, TcpProxy("127.0.0.1", gateway.port) as other:
        shards = tuple(
            ClickHouseShard(number, "127.0.0.1", at.port, f"shard_{number}")
            for number, at in enumerate((one, other), start=1)
        )
        endpoint = ClickHouseEndpoint(shards, USER, PASSWORD, options={"send_receive_timeout": 120})
        with Cluster(endpoint) as cluster:
            yield one, other, cluster


def test_one_shard_of_two_that_is_down_is_named_and_no_other(two: tuple[TcpProxy, TcpProxy, Cluster]) -> None:
    _, other, cluster = two
    other.refuse()
    with pytest.raises(ClusterError, match=rf"shard 2 \(127.0.0.1:{other.port}") as caught:
        cluster.every_shard(Statement("SELECT 1"))
    assert "shard 1" not in str(caught.value)
    assert cluster.any_host(Statement("SELECT 1")) == [(1,)]
    other.listen()
    assert cluster.every_shard(Statement("SELECT 1")) == {1: [(1,)], 2: [(1,)]}


def test_the_trigger_does_not_wait_for_ever_for_a_server_that_stalls(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, proxy.port, send_receive_timeout=1)
    monkeypatch.setattr(triggers, "_UNREACHABLE_SECONDS", 2.0)
    proxy.fault = Fault(b"system.processes", stall=True)
    trigger = ClickHouseQueryTrigger(
        clickhouse_conn_id="clickhouse_cluster_default", query_id="q", since=time.time(), poll_interval=0.1
    )
    event = asyncio.run(asyncio.wait_for(trigger.wait(), 60))
    assert event["state"] == "unreachable"
    assert str(proxy.port) in event["error"]


def test_two_hosts_that_stall_are_waited_for_side_by_side(two: tuple[TcpProxy, TcpProxy, Cluster]) -> None:
    """Each connects while the other does: with one lock for all the second would not have come to the server."""
    one, other, cluster = two
    one.fault = other.fault = Fault(stall=True)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            cluster.every_shard(Statement("SELECT 1"))
        except ClusterError as e:
            errors.append(e)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: one.hits and other.hits, 60)
    one.refuse()
    other.refuse()
    thread.join()
    assert len(errors[0].errors) == 2  # type: ignore[attr-defined]
