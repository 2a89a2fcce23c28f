"""The gateway spoken to by hand: what curl and any HTTP client see."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import httpx
import lz4.frame
import pytest
from clickhouse_gateway import PASSWORD, USER, RunningGateway, wait_until

pytest_plugins = ["clickhouse_fixtures"]

BIG = "SELECT number, toString(number) FROM numbers({})"


def code(response: httpx.Response) -> int:
    assert response.status_code != 200, response.text
    found = int(response.headers["X-ClickHouse-Exception-Code"])
    assert response.text.startswith(f"Code: {found}. DB::Exception: ")
    return found


# --- who may enter


@pytest.mark.parametrize(
    ("headers", "params"),
    [
        ({"X-ClickHouse-User": USER, "X-ClickHouse-Key": PASSWORD}, {}),
        ({}, {"user": USER, "password": PASSWORD}),
    ],
)
def test_user_and_password_may_be_in_headers_or_in_the_url(
    gateway: RunningGateway, headers: dict[str, str], params: dict[str, str]
) -> None:
    assert httpx.post(gateway.url, content="SELECT 1", headers=headers, params=params).text == "1\n"


@pytest.mark.parametrize(
    ("auth", "headers"),
    [
        (None, {}),
        ((USER, "wrong"), {}),
        ((USER, ""), {}),
        (("nobody", PASSWORD), {}),
        ((USER, PASSWORD), {"X-ClickHouse-User": USER}),
        (None, {"Authorization": "Bearer x"}),
        (None, {"Authorization": "Basic !!!"}),
    ],
)
def test_anybody_else_is_refused(
    gateway: RunningGateway, auth: tuple[str, str] | None, headers: dict[str, str]
) -> None:
    response = httpx.post(gateway.url, content="SELECT 1", auth=auth, headers=headers)
    assert (response.status_code, code(response)) == (403, 516)
    assert PASSWORD not in response.text


def test_health_needs_no_password_and_other_paths_are_not_there(gateway: RunningGateway) -> None:
    for path in ("ping", "replicas_status", ""):
        assert httpx.get(gateway.url + path).text == "Ok.\n"
    assert httpx.get(gateway.url + "play").status_code == 404
    assert httpx.delete(gateway.url).status_code == 405


def test_secrets_are_in_files_of_this_user_only_and_in_no_answer(gateway: RunningGateway) -> None:
    assert (gateway.data / "engine.xml").stat().st_mode & 0o777 == 0o600
    assert gateway.data.stat().st_mode & 0o077 == 0
    assert "hidden-secret" not in gateway.sql("SELECT * FROM system.named_collections")
    assert gateway.sql("SELECT name FROM system.named_collections") == "lake"
    overridden = gateway.post("SELECT * FROM s3(lake, filename = 'x', url = 'http://127.0.0.1:9/mine/')")
    assert code(overridden) == 36
    assert "Override not allowed" in overridden.text
    assert PASSWORD not in gateway.log.read_text()


# --- requests and answers


def test_query_in_url_in_body_or_in_both(gateway: RunningGateway) -> None:
    assert gateway.get("SELECT 1").text == "1\n"
    assert gateway.sql("SELECT 2") == "2"
    assert gateway.post("+ 2", query="SELECT 1").text == "3\n"
    assert gateway.sql("SELECT 1; -- and nothing else") == "1"


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_curl(gateway: RunningGateway, table: str) -> None:
    def curl(*arguments: str, data: bytes = b"") -> str:
        command = ["curl", "-sS", "--fail-with-body", "-u", f"{USER}:{PASSWORD}", *arguments]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout.decode()

    assert curl(gateway.url, "-d", "SELECT 1 FORMAT CSV") == "1\n"
    insert = f"{gateway.url}?query=INSERT%20INTO%20{table.replace('`', '%60')}%20FORMAT%20CSV"
    rows = b"".join(b"%d,row\n" % n for n in range(300_000))  # curl asks "Expect: 100-continue" for that much
    assert curl(insert, "--data-binary", "@-", data=rows) == ""
    assert curl(gateway.url, "--compressed", "-d", f"SELECT count(), uniqExact(n) FROM {table}") == "300000\t300000\n"


@pytest.mark.parametrize(
    ("sql", "params", "headers", "answer"),
    [
        ("SELECT 1 AS a", {}, {}, "1\n"),
        ("SELECT 1 AS a FORMAT JSONEachRow", {}, {}, '{"a":1}\n'),
        ("SELECT 1 AS a", {"default_format": "JSONEachRow"}, {}, '{"a":1}\n'),
        ("SELECT 1 AS a", {}, {"X-ClickHouse-Format": "CSVWithNames"}, '"a"\n1\n'),
        ("SELECT 1 AS a FORMAT Values", {"default_format": "CSV"}, {}, "(1)"),
        ("SELECT 1 AS a FORMAT TSVWithNames SETTINGS max_threads = 1;", {}, {}, "a\n1\n"),
        ("SELECT 'FORMAT JSON' AS a -- FORMAT XML", {}, {}, "FORMAT JSON\n"),
        ("DESCRIBE (SELECT 1 AS a) FORMAT JSONEachRow", {}, {}, None),
    ],
)
def test_format_is_the_querys_or_the_requests(
    gateway: RunningGateway, sql: str, params: dict[str, str], headers: dict[str, str], answer: str | None
) -> None:
    response = gateway.post(sql, headers, **params)
    assert response.status_code == 200, response.text
    if answer is None:
        assert json.loads(response.text)["name"] == "a"
    else:
        assert response.text == answer


def test_unknown_format_is_the_engines_error(gateway: RunningGateway) -> None:
    assert code(gateway.post("SELECT 1 FORMAT Nonesuch")) == 73
    assert code(gateway.post("SELECT 1", default_format="Nonesuch")) == 73
    assert code(gateway.post("SELECT 1", default_format="TSV\r\nX-Evil: 1")) == 73


def test_database_and_settings_are_the_requests_alone(gateway: RunningGateway) -> None:
    assert (
        gateway.sql("SELECT currentDatabase(), getSetting('max_block_size')", database="shard_2", max_block_size=77)
        == "shard_2\t77"
    )
    assert gateway.sql("SELECT currentDatabase(), getSetting('max_block_size') != 77") == "default\t1"
    assert gateway.post("SELECT currentDatabase()", {"X-ClickHouse-Database": "shard_1"}).text == "shard_1\n"
    assert code(gateway.post("SELECT 1", database="nowhere")) == 81


@pytest.mark.parametrize(
    "value", ["'", "\\", "\\'; DROP DATABASE shard_1; --", "a\nb\tc\0d", "ü漢字", "', max_threads = '1", ""]
)
def test_a_settings_value_is_a_value_whatever_is_in_it(gateway: RunningGateway, value: str) -> None:
    found = gateway.get("SELECT hex(getSetting('log_comment'))", log_comment=value)
    assert bytes.fromhex(found.text.strip()).decode() == value


def test_unknown_or_unfit_settings_are_the_engines_errors(gateway: RunningGateway) -> None:
    assert code(gateway.post("SELECT 1", nonesuch="1")) == 115
    assert code(gateway.post("SELECT 1", **{"max_threads = 1, max_block_size": "1"})) == 115
    assert code(gateway.post("SELECT 1", max_threads="many")) == 27
    assert code(gateway.post("SELECT number FROM numbers(10)", max_result_rows=5)) == 396
    assert code(gateway.post("CREATE TABLE t (n Int8) ENGINE = Memory", readonly=1)) == 164
    for readonly in (1, 2):  # of streamed formats and of whole documents
        for format_ in ("TSV", "JSONCompact", "CSVWithNames"):
            answer = gateway.post(f"SELECT 1 AS n FORMAT {format_}", readonly=readonly)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "name",
    [
        "compress",
        "decompress",
        "client_protocol_version",
        "replace_running_query",
        "http_write_exception_in_output_format",
    ],
)
def test_what_is_not_implemented_is_refused(gateway: RunningGateway, name: str) -> None:
    assert code(gateway.post("SELECT 1", **{name: "1"})) == 48
    assert gateway.sql("SELECT 1", **{name: "0"}) == "1"


def test_roles_and_the_gateways_own_setting_are_unknown(gateway: RunningGateway) -> None:
    assert code(gateway.post("SELECT 1", role="admin")) == 511
    assert code(gateway.post("SELECT 1", stream_like_engine_insert_queue="x")) == 115


def test_parameters_are_typed_values(gateway: RunningGateway) -> None:
    assert gateway.get(
        "SELECT {a:UInt8} + 1, {b:String}, {c:Array(Date)}", param_a="1", param_b="it's; \\'", param_c="['2020-01-02']"
    ).text == ("2\tit\\'s; \\'\t['2020-01-02']\n")
    assert code(gateway.get("SELECT {a:UInt8}", param_a="1); DROP DATABASE shard_1")) == 457
    assert gateway.get("SELECT count() FROM {t:Identifier}.one", param_t="system").text == "1\n"


def test_parameters_may_come_as_a_form(gateway: RunningGateway) -> None:
    many = "[" + ",".join(map(str, range(50_000))) + "]"
    form = {
        "query": (None, "SELECT length({a:Array(UInt32)}), {b:String}"),
        "param_a": (None, many),
        "param_b": (None, "ü\r\n"),
    }
    response = httpx.post(gateway.url, files=form, auth=(USER, PASSWORD))
    assert response.text == "50000\tü\\r\\n\n" or code(response) == 457
    external = {"t": ("t.tsv", b"1\n"), "query": (None, "SELECT * FROM t")}
    assert code(httpx.post(gateway.url, files=external, params={"t_structure": "n Int8"}, auth=(USER, PASSWORD))) == 48


@pytest.mark.parametrize(
    ("sql", "status", "number"),
    [
        ("SELEC 1", 400, 62),
        ("SELECT nonesuch", 400, 47),
        ("SELECT * FROM nonesuch", 404, 60),
        ("SELECT * FROM nowhere.t", 404, 81),
        ("SELECT throwIf(1)", 500, 395),
        ("SELECT 1; SELECT 2", 400, 62),
        ("INSERT INTO shard_1.t VALUES (1); DROP DATABASE shard_1", 404, 60),
        ("DROP TABLE nonesuch; SELECT 1", 400, 62),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", 500, 358),
        ("INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV", 500, 78),
        ("CREATE USER u", 500, 497),
        ("", 400, 62),
    ],
)
def test_errors_have_clickhouses_number_and_status(gateway: RunningGateway, sql: str, status: int, number: int) -> None:
    response = gateway.post(sql, query_id=f"failing-{uuid.uuid4()}")
    assert (response.status_code, code(response)) == (status, number)
    assert response.headers["X-ClickHouse-Query-Id"].startswith("failing-")


def test_a_get_only_reads(gateway: RunningGateway) -> None:
    for sql in (
        "CREATE TABLE t (n Int8) ENGINE = Memory",
        "INSERT INTO t VALUES (1)",
        "SET max_threads = 1",
        "KILL QUERY WHERE 1",
    ):
        assert code(gateway.get(sql)) == 164
    assert gateway.get("EXISTS TABLE system.one").text == "1\n"
    head = httpx.head(gateway.url, params={"query": "SELECT 1"}, auth=(USER, PASSWORD))
    assert (head.status_code, head.content) == (200, b"")


def test_headers_tell_what_was_done(gateway: RunningGateway, table: str) -> None:
    written = gateway.post(f"INSERT INTO {table} SELECT number, 'x' FROM numbers(1000)", query_id="counted")
    summary = json.loads(written.headers["X-ClickHouse-Summary"])
    assert (summary["written_rows"], summary["read_rows"]) == ("1000", "1000")
    assert int(summary["written_bytes"]) > 0
    assert written.headers["X-ClickHouse-Query-Id"] == "counted"
    assert "X-ClickHouse-Format" not in written.headers
    read = gateway.post(f"SELECT n FROM {table} WHERE n < 10 FORMAT CSV")
    summary = json.loads(read.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["result_rows"]) == ("1000", "10")
    assert int(summary["elapsed_ns"]) > 0
    assert read.headers["X-ClickHouse-Format"] == "CSV"
    assert read.headers["X-ClickHouse-Timezone"] == "UTC"
    assert read.headers["X-ClickHouse-Server-Display-Name"]


def test_cluster_and_databases_are_those_of_the_configuration(gateway: RunningGateway) -> None:
    assert (
        gateway.sql("SELECT cluster, shard_num, default_database FROM system.clusters")
        == "trilake\t1\tshard_1\ntrilake\t2\tshard_2"
    )
    assert gateway.sql("SELECT count() FROM system.databases WHERE name IN ('shard_1', 'shard_2', 'analytics')") == "3"


# --- compression


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
    assert code(gateway.post(gzip.compress(b"SELECT 1"), {"Content-Encoding": "gzip"})) == 432
    answer = gateway.post("SELECT 1", {"Accept-Encoding": "gzip, zstd, br"})
    assert "Content-Encoding" not in answer.headers
    assert answer.text == "1\n"


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_compressed_insert_that_is_not_whole_inserts_nothing(gateway: RunningGateway, table: str, cut: int) -> None:
    body = lz4.frame.compress(b"1\ta\n" * 100_000)[:-cut]
    assert code(gateway.post(body, {"Content-Encoding": "lz4"}, query=f"INSERT INTO {table} FORMAT TSV")) == 271
    assert code(gateway.post(b"not lz4", {"Content-Encoding": "lz4"}, query=f"INSERT INTO {table} FORMAT TSV")) == 271
    assert gateway.sql(f"SELECT count() FROM {table}") == "0"


# --- inserts


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
    assert code(gateway.post(exported[: len(exported) // 2], query=sql))
    assert not list((gateway.data / "spool").iterdir())


def test_insert_through_input_is_refused_not_lost(gateway: RunningGateway, table: str) -> None:
    sql = f"INSERT INTO {table} SELECT n, s FROM input('n UInt64, s String') FORMAT CSV\n1,a\n"
    assert code(gateway.post(sql)) == 48


def test_insert_with_parameters(gateway: RunningGateway, table: str) -> None:
    sql = f"INSERT INTO {table} VALUES ({{n:UInt64}}, {{s:String}}), (8, 'system.processes')"
    assert gateway.post(sql, param_n=7, param_s="it's (7); DROP").status_code == 200
    rows = "INSERT INTO {t:Identifier} FORMAT TSV\n9\tx FROM system.processes -- kept"
    assert gateway.post(rows, param_t=table.split(".")[1].strip("`"), database="shard_1").status_code == 200
    expected = "7\tit\\'s (7); DROP\n8\tsystem.processes\n9\tx FROM system.processes -- kept"
    assert gateway.sql(f"SELECT * FROM {table} ORDER BY n") == expected


def test_insert_with_a_bad_row_inserts_nothing(gateway: RunningGateway, table: str) -> None:
    rows = b"1\ta\n" * 200_000 + b"bad\n"
    assert code(gateway.post(rows, query=f"INSERT INTO {table} FORMAT TSV")) == 27
    assert gateway.sql(f"SELECT count() FROM {table}") == "0"


def test_insert_into_a_missing_table_says_so_whatever_follows(gateway: RunningGateway) -> None:
    rows = repeat(b"1\ta\n" * 10_000, 200)
    assert code(gateway.post(rows, query="INSERT INTO nonesuch FORMAT TSV")) == 60


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


# --- answers of any size


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
    assert code(gateway.post(sql, wait_end_of_query=1)) == 395
    assert code(gateway.post(sql + " FORMAT JSON")) == 395


def test_http_1_0_gets_whole_answers(gateway: RunningGateway) -> None:
    token = httpx.BasicAuth(USER, PASSWORD)._auth_header
    target = httpx.URL(
        "/", params={"query": "SELECT throwIf(number = 3000000) FROM numbers(5000000)"}
    ).raw_path.decode()
    with gateway.connect(f"GET {target} HTTP/1.0\r\nAuthorization: {token}\r\n\r\n".encode()) as s:
        assert b" 500 " in s.recv(100)


# --- query ids


def test_a_query_is_known_by_its_clients_id(gateway: RunningGateway) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(gateway.post, "SELECT sleep(1), 'in flight'", query_id="mine's", log_comment="a comment")
        wait_until(lambda: gateway.running("mine's"))
        shown = gateway.sql("SELECT Settings['log_comment'] FROM system.processes AS p WHERE p.query_id = 'mine''s'")
        assert shown == "a comment"
        assert code(gateway.post("SELECT 1", query_id="mine's")) == 216
        assert slow.result().status_code == 200
    gateway.sql("SYSTEM FLUSH LOGS")
    logged = (
        "SELECT type, query_kind FROM `system`.query_log WHERE query_id = 'mine''s' AND log_comment != '' ORDER BY ALL"
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
    assert code(gateway.post("SELECT 1", query_id="a\r\nX-Evil: 1")) == 36
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
        assert code(endless.result(5)) == 394


def test_several_queries_at_once(gateway: RunningGateway) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: gateway.sql(f"SELECT sleep(1) + {n}"), range(8)))
    assert answers == [str(n) for n in range(8)]
    assert time.monotonic() - started < 4


# --- clients that leave


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
    wait_until(lambda: not gateway.running(query_id), 3)


def test_a_select_goes_on_without_its_client_if_not(gateway: RunningGateway) -> None:
    query_id = str(uuid.uuid4())
    leave(gateway, "SELECT sleepEachRow(0.5) FROM numbers(3)", query_id)
    assert gateway.running(query_id)
    wait_until(lambda: not gateway.running(query_id))
    gateway.sql("SYSTEM FLUSH LOGS")
    assert (
        gateway.sql(f"SELECT count() FROM system.query_log WHERE query_id = '{query_id}' AND type = 'QueryFinish'")
        == "1"
    )


def test_a_streaming_select_ends_when_nobody_reads_it(gateway: RunningGateway) -> None:
    query_id = str(uuid.uuid4())
    leave(gateway, "SELECT number FROM system.numbers", query_id)
    wait_until(lambda: not gateway.running(query_id), 3)


def test_insert_select_survives_its_client(gateway: RunningGateway, table: str) -> None:
    query_id = str(uuid.uuid4())
    sql = f"INSERT INTO {table} SELECT number, toString(sleepEachRow(0.3)) FROM numbers(4) SETTINGS max_block_size = 1"
    leave(gateway, sql, query_id, cancel_http_readonly_queries_on_client_close="1")
    wait_until(lambda: gateway.sql(f"SELECT count() FROM {table}") == "4")


# --- sessions


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
    assert code(gateway.post("SELECT * FROM t")) == 60


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
    assert code(gateway.post(sql, **name, wait_end_of_query=1, max_threads=1))
    assert gateway.sql("SELECT 'clean', getSetting('max_block_size')", **name) == "clean\t1000"
    assert gateway.sql("SHOW DATABASES LIKE 'shard_1'", **name) == "shard_1"


def test_a_session_is_for_one_query_at_a_time(gateway: RunningGateway) -> None:
    name = {"session_id": str(uuid.uuid4())}
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(gateway.sql, "SELECT sleep(1)", query_id=name["session_id"], **name)
        wait_until(lambda: gateway.running(name["session_id"]))
        assert code(gateway.post("SELECT 1", **name)) == 373
        slow.result()
    assert gateway.sql("SELECT 1", **name) == "1"


def test_a_session_ends_after_its_timeout(gateway: RunningGateway) -> None:
    name = {"session_id": str(uuid.uuid4())}
    gateway.sql("SET max_block_size = 77", session_timeout=1, **name)
    assert gateway.sql("SELECT 1", session_timeout=1, session_check=1, **name) == "1"
    threading.Event().wait(1.2)  # to look is to keep it alive
    assert code(gateway.post("SELECT 1", session_check=1, **name)) == 372
    assert gateway.sql("SELECT getSetting('max_block_size') != 77", **name) == "1"
    assert code(gateway.post("SELECT 1", session_timeout=100_000, **name)) == 374
