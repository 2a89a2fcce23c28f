"""The gateway over HTTP: answers of any size, queries by their ids, clients that leave, sessions."""

from __future__ import annotations

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway, error_code, wait_until

pytest_plugins = ["support.clickhouse_fixtures"]

# Until it is killed; one row a block, so that it is asked after each whether it was
SLOW = "SELECT sleepEachRow(0.1) FROM numbers(100000) SETTINGS max_block_size = 1"
BIG = "SELECT number, toString(number) FROM numbers({})"


@pytest.mark.parametrize(
    "format_", ["TSV", "CSV", "JSONEachRow", "RowBinary", "Native", "JSONCompact", "CSVWithNames", "Parquet", "Arrow"]
)
def test_a_large_answer_is_the_same_streamed_or_whole(gateway: RunningGateway, format_: str) -> None:
    sql = f"{BIG.format(300_000)} SETTINGS max_threads = 1 FORMAT {format_}"
    streamed, whole = gateway.post(sql), gateway.post(sql, wait_end_of_query=1)
    assert streamed.headers.get("Transfer-Encoding") == "chunked"
    assert "Content-Length" in whole.headers
    if not format_.startswith(("JSONC", "Parquet")):
        assert streamed.content == whole.content
    assert json.loads(whole.headers["X-ClickHouse-Summary"])["result_rows"] == "300000"


def test_arrow_streams_are_one_stream(gateway: RunningGateway) -> None:
    import pyarrow as pa

    answer = gateway.post(f"{BIG.format(200_000)} FORMAT ArrowStream").content
    found = pa.ipc.open_stream(answer).read_all()
    assert found.column(0).to_pylist() == list(range(200_000))
    empty = gateway.post(f"{BIG.format(0)} FORMAT ArrowStream").content
    assert pa.ipc.open_stream(empty).read_all().num_rows == 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT number % 3 AS k, count() FROM numbers(10) GROUP BY k WITH TOTALS ORDER BY k FORMAT TSV",
        "SELECT number % 3 AS k, count() FROM numbers(10) GROUP BY k ORDER BY k SETTINGS extremes = 1 FORMAT TSV",
        "SELECT number AS k FROM numbers(200000) SETTINGS output_format_json_array_of_rows = 1 FORMAT JSONEachRow",
    ],
)
def test_answers_that_are_more_than_their_rows_are_whole(gateway: RunningGateway, sql: str) -> None:
    answer = gateway.sql(sql)
    if "JSON" in sql:
        assert len(json.loads(answer)) == 200_000
    else:
        assert answer.startswith("0\t4\n1\t3\n2\t3\n\n")


def test_an_error_in_a_streamed_answer_cuts_it(gateway: RunningGateway) -> None:
    sql = "SELECT throwIf(number = 3000000), number FROM numbers(5000000) SETTINGS max_threads = 1"
    with httpx.stream("POST", gateway.url, content=sql, auth=(USER, PASSWORD)) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            response.read()
    assert error_code(gateway.post(sql, wait_end_of_query=1)) == 395
    assert error_code(gateway.post(sql + " FORMAT JSON")) == 395


def test_http_1_0_gets_whole_answers(gateway: RunningGateway) -> None:
    token = httpx.BasicAuth(USER, PASSWORD)._auth_header
    target = httpx.URL(
        "/", params={"query": "SELECT throwIf(number = 3000000) FROM numbers(5000000)"}
    ).raw_path.decode()
    with gateway.connect(f"GET {target} HTTP/1.0\r\nAuthorization: {token}\r\n\r\n".encode()) as s:
        assert b" 500 " in s.recv(100)


def test_a_query_is_known_by_its_clients_id(gateway: RunningGateway) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(gateway.post, f"{SLOW} -- in flight", query_id="mine's", log_comment="a comment")
        wait_until(lambda: gateway.running("mine's"))
        shown = gateway.sql("SELECT Settings['log_comment'] FROM system.processes AS p WHERE p.query_id = 'mine''s'")
        assert shown == "a comment"
        assert error_code(gateway.post("SELECT 1", query_id="mine's")) == 216
        gateway.sql("KILL QUERY WHERE query_id = 'mine''s' SYNC")
        assert error_code(slow.result()) == 394
    gateway.sql("SELECT 'again'", query_id="it's", log_comment="a comment")
    gateway.sql("SYSTEM FLUSH LOGS")
    logged = (
        "SELECT type, query_kind FROM `system`.query_log WHERE query_id = 'it''s' AND log_comment != '' ORDER BY ALL"
    )
    assert gateway.sql(logged) == "QueryStart\tSelect\nQueryFinish\tSelect"
    assert gateway.sql("SELECT 'system.processes FROM system.query_log'") == "system.processes FROM system.query_log"


def test_a_query_id_and_a_session_are_free_as_soon_as_the_answer_is_there(gateway: RunningGateway) -> None:
    with httpx.Client(base_url=gateway.url, auth=(USER, PASSWORD)) as client:
        for rows in (1, 300_000) * 20:
            sql = f"SELECT number, toString(number) FROM numbers({rows})"
            assert client.post("/", content=sql, params={"query_id": "again", "session_id": "again"}).status_code == 200


def test_the_gateways_own_statements_are_not_seen(gateway: RunningGateway) -> None:
    query_id = str(uuid.uuid4())
    gateway.sql("SELECT 1", session_id=query_id, query_id=query_id, database="shard_1", max_threads=1)
    gateway.sql("SYSTEM FLUSH LOGS")
    assert (
        gateway.sql(f"SELECT count(), any(query) FROM system.query_log WHERE query_id = '{query_id}'") == "2\tSELECT 1"
    )
    assert gateway.sql("SELECT count() FROM system.query_log WHERE query LIKE '/* gate%'") == "0"
    assert gateway.sql("SELECT count() FROM system.processes") == "1"


def test_a_query_id_is_no_header_of_the_clients_making(gateway: RunningGateway) -> None:
    assert error_code(gateway.post("SELECT 1", query_id="a\r\nX-Evil: 1")) == 36
    assert gateway.post("SELECT 1", query_id="ünï").headers["X-ClickHouse-Query-Id"] == "ünï"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count() FROM numbers(100000000000) WHERE NOT ignore(number)",
        "SELECT number FROM system.numbers FORMAT Null",
    ],
)
def test_kill_query_ends_it(gateway: RunningGateway, sql: str) -> None:
    query_id = str(uuid.uuid4())
    with ThreadPoolExecutor() as pool:
        endless = pool.submit(gateway.post, sql, query_id=query_id)
        wait_until(lambda: gateway.running(query_id))
        gateway.sql(f"KILL QUERY WHERE query_id = '{query_id}' SYNC")
        assert error_code(endless.result()) == 394


def test_several_queries_at_once(gateway: RunningGateway) -> None:
    mine = "query_id LIKE 'together-%'"
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(gateway.post, SLOW, query_id=f"together-{n}") for n in range(8)]
        wait_until(lambda: gateway.sql(f"SELECT count() FROM system.processes WHERE {mine}") == "8")
        gateway.sql(f"KILL QUERY WHERE {mine} SYNC")
    assert [error_code(answer.result()) for answer in answers] == [394] * 8


def leave(gateway: RunningGateway, sql: str, query_id: str, **params: str) -> None:
    """Start a query and leave it."""
    token = httpx.BasicAuth(USER, PASSWORD)._auth_header
    target = httpx.URL("/", params={"query_id": query_id, **params}).raw_path.decode()
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: {len(sql)}\r\n\r\n"
    with gateway.connect(head.encode() + sql.encode()):
        wait_until(lambda: gateway.running(query_id))


def test_a_select_ends_with_its_client_if_asked_to(gateway: RunningGateway) -> None:
    query_id = str(uuid.uuid4())
    sql = "SELECT count() FROM numbers(100000000000) WHERE NOT ignore(number)"
    leave(gateway, sql, query_id, cancel_http_readonly_queries_on_client_close="1")
    wait_until(lambda: not gateway.running(query_id))


def test_a_select_goes_on_without_its_client_if_not(gateway: RunningGateway) -> None:
    query_id = str(uuid.uuid4())
    leave(gateway, "SELECT sleepEachRow(0.5) FROM numbers(6) SETTINGS max_block_size = 1", query_id)
    wait_until(lambda: not gateway.running(query_id))
    gateway.sql("SYSTEM FLUSH LOGS")
    assert (
        gateway.sql(f"SELECT count() FROM system.query_log WHERE query_id = '{query_id}' AND type = 'QueryFinish'")
        == "1"
    )


def test_a_streaming_select_ends_when_nobody_reads_it(gateway: RunningGateway) -> None:
    query_id = str(uuid.uuid4())
    leave(gateway, "SELECT number FROM system.numbers", query_id)
    wait_until(lambda: not gateway.running(query_id))


def test_insert_select_survives_its_client(gateway: RunningGateway, table: str) -> None:
    query_id = str(uuid.uuid4())
    sql = f"INSERT INTO {table} SELECT number, toString(sleepEachRow(0.5)) FROM numbers(6) SETTINGS max_block_size = 1"
    leave(gateway, sql, query_id, cancel_http_readonly_queries_on_client_close="1")
    wait_until(lambda: gateway.sql(f"SELECT count() FROM {table}") == "6")


def test_a_session_keeps_what_was_set_in_it(gateway: RunningGateway) -> None:
    name = {"session_id": str(uuid.uuid4())}
    gateway.sql("CREATE TEMPORARY TABLE t (n Int8)", **name)
    gateway.sql("INSERT INTO t VALUES (7)", **name)
    gateway.sql("SET max_block_size = 77, log_comment = 'it''s'", **name)
    gateway.sql("USE shard_2", **name)
    settings = "getSetting('max_block_size'), getSetting('log_comment'), currentDatabase()"
    assert gateway.sql(f"SELECT n, {settings} FROM t", **name) == "7\t77\tit\\'s\tshard_2"
    once = {"max_block_size": 78, "log_comment": "x", "database": "shard_1", "max_threads": 1}
    assert gateway.sql(f"SELECT {settings}", **name, **once) == "78\tx\tshard_1"
    assert gateway.sql(f"SELECT {settings}", **name) == "77\tit\\'s\tshard_2"
    assert error_code(gateway.post("SELECT * FROM t")) == 60


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT throwIf(number = 200000), number FROM numbers(1000000)",
        "SELECT throwIf(number = 200000), number FROM numbers(1000000) FORMAT JSON",
        "EXPLAIN SELECT nonesuch",
        "INSERT INTO FUNCTION null('n UInt8') FORMAT TSV\nx",
    ],
)
def test_a_session_survives_a_failed_query_untouched(gateway: RunningGateway, sql: str) -> None:
    name = {"session_id": str(uuid.uuid4())}
    gateway.sql("SET max_block_size = 1000", **name)
    assert error_code(gateway.post(sql, **name, wait_end_of_query=1, max_threads=1))
    assert gateway.sql("SELECT 'clean', getSetting('max_block_size')", **name) == "clean\t1000"
    assert gateway.sql("SHOW DATABASES LIKE 'shard_1'", **name) == "shard_1"


def test_a_session_is_for_one_query_at_a_time(gateway: RunningGateway) -> None:
    name = {"session_id": str(uuid.uuid4())}
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(gateway.post, SLOW, query_id=name["session_id"], **name)
        wait_until(lambda: gateway.running(name["session_id"]))
        assert error_code(gateway.post("SELECT 1", **name)) == 373
        gateway.sql(f"KILL QUERY WHERE query_id = '{name['session_id']}' SYNC")
        assert error_code(slow.result()) == 394
    assert gateway.sql("SELECT 1", **name) == "1"


def test_a_session_ends_after_its_timeout(gateway: RunningGateway) -> None:
    name, longer = {"session_id": str(uuid.uuid4())}, {"session_id": str(uuid.uuid4())}
    gateway.sql("SET max_block_size = 77", session_timeout=600, **longer)
    gateway.sql("SET max_block_size = 77", session_timeout=1, **name)
    assert gateway.sql("SELECT 1", session_timeout=600, session_check=1, **longer) == "1"
    threading.Event().wait(1.2)  # to look is to keep it alive
    assert error_code(gateway.post("SELECT 1", session_check=1, **name)) == 372
    assert gateway.sql("SELECT getSetting('max_block_size') != 77", **name) == "1"
    assert error_code(gateway.post("SELECT 1", session_timeout=100_000, **name)) == 374
