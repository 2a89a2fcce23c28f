"""The gateway over HTTP: inserts, whole or not at all, and compressed bodies."""

from __future__ import annotations

import gzip
import json
from itertools import repeat

import httpx
import lz4.frame
import pytest

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway, error_code, wait_until

pytest_plugins = ["support.clickhouse_fixtures"]


def test_lz4_both_ways(gateway: RunningGateway, table: str) -> None:
    rows = b"".join(b"%d\trow\n" % n for n in range(100_000))
    frames = b"".join(lz4.frame.compress(rows[at : at + 300_000]) for at in range(0, len(rows), 300_000))
    assert gateway.post(frames, {"Content-Encoding": "lz4"}, query=f"INSERT INTO {table} FORMAT TSV").status_code == 200
    answer = gateway.post(f"SELECT * FROM {table} ORDER BY n", {"Accept-Encoding": "gzip, lz4;q=1"})
    assert answer.headers["Content-Encoding"] == "lz4"
    assert lz4.frame.decompress(answer.content) == rows
    plain = gateway.post(f"SELECT * FROM {table} ORDER BY n", {"Accept-Encoding": "lz4"}, enable_http_compression=0)
    assert plain.content == rows


def test_other_compressions_are_refused_or_left_out(gateway: RunningGateway) -> None:
    assert error_code(gateway.post(gzip.compress(b"SELECT 1"), {"Content-Encoding": "gzip"})) == 432
    answer = gateway.post("SELECT 1", {"Accept-Encoding": "gzip, zstd, br"})
    assert "Content-Encoding" not in answer.headers
    assert answer.text == "1\n"


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_compressed_insert_that_is_not_whole_inserts_nothing(gateway: RunningGateway, table: str, cut: int) -> None:
    body = lz4.frame.compress(b"1\ta\n" * 100_000)[:-cut]
    assert error_code(gateway.post(body, {"Content-Encoding": "lz4"}, query=f"INSERT INTO {table} FORMAT TSV")) == 271
    assert (
        error_code(gateway.post(b"not lz4", {"Content-Encoding": "lz4"}, query=f"INSERT INTO {table} FORMAT TSV"))
        == 271
    )
    assert gateway.sql(f"SELECT count() FROM {table}") == "0"


def test_insert_with_sql_and_binary_data_in_one_body(gateway: RunningGateway, table: str) -> None:
    native = gateway.post("SELECT toUInt64(number) AS n, 'it''s; FORMAT' AS s FROM numbers(10) FORMAT Native").content
    body = f"/* INSERT INTO x VALUES */ INSERT INTO {table} (n, s) FORMAT Native\n".encode() + native

    def slowly(size: int) -> httpx.Response:
        return gateway.post(body[at : at + size] for at in range(0, len(body), size))

    for size in (len(body), 1, 13):
        assert slowly(size).status_code == 200
    assert gateway.sql(f"SELECT count(), uniqExact(n) FROM {table}") == "30\t10"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("INSERT INTO {} FORMAT TSV", "1\ta\n2\tb\n"),
        ("INSERT INTO {} (s, n) FORMAT CSV", "a,1\nb,2"),
        ("INSERT INTO {} FORMAT JSONEachRow", '{"n":1,"s":"a"} {"n":2,"s":"b"}'),
        ("INSERT INTO {} VALUES", "(1, 'a'), (1 + 1, lower('B'))"),
        ("INSERT INTO {}", "VALUES (1, 'a'), (2, 'b');"),
        ("", "INSERT INTO {} VALUES (1, 'a'), (2, 'b')"),
        ("", "INSERT INTO {} SETTINGS async_insert = 1 VALUES (1, 'a'), (2, 'b')"),
        ("", "INSERT INTO {} SELECT 1, 'a' UNION ALL SELECT 2, 'b'"),
        ("", "INSERT INTO {} (SELECT 1, 'a' UNION ALL SELECT 2, 'b')"),
        ("", "WITH 1 AS one INSERT INTO {} SELECT one, 'a' UNION ALL SELECT 2, 'b'"),
    ],
)
def test_insert_in_every_form(gateway: RunningGateway, table: str, query: str, body: str) -> None:
    response = gateway.post(body.replace("{}", table), **({"query": query.replace("{}", table)} if query else {}))
    assert response.status_code == 200, response.text
    assert gateway.sql(f"SELECT * FROM {table} ORDER BY n") == "1\ta\n2\tb"


@pytest.mark.parametrize("format_", ["Parquet", "Arrow", "ORC", "ArrowStream"])
def test_insert_of_what_the_engine_exported(gateway: RunningGateway, table: str, format_: str) -> None:
    exported = gateway.post(f"SELECT number AS n, toString(n) AS s FROM numbers(100000) FORMAT {format_}").content
    sql = f"INSERT INTO {table} (s, n) SETTINGS max_threads = 1 FORMAT {format_}"
    response = gateway.post(exported, query=sql)
    assert response.status_code == 200, response.text
    assert json.loads(response.headers["X-ClickHouse-Summary"])["written_rows"] == "100000"
    assert gateway.sql(f"SELECT count(), uniqExact(n), countIf(s != toString(n)) FROM {table}") == "100000\t100000\t0"
    assert error_code(gateway.post(exported[: len(exported) // 2], query=sql))
    assert not list((gateway.data / "spool").iterdir())


def test_insert_through_input_is_refused_not_lost(gateway: RunningGateway, table: str) -> None:
    sql = f"INSERT INTO {table} SELECT n, s FROM input('n UInt64, s String') FORMAT CSV\n1,a\n"
    assert error_code(gateway.post(sql)) == 48


def test_insert_with_parameters(gateway: RunningGateway, table: str) -> None:
    sql = f"INSERT INTO {table} VALUES ({{n:UInt64}}, {{s:String}}), (8, 'system.processes')"
    assert gateway.post(sql, param_n=7, param_s="it's (7); DROP").status_code == 200
    rows = "INSERT INTO {t:Identifier} FORMAT TSV\n9\tx FROM system.processes -- kept"
    assert gateway.post(rows, param_t=table.split(".")[1].strip("`"), database="shard_1").status_code == 200
    expected = "7\tit\\'s (7); DROP\n8\tsystem.processes\n9\tx FROM system.processes -- kept"
    assert gateway.sql(f"SELECT * FROM {table} ORDER BY n") == expected


def test_insert_with_a_bad_row_inserts_nothing(gateway: RunningGateway, table: str) -> None:
    rows = b"1\ta\n" * 200_000 + b"bad\n"
    assert error_code(gateway.post(rows, query=f"INSERT INTO {table} FORMAT TSV")) == 27
    assert gateway.sql(f"SELECT count() FROM {table}") == "0"


def test_insert_into_a_missing_table_says_so_whatever_follows(gateway: RunningGateway) -> None:
    rows = repeat(b"1\ta\n" * 10_000, 200)
    assert error_code(gateway.post(rows, query="INSERT INTO nonesuch FORMAT TSV")) == 60


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_insert_cut_by_its_client_inserts_nothing(gateway: RunningGateway, table: str, framing: str) -> None:
    token = httpx.BasicAuth(USER, PASSWORD)._auth_header
    query_id = f"cut-{framing}"
    target = httpx.URL("/", params={"query": f"INSERT INTO {table} FORMAT TSV", "query_id": query_id}).raw_path.decode()
    length = "Transfer-Encoding: chunked" if framing == "chunked" else "Content-Length: 100000000"
    rows = b"1\ta\n" * 100_000
    body = b"%x\r\n%b\r\n" % (len(rows), rows) if framing == "chunked" else rows
    s = gateway.connect(
        f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n{length}\r\n\r\n".encode() + body
    )
    wait_until(lambda: gateway.running(query_id))
    s.close()
    wait_until(lambda: not gateway.running(query_id))
    assert gateway.sql(f"SELECT count() FROM {table}") == "0"


def test_a_repeated_block_with_the_same_token_is_inserted_once(gateway: RunningGateway, table: str) -> None:
    gateway.sql(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 100")
    for _ in range(2):
        gateway.post("1\ta\n", query=f"INSERT INTO {table} FORMAT TSV", insert_deduplication_token="once")
    assert gateway.sql(f"SELECT count() FROM {table}") == "1"
