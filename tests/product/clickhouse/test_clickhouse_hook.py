"""ClickHouseHook against a running server: each defect of the official hook, which is shown first, and what is new."""

from __future__ import annotations

import itertools
import json
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pytest
from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook as OfficialHook
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway, free_port, wait_until
from trilake.clickhouse.cluster import ClusterError
from trilake.errors import ConfigurationError
from trilake.hooks.clickhouse import ClickHouseHook

LONG = "SELECT count() FROM numbers(100000000000) WHERE NOT ignore(cityHash64(number))"

pytest_plugins = ["support.clickhouse_fixtures"]


@pytest.fixture(autouse=True)
def connections(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OFFICIAL", connection(gateway.port, "clickhouse"))
    shards = [{"database": "shard_1"}, {"database": "shard_2"}]
    monkeypatch.setenv("AIRFLOW_CONN_OURS", connection(gateway.port, "clickhouse_cluster", shards=shards))


def connection(port: int | None, kind: str, **extra: Any) -> str:
    document = {"conn_type": kind, "host": "127.0.0.1", "login": USER, "password": PASSWORD, "schema": "analytics"}
    return json.dumps(document | ({"port": port} if port else {}) | {"extra": extra})


def context(**changes: Any) -> Any:
    instance = {"dag_id": "flights", "task_id": "count", "run_id": "manual__2013", "map_index": -1, "try_number": 2}
    started = datetime.now(UTC)
    task = SimpleNamespace(execution_timeout=changes.pop("execution_timeout", None))
    return {"ti": SimpleNamespace(**(instance | {"start_date": started} | changes)), "task": task}


@pytest.fixture
def hook() -> ClickHouseHook:
    return ClickHouseHook(clickhouse_conn_id="ours", context=context())


@pytest.fixture(params=["ours", "official"])
def any_hook(request: pytest.FixtureRequest) -> ClickHouseHook:
    """For a connection of either type."""
    return ClickHouseHook(clickhouse_conn_id=request.param)


def count(gateway: RunningGateway, table: str) -> int:
    return int(gateway.sql(f"SELECT count() FROM {table}"))


def log_of(gateway: RunningGateway, what: str, column: str) -> list[str]:
    """A column of the query log, for finished queries whose text has `what`."""
    gateway.sql("SYSTEM FLUSH LOGS")
    return gateway.sql(
        f"SELECT {column} FROM system.query_log WHERE type = 'QueryFinish' AND query LIKE {{what:String}} "
        "AND query NOT LIKE '%query_log%' ORDER BY event_time_microseconds",
        param_what=f"%{what}%",
    ).splitlines()


# --- the official hook's defects


def test_the_operators_database_is_the_one_that_is_asked() -> None:
    def database_of(conn_id: str, **options: Any) -> Any:
        operator = SQLExecuteQueryOperator(
            task_id="t", conn_id=conn_id, sql="SELECT currentDatabase()", split_statements=False, **options
        )
        return operator.get_db_hook().get_first("SELECT currentDatabase()")

    assert database_of("official", database="shard_2") == ("analytics",), "the official hook is fixed"
    assert database_of("ours", database="shard_2") == ("shard_2",)
    assert database_of("ours", hook_params={"database": "shard_2"}) == ("shard_2",)
    assert database_of("ours") == ("analytics",)


def test_settings_may_be_the_text_that_the_connection_form_leaves(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = '{"max_threads": 3}'

    def threads_of(kind: str) -> Any:
        monkeypatch.setenv("AIRFLOW_CONN_FORM", connection(gateway.port, kind, session_settings=settings))
        hook = SQLExecuteQueryOperator(task_id="t", conn_id="form", sql="SELECT 1").get_db_hook()
        return hook.get_first("SELECT getSetting('max_threads')")[0]

    with pytest.raises(TypeError):
        threads_of("clickhouse")
    assert threads_of("clickhouse_cluster") == 3


def test_settings_that_are_no_object_are_refused_without_being_shown() -> None:
    for text in ("{secret", '["secret"]'):
        with pytest.raises(ConfigurationError, match="session_settings is not a JSON object") as error:
            ClickHouseHook(session_settings=text)
        assert "secret" not in str(error.value)


def test_rows_go_in_blocks(gateway: RunningGateway, table: str, hook: ClickHouseHook) -> None:
    rows = [(n, f"row {n}") for n in range(5)]
    OfficialHook(clickhouse_conn_id="official").insert_rows(table, rows, ["n", "s"])
    insert = f"INSERT INTO {table}"
    assert len(log_of(gateway, insert, "1")) == 5, "the official hook is fixed"
    gateway.sql(f"TRUNCATE TABLE {table}")
    assert hook.insert_rows(table, iter(rows), ["n", "s"], commit_every=3) == 5
    assert count(gateway, table) == 5
    ids = log_of(gateway, insert, "query_id")[5:]
    assert len(set(ids)) == 2
    assert all(i.startswith("flights:count:manual__2013:-1:2:") for i in ids)


def test_rows_go_in_without_columns_named_and_none_is_no_insert(
    gateway: RunningGateway, table: str, any_hook: ClickHouseHook
) -> None:
    assert any_hook.insert_rows(table, [(1, "a"), (2, "b")], commit_every=0) == 2
    assert any_hook.insert_rows(table, []) == 0
    assert gateway.sql(f"SELECT * FROM {table} ORDER BY n") == "1\ta\n2\tb"


def test_tls_without_a_port_is_the_port_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, hook_class, port in (("clickhouse", OfficialHook, 8123), ("clickhouse_cluster", ClickHouseHook, 8443)):
        monkeypatch.setenv("AIRFLOW_CONN_TLS", connection(None, kind, secure=True))
        assert hook_class(clickhouse_conn_id="tls")._get_client_kwargs()["port"] == port
    for secure, port in (("true", 8443), ("false", 8123)):
        monkeypatch.setenv("AIRFLOW_CONN_TLS", connection(None, "clickhouse_cluster", secure=secure))
        assert ClickHouseHook(clickhouse_conn_id="tls")._get_client_kwargs()["port"] == port


def test_replace_is_refused(gateway: RunningGateway, table: str, hook: ClickHouseHook) -> None:
    with pytest.raises(Exception, match=r"[Cc]ode: 62"):  # the server's syntax error
        OfficialHook(clickhouse_conn_id="official").insert_rows(table, [(1, "a")], ["n", "s"], replace=True)
    with pytest.raises(ConfigurationError, match="has no REPLACE INTO"):
        hook.insert_rows(table, [(1, "a")], ["n", "s"], replace=True)
    assert count(gateway, table) == 0


def test_percent_signs_stay_as_written(hook: ClickHouseHook) -> None:
    sql = "SELECT 'a%%b', '%d', formatDateTime(toDate('2013-01-02'), '%%Y')"
    assert OfficialHook(clickhouse_conn_id="official").get_first(sql)[0] == "a%b", "the official hook is fixed"
    assert hook.get_first(sql) == ("a%%b", "%d", "%Y")
    assert hook.get_df(sql).iloc[0].tolist() == ["a%%b", "%d", "%Y"]
    assert hook.get_first("SELECT %(a)s, '%%'", {"a": "x%y"}) == ("x%y", "%")


def test_a_table_is_dumped_and_loaded_as_a_file(
    gateway: RunningGateway, table: str, hook: ClickHouseHook, tmp_path: Path
) -> None:
    file = tmp_path / "dump.tsv"
    official = OfficialHook(clickhouse_conn_id="official")
    for method in (official.bulk_dump, official.bulk_load):
        with pytest.raises(NotImplementedError):
            method(table, str(file))
    rows = [(n, "tab\there, line\nend \\ and '") for n in range(1000)]
    hook.insert_rows(table, rows)
    hook.bulk_dump(table, str(file))
    gateway.sql(f"TRUNCATE TABLE {table}")
    hook.bulk_load(table, str(file))
    assert hook.get_records(f"SELECT * FROM {table} ORDER BY n") == rows


def test_a_dump_that_fails_leaves_no_file(hook: ClickHouseHook, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"throwIf|IncompleteRead"):
        hook.bulk_dump("(SELECT throwIf(number > 3000000) FROM numbers(4000000))", str(tmp_path / "dump.tsv"))
    assert list(tmp_path.iterdir()) == []


def test_the_address_holds_names_and_settings_as_they_are(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy import text
    from sqlalchemy.engine import make_url

    document = json.loads(connection(gateway.port, "clickhouse", session_settings={"max_threads": 3}))
    monkeypatch.setenv("AIRFLOW_CONN_ODD", json.dumps({**document, "login": "a@b/c:d"}))
    assert make_url(OfficialHook(clickhouse_conn_id="odd").get_uri()).username != "a@b/c:d", "it is fixed"
    url = make_url(ClickHouseHook(clickhouse_conn_id="odd").get_uri())
    assert (url.username, url.password, url.port) == ("a@b/c:d", PASSWORD, gateway.port)

    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", json.dumps(document))
    assert "max_threads" not in OfficialHook(clickhouse_conn_id="plain").get_uri(), "the official hook is fixed"
    engine = ClickHouseHook(clickhouse_conn_id="plain", context=context()).get_sqlalchemy_engine()
    with engine.connect() as alchemy:
        row = alchemy.execute(text("SELECT getSetting('max_threads'), getSetting('log_comment')")).one()
    assert row[0] == 3
    assert json.loads(row[1])["dag"] == "flights"


def test_two_queries_of_one_client_run_side_by_side() -> None:
    def both(hook: OfficialHook) -> list[Exception]:
        errors: list[Exception] = []
        client = hook.get_client()

        def one() -> None:
            try:
                client.query("SELECT sleep(0.5)")
            except Exception as e:
                errors.append(e)

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        return errors

    assert both(OfficialHook(clickhouse_conn_id="official")), "the official hook is fixed"
    assert not both(ClickHouseHook(clickhouse_conn_id="ours"))


# --- what every statement says, and how long it may take


def test_every_statement_says_whose_it_is(gateway: RunningGateway, table: str, hook: ClickHouseHook) -> None:
    hook.run([f"INSERT INTO {table} SELECT 1, 'whose'", f"SELECT 'whose', count() FROM {table}"])
    hook.insert_df(table, pd.DataFrame({"n": [2], "s": ["whose"]}))
    ids, comments = (log_of(gateway, table, column) for column in ("query_id", "log_comment"))
    mine = [json.loads(comment) for comment in comments if comment]
    assert len(mine) >= 3
    whose = {"dag": "flights", "task": "count", "run": "manual__2013", "map_index": -1, "try": 2}
    assert all(comment == whose for comment in mine)
    assert sum(i.startswith("flights:count:manual__2013:-1:2:") for i in ids) >= 3
    assert len(set(ids)) == len(ids)


def test_a_query_never_outlives_its_task() -> None:
    limited = ClickHouseHook(clickhouse_conn_id="ours", context=context(execution_timeout=timedelta(seconds=900)))
    ask = "SELECT toInt64(getSetting('max_execution_time'))"
    assert 0 < limited.get_first(ask)[0] <= 900
    narrower = ClickHouseHook(
        clickhouse_conn_id="ours",
        context=context(execution_timeout=timedelta(seconds=90)),
        session_settings={"max_execution_time": 7},
    )
    assert narrower.get_first(ask) == (7,)
    late = context(execution_timeout=timedelta(seconds=2), start_date=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(Exception, match="159"):
        ClickHouseHook(clickhouse_conn_id="ours", context=late).run(LONG)


def test_kill_ends_one_query_by_its_id_or_its_comment(gateway: RunningGateway, any_hook: ClickHouseHook) -> None:
    def start(query_id: str, token: str) -> threading.Thread:
        def run() -> None:
            gateway.post(
                LONG,
                query_id=query_id,
                log_comment=json.dumps({"submission": token}),
            )

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: gateway.running(query_id))
        return thread

    first, second, third = (start(f"kill-{n}", f"it's {n}") for n in range(3))
    assert any_hook.kill("kill-0") == 1
    assert (gateway.running("kill-0"), gateway.running("kill-1")) == (False, True)
    assert any_hook.kill(comment={"submission": "it's 1"}) == 1
    assert (gateway.running("kill-1"), gateway.running("kill-2")) == (False, True)
    assert any_hook.kill("kill-2") == 1
    assert any_hook.kill("kill-2") == 0
    for thread in (first, second, third):
        thread.join()
    with pytest.raises(ConfigurationError):
        any_hook.kill()


def test_kill_reaches_the_hosts_that_answer(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [{"database": "shard_1", "port": free_port()}, {"database": "shard_2"}]
    monkeypatch.setenv("AIRFLOW_CONN_HALF", connection(gateway.port, "clickhouse_cluster", shards=shards))
    thread = threading.Thread(target=gateway.post, args=(LONG,), kwargs={"query_id": "half"})
    thread.start()
    wait_until(lambda: gateway.running("half"))
    with pytest.raises(ClusterError, match=r"shard 1 .* does not answer"):
        ClickHouseHook(clickhouse_conn_id="half").kill("half")
    assert not gateway.running("half")
    thread.join()


# --- frames, Arrow, streams


def test_arrow_and_frames_come_back_as_they_went(gateway: RunningGateway, table: str, any_hook: ClickHouseHook) -> None:
    data = pa.table({"n": pa.array(range(10), pa.uint64()), "s": [str(n) for n in range(10)]})
    assert any_hook.insert_arrow(table, data, block_rows=4) == 10
    assert len(log_of(gateway, f"INSERT INTO {table}", "1")) == 3
    found = any_hook.query_arrow(f"SELECT * FROM {table} WHERE n < {{n:UInt64}} ORDER BY n", {"n": 5})
    assert found.column("n").to_pylist() == list(range(5))
    reader = pa.RecordBatchReader.from_batches(data.schema, data.to_batches(max_chunksize=3))
    assert any_hook.insert_arrow(table, reader, block_rows=5) == 10
    frame = any_hook.query_df(f"SELECT * FROM {table} ORDER BY n LIMIT 4")
    assert any_hook.insert_df(table, frame, block_rows=3) == 4
    assert count(gateway, table) == 24


def test_a_stream_takes_no_more_memory_for_more_rows() -> None:
    hook = ClickHouseHook(clickhouse_conn_id="ours", session_settings={"max_block_size": 4096})

    def peak(read: Iterator[Any]) -> int:
        next(read)
        tracemalloc.start()
        for _ in read:
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    def rows(number: int) -> Iterator[Any]:
        return hook.stream_rows("SELECT number, repeat('x', 50) FROM numbers({n:UInt64})", {"n": number})

    few, many = peak(rows(100_000)), peak(rows(400_000))
    assert many < few * 1.5
    allocated = pa.total_allocated_bytes()
    most = 0
    total = 0
    for batch in hook.stream_arrow("SELECT number FROM numbers({n:UInt64})", {"n": 3_000_000}):
        total += batch.num_rows
        most = max(most, pa.total_allocated_bytes() - allocated)
    assert total == 3_000_000
    assert most < 3_000_000 * 8 / 3


def test_a_stream_can_be_left(gateway: RunningGateway, hook: ClickHouseHook) -> None:
    stream = hook.stream_rows("SELECT number AS left_stream FROM numbers(10000000000)")
    assert [row[0] for row in itertools.islice(stream, 3)] == [0, 1, 2]
    stream.close()
    running = "SELECT count() FROM system.processes WHERE query LIKE '%left_stream%' AND query NOT LIKE '%processes%'"
    wait_until(lambda: gateway.sql(running) == "0")


def test_no_secret_is_in_an_error(hook: ClickHouseHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DOWN", connection(free_port(), "clickhouse_cluster", shards=[{"database": "a"}]))
    with pytest.raises(ClusterError, match="does not answer") as error:
        ClickHouseHook(clickhouse_conn_id="down").kill("x")
    assert PASSWORD not in str(error.value)
    assert quote(PASSWORD, safe="") not in str(error.value)
