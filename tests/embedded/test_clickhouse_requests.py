"""The gateway over HTTP: who may enter, how a request says what it wants, what the answer's headers say."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid

import httpx
import pytest

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway, error_code

pytest_plugins = ["support.clickhouse_fixtures"]


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
    assert (response.status_code, error_code(response)) == (403, 516)
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
    assert error_code(overridden) == 36
    assert "Override not allowed" in overridden.text
    assert PASSWORD not in gateway.log.read_text()


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
    assert error_code(gateway.post("SELECT 1 FORMAT Nonesuch")) == 73
    assert error_code(gateway.post("SELECT 1", default_format="Nonesuch")) == 73
    assert error_code(gateway.post("SELECT 1", default_format="TSV\r\nX-Evil: 1")) == 73


def test_database_and_settings_are_the_requests_alone(gateway: RunningGateway) -> None:
    assert (
        gateway.sql("SELECT currentDatabase(), getSetting('max_block_size')", database="shard_2", max_block_size=77)
        == "shard_2\t77"
    )
    assert gateway.sql("SELECT currentDatabase(), getSetting('max_block_size') != 77") == "default\t1"
    assert gateway.post("SELECT currentDatabase()", {"X-ClickHouse-Database": "shard_1"}).text == "shard_1\n"
    assert error_code(gateway.post("SELECT 1", database="nowhere")) == 81


@pytest.mark.parametrize(
    "value", ["'", "\\", "\\'; DROP DATABASE shard_1; --", "a\nb\tc\0d", "ü漢字", "', max_threads = '1", ""]
)
def test_a_settings_value_is_a_value_whatever_is_in_it(gateway: RunningGateway, value: str) -> None:
    found = gateway.get("SELECT hex(getSetting('log_comment'))", log_comment=value)
    assert bytes.fromhex(found.text.strip()).decode() == value


def test_unknown_or_unfit_settings_are_the_engines_errors(gateway: RunningGateway) -> None:
    assert error_code(gateway.post("SELECT 1", nonesuch="1")) == 115
    assert error_code(gateway.post("SELECT 1", **{"max_threads = 1, max_block_size": "1"})) == 115
    assert error_code(gateway.post("SELECT 1", max_threads="many")) == 27
    assert error_code(gateway.post("SELECT number FROM numbers(10)", max_result_rows=5)) == 396
    assert error_code(gateway.post("CREATE TABLE t (n Int8) ENGINE = Memory", readonly=1)) == 164
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
    assert error_code(gateway.post("SELECT 1", **{name: "1"})) == 48
    assert gateway.sql("SELECT 1", **{name: "0"}) == "1"


def test_roles_and_the_gateways_own_setting_are_unknown(gateway: RunningGateway) -> None:
    assert error_code(gateway.post("SELECT 1", role="admin")) == 511
    assert error_code(gateway.post("SELECT 1", stream_like_engine_insert_queue="x")) == 115


def test_parameters_are_typed_values(gateway: RunningGateway) -> None:
    assert gateway.get(
        "SELECT {a:UInt8} + 1, {b:String}, {c:Array(Date)}", param_a="1", param_b="it's; \\'", param_c="['2020-01-02']"
    ).text == ("2\tit\\'s; \\'\t['2020-01-02']\n")
    assert error_code(gateway.get("SELECT {a:UInt8}", param_a="1); DROP DATABASE shard_1")) == 457
    assert gateway.get("SELECT count() FROM {t:Identifier}.one", param_t="system").text == "1\n"


def test_parameters_may_come_as_a_form(gateway: RunningGateway) -> None:
    many = "[" + ",".join(map(str, range(50_000))) + "]"
    form = {
        "query": (None, "SELECT length({a:Array(UInt32)}), {b:String}"),
        "param_a": (None, many),
        "param_b": (None, "ü\r\n"),
    }
    response = httpx.post(gateway.url, files=form, auth=(USER, PASSWORD))
    assert response.text == "50000\tü\\r\\n\n" or error_code(response) == 457
    external = {"t": ("t.tsv", b"1\n"), "query": (None, "SELECT * FROM t")}
    assert (
        error_code(httpx.post(gateway.url, files=external, params={"t_structure": "n Int8"}, auth=(USER, PASSWORD)))
        == 48
    )


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
    assert (response.status_code, error_code(response)) == (status, number)
    assert response.headers["X-ClickHouse-Query-Id"].startswith("failing-")


def test_a_get_only_reads(gateway: RunningGateway) -> None:
    for sql in (
        "CREATE TABLE t (n Int8) ENGINE = Memory",
        "INSERT INTO t VALUES (1)",
        "SET max_threads = 1",
        "KILL QUERY WHERE 1",
    ):
        assert error_code(gateway.get(sql)) == 164
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
