"""What the gateway makes of a request, without the engine. Most of it holds for every input: hypothesis looks for one
for which it does not."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import lz4.frame
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.errors import ConfigurationError
from trilake.platform.embedded.clickhouse import wire
from trilake.platform.embedded.clickhouse.config import GatewayConfig
from trilake.platform.embedded.clickhouse.protocol import (
    QueryError,
    Session,
    body_is_lz4,
    credentials,
    decode_parameters,
    identifier,
    parse_request,
    quoted,
)
from trilake.platform.embedded.clickhouse.statement import GATEWAY_DATABASE, QUERY_ID, read_head, tokens, understand

TEXT = st.text(st.characters(codec="utf-8"))
WORDS = [
    "values",
    "FORMAT TSV",
    "select 1",
    ";",
    "it''s",
    "--",
    "/*",
    "*/",
    "$$",
    "INTO OUTFILE",
    "system.processes",
    "\\\\",
]
BLANKS = st.sampled_from([" ", "\n", "\t", " /* FORMAT CSV; ' */ ", " -- VALUES '\n", " # SELECT\n", "\r\n"])
NAMES = st.sampled_from(
    [
        "t",
        "db.t",
        "`values`",
        '"a; FORMAT b"',
        "values",
        "db.`sel``ect`",
        "format.values",
        "{t:Identifier}",
        "FUNCTION null('a; FORMAT CSV')",
    ]
)
COLUMNS = st.sampled_from(["", "(a, b)", "(`values`, format)", "(* EXCEPT (select_me))"])
SETTINGS = st.sampled_from(["", "SETTINGS max_threads = 1, log_comment = 'FORMAT CSV VALUES'"])


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """The data in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    for start, end in zip([0, *ends], ends, strict=False):
        yield data[start:end]


@st.composite
def inserts(draw: st.DrawFn) -> tuple[str, str, str]:
    """An INSERT up to its data, its format, and what is between the format's name and the data."""
    keyword = draw(st.sampled_from(["INSERT INTO", "insert into table", "Insert Into"]))
    if (name := draw(NAMES)).startswith("FUNCTION"):
        keyword = "INSERT INTO"
    parts = [draw(BLANKS).lstrip(" "), keyword, name, draw(COLUMNS), draw(SETTINGS)]
    format_ = draw(st.sampled_from(["Values", "TSV", "Native", "JSONEachRow"]))
    parts.append("VALUES" if format_ == "Values" else f"FORMAT {format_}")
    between = "" if format_ == "Values" else draw(st.sampled_from(["\n", "\r\n", " \n", "\t \r\n"]))
    return draw(BLANKS).join(parts), format_, between


# --- where an INSERT's data begins


@given(inserts(), st.binary(), st.lists(st.integers(0, 500), max_size=6))
def test_an_inserts_data_is_found_however_it_arrives(
    insert: tuple[str, str, str], data: bytes, places: list[int]
) -> None:
    text, format_, between = insert
    # after VALUES, what could be part of the word is none of its data
    separator = b"(" if format_ == "Values" else between.encode()
    body = text.encode() + separator + data
    at = len(text) + (0 if format_ == "Values" else len(separator))
    pieces = cut(body, places)
    head, start = wire.read_statement(pieces)
    assert head.insert is not None
    assert (head.format, head.data_at) == (format_, at)
    assert start[head.data_at :] + b"".join(pieces) == body[at:]
    assert head.insert == body[: len(head.insert)]
    assert read_head(body, complete=True) == head
    in_file = head.from_file("spool/x")
    words = [token.word for token in tokens(in_file)]
    assert words[words.index("INFILE") - 1] == "FROM"
    if "SETTINGS" in words:
        assert words.index("INFILE") < words.index("SETTINGS")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_are_read_the_same_however_they_arrive(data: bytes, places: list[int]) -> None:
    pieces = cut(data, places)
    head, start = wire.read_statement(pieces)
    assert start + b"".join(pieces) == data
    assert head == read_head(data, complete=True)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "INSERT INTO t SELECT 1",
        "INSERT INTO t (a) SELECT 1 FORMAT TSV",
        "INSERT INTO t (SELECT 1)",
        "INSERT INTO t ((SELECT 1))",
        "INSERT INTO t WITH x AS (SELECT 1) SELECT * FROM x",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        "INSERT INTO t; FORMAT TSV",
        "INSERT INTO t",
        "INSERT",
        "'INSERT INTO t VALUES'",
        "",
    ],
)
def test_other_statements_have_no_data(sql: str) -> None:
    head = read_head(sql.encode(), complete=True)
    assert head is not None
    assert head.insert is None


def test_binary_data_is_not_searched_for_tokens() -> None:
    head = read_head(b"INSERT INTO t FORMAT Native\n" + b"'" * 10_000_000, complete=False)
    assert head is not None
    assert head.data_at == 28


def test_an_insert_without_data_in_sight_is_not_read_forever() -> None:
    with pytest.raises(QueryError) as error:
        wire.read_statement(iter([b"INSERT INTO t ("] + [b"a, "] * 1_000_000))
    assert error.value.code == 62
    with pytest.raises(QueryError) as error:
        wire.read_whole(b"SELECT ", iter([b"1 + " * 1_000_000] * 10))
    assert error.value.code == 62


# --- tokens and literals


@given(st.binary())
def test_tokens_cover_any_bytes_in_order(data: bytes) -> None:
    end = 0
    for token in tokens(data):
        assert end <= token.start < token.end
        assert data[token.start : token.end].decode("latin-1") == token.text
        end = token.end


@given(TEXT)
def test_a_quoted_text_is_one_token(text: str) -> None:
    for literal in (quoted(text), identifier(text)):
        (token,) = tokens(literal.encode())
        assert (token.kind, token.end) == ("quoted", len(literal.encode()))


@given(st.lists(st.sampled_from(WORDS)), st.sampled_from(["'{}'", '"{}"', "`{}`", "/* {} */ 1", "$tag${}$tag$"]))
def test_nothing_inside_quotes_or_comments_counts(words: list[str], around: str) -> None:
    inside = " ".join(words).replace("*/", "").replace("`", "").replace('"', "")
    sql = f"SELECT {around.format(inside)} FORMAT JSON"
    found = understand(sql.encode())
    assert (found.sql, found.format, found.file, found.select) == (sql.encode(), "JSON", "", True)


@pytest.mark.parametrize(
    ("sql", "format_"),
    [
        ("SELECT 1", None),
        ("SELECT 1 FORMAT JSON", "JSON"),
        ("SELECT 1 format JSON;", "JSON"),
        ("SELECT 1 FORMAT JSON SETTINGS a = 1", "JSON"),
        ("SELECT 1 FORMAT JSON -- FORMAT CSV", "JSON"),
        ("SELECT format, 'x' FROM t", None),
        ("SELECT format FROM t FORMAT TSV", "TSV"),
        ("SELECT * FROM (SELECT 1 FORMAT JSON)", None),
        ("SELECT 1 AS format FROM t", None),
        ("SELECT format, count() FROM t GROUP BY format ORDER BY format DESC", None),
        ("SELECT 1 FROM t ORDER BY n, format ASC SETTINGS a = 1", None),
        ("SELECT 1 FROM t ORDER BY t.format DESC FORMAT CSV", "CSV"),
        ("SELECT 1 FROM t AS format FINAL", None),
        ("SHOW TABLES FORMAT CSV", "CSV"),
    ],
)
def test_the_format_that_a_statement_names(sql: str, format_: str | None) -> None:
    assert understand(sql.encode()).format == format_


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", "SELECT 1 INTO OUTFILE 'f' FORMAT XML"),
        ("SELECT 1; -- end", "SELECT 1 INTO OUTFILE 'f' FORMAT XML"),
        ("SELECT 1 FORMAT JSON", "SELECT 1  INTO OUTFILE 'f' FORMAT JSON"),
        ("SELECT 1 FORMAT JSON SETTINGS a = 1;", "SELECT 1  INTO OUTFILE 'f' FORMAT JSON SETTINGS a = 1"),
        ("SELECT 1 SETTINGS a = 1 /* x */", "SELECT 1 SETTINGS a = 1 INTO OUTFILE 'f' FORMAT XML"),
    ],
)
def test_a_statement_whose_answer_goes_to_a_file(sql: str, expected: str) -> None:
    assert understand(sql.encode()).into_file("f", "XML").decode() == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("KILL QUERY WHERE query_id = 'query_id'", f"KILL QUERY WHERE {QUERY_ID} = 'query_id'"),
        ("kill query where `query_id` in ('a')", f"kill query where {QUERY_ID} in ('a')"),
        ("KILL MUTATION WHERE query_id = 1", "KILL MUTATION WHERE query_id = 1"),
        ("SELECT * FROM system.processes", f"SELECT * FROM {GATEWAY_DATABASE}.processes"),
        (
            "SELECT `system`.query_log.type FROM system . `query_log`",
            f"SELECT {GATEWAY_DATABASE}.query_log.type FROM {GATEWAY_DATABASE} . `query_log`",
        ),
        (
            "SELECT 'system.processes', system.tables.name, x.system.processes",
            "SELECT 'system.processes', system.tables.name, x.system.processes",
        ),
        ("TRUNCATE TABLE system.query_log", "TRUNCATE TABLE system.query_log"),
    ],
)
def test_query_ids_are_the_clients_where_they_are_looked_up(sql: str, expected: str) -> None:
    assert understand(sql.encode()).sql.decode() == expected


@pytest.mark.parametrize(
    ("sql", "streams"),
    [
        ("SELECT 1", True),
        ("(SELECT 1) UNION ALL (SELECT 2)", True),
        ("FROM t SELECT 1", True),
        ("SELECT k GROUP BY k WITH TOTALS", False),
        ("SELECT 1 SETTINGS extremes = 1", False),
        ("SELECT totals FROM t", True),
    ],
)
def test_what_can_be_streamed(sql: str, streams: bool) -> None:
    found = understand(sql.encode())
    assert (found.select, found.streams) == (True, streams)


# --- parameters, headers


@given(
    st.dictionaries(st.from_regex(r"param_\w+", fullmatch=True), TEXT, max_size=3),
    st.dictionaries(st.sampled_from(["max_threads", "log_comment", "SQL_x"]), TEXT),
    TEXT,
)
def test_parameters_settings_and_query_survive_the_url(
    parameters: dict[str, str], settings: dict[str, str], query: str
) -> None:
    url = urlencode({**parameters, **settings, "query": query, "database": "d", "user": "u"}).encode()
    request = parse_request("POST", decode_parameters(url), {})
    assert request.query == query
    assert request.settings == settings
    assert {f"param_{name}": value for name, value in request.parameters.items()} == parameters
    assert request.database == "d"


@given(st.binary())
def test_any_url_is_parsed_or_refused(url: bytes) -> None:
    with contextlib.suppress(QueryError):
        request = parse_request("GET", decode_parameters(url), {})
        assert all(name.isidentifier() for name in request.settings)
        assert not set("\r\n") & set(request.query_id + request.default_format)


@given(TEXT.filter(lambda name: ":" not in name), TEXT)
def test_basic_credentials_survive_their_encoding(name: str, password: str) -> None:
    token = base64.b64encode(f"{name}:{password}".encode()).decode()
    assert credentials([], {"authorization": f"Basic {token}"}) == (name, password)


@given(TEXT)
def test_any_authorization_is_understood_or_refused(value: str) -> None:
    with contextlib.suppress(QueryError):
        assert credentials([], {"authorization": value})


def test_a_session_and_its_limits() -> None:
    def session(**values: str) -> Session | None:
        return parse_request("POST", values.items(), {}).session

    assert session() is None
    assert session(session_id="") is None
    assert session(session_id="s") == Session("s", 60)
    assert session(session_id="s", session_timeout="5", session_check="1") == Session("s", 5, must_exist=True)
    for wrong, code in ({"session_timeout": "0"}, 374), ({"session_timeout": "x"}, 36), ({"readonly": "1"}, 48):
        with pytest.raises(QueryError) as error:
            session(session_id="s", **wrong)
        assert error.value.code == code


def test_what_is_held_back() -> None:
    def hold(**values: str) -> int | None:
        return parse_request("POST", values.items(), {}).hold

    assert hold() == 1 << 20
    assert hold(buffer_size="3000000") == 3_000_000
    assert hold(wait_end_of_query="1") is None
    assert hold(wait_end_of_query="0") == 1 << 20


@pytest.mark.parametrize(
    ("accepted", "enabled", "lz4_answer"),
    [
        ("lz4,zstd,gzip", "1", True),
        ("gzip, LZ4;q=0.5", "1", True),
        ("lz4", "0", False),
        ("gzip", "1", False),
        ("", "1", False),
    ],
)
def test_the_answers_compression(accepted: str, enabled: str, lz4_answer: bool) -> None:
    request = parse_request("GET", [("enable_http_compression", enabled)], {"accept-encoding": accepted})
    assert request.lz4_answer == lz4_answer


def test_the_bodys_compression() -> None:
    assert body_is_lz4({"content-encoding": "lz4"})
    assert not body_is_lz4({"content-encoding": "identity"})
    with pytest.raises(QueryError):
        body_is_lz4({"content-encoding": "gzip"})


def test_errors_of_the_engine_keep_their_number() -> None:
    error = QueryError.of_engine(RuntimeError("Query failed: Code: 60. DB::Exception: Unknown table. (UNKNOWN_TABLE)"))
    assert (error.code, error.status) == (60, 404)
    assert str(error) == "Code: 60. DB::Exception: Unknown table. (UNKNOWN_TABLE)"
    assert QueryError.of_engine(RuntimeError("odd")).code == 1001


# --- bodies


@given(st.lists(st.binary(max_size=2000), max_size=5), st.lists(st.integers(0, 12_000), max_size=6))
def test_lz4_frames_come_out_as_they_went_in(contents: list[bytes], places: list[int]) -> None:
    body = b"".join(lz4.frame.compress(content) for content in contents)
    assert b"".join(wire.decompressed(cut(body, places))) == b"".join(contents)


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 2000))
def test_an_lz4_frame_that_is_cut_is_an_error(content: bytes, place: int) -> None:
    body = lz4.frame.compress(content)
    with pytest.raises(QueryError):
        list(wire.decompressed([body[: 1 + place % (len(body) - 1)]]))


def test_lz4_is_decompressed_in_pieces() -> None:
    body = lz4.frame.compress(bytes(100 << 20))
    assert len(body) < 1 << 20
    sizes = [len(piece) for piece in wire.decompressed([body])]
    assert (sum(sizes), max(sizes)) == (100 << 20, wire.PIECE_BYTES)


def test_arrow_streams_are_joined() -> None:
    schema = pa.schema([("n", pa.int64()), ("s", pa.dictionary(pa.int32(), pa.string()))])

    def stream(rows: list[int]) -> bytes:
        with io.BytesIO() as sink:
            with pa.ipc.new_stream(sink, schema) as writer:
                if rows:
                    column = pa.array([str(row % 2) for row in rows]).dictionary_encode()
                    writer.write_batch(pa.record_batch([pa.array(rows), column], schema=schema))
            return sink.getvalue()

    joined = b"".join(wire.joined_arrow_streams([stream([1, 2]), stream([3]), stream([])]))
    assert pa.ipc.open_stream(joined).read_all().to_pydict() == {"n": [1, 2, 3], "s": ["1", "0", "1"]}
    assert b"".join(wire.joined_arrow_streams([])) == b""


@given(st.integers(0, 3), st.lists(st.integers(0, 3000), max_size=5))
def test_an_arrow_file_is_read_as_a_stream(batches: int, places: list[int]) -> None:
    schema = pa.schema([("n", pa.int64())])
    with io.BytesIO() as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            for n in range(batches):
                writer.write_batch(pa.record_batch([pa.array([n, n + 1])], schema=schema))
        file = sink.getvalue()
    stream = b"".join(wire.arrow_stream_of_file(cut(file, places)))
    assert pa.ipc.open_stream(stream).read_all().num_rows == 2 * batches
    for broken in (file[:-1], file[1:], b"", b"ARROW1"):
        with pytest.raises(QueryError) as error:
            list(wire.arrow_stream_of_file(cut(broken, places)))
        assert error.value.code == 117


@given(st.dictionaries(st.from_regex(r"param_[A-Za-z0-9_]{1,9}", fullmatch=True), TEXT, min_size=1, max_size=3))
def test_forms_carry_any_text(fields: dict[str, str]) -> None:
    from urllib3.filepost import encode_multipart_formdata

    body, content_type = encode_multipart_formdata(list(fields.items()))
    assert dict(wire.read_form(content_type, [body])) == fields


# --- configuration

GOOD: dict[str, Any] = {"host": "127.0.0.1", "port": 8123, "data": "/d", "users": {"u": "top-secret"}}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "c.json"
    file.write_text(json.dumps({**GOOD, **changes}))
    return file


def test_a_configuration_and_what_the_engine_gets_of_it(tmp_path: Path) -> None:
    collections = {"lake": {"url": "http://h/?a=1&b=<2>", "secret_access_key": "other-secret"}}
    config = GatewayConfig.load(
        write(tmp_path, named_collections=collections, shards=["a", "b"], max_memory_bytes=1 << 30)
    )
    root = ElementTree.fromstring(config.engine_xml())
    url = root.find("named_collections/lake/url")
    assert url is not None
    assert (url.text, url.get("overridable")) == ("http://h/?a=1&b=<2>", "0")
    assert [e.text for e in root.findall("remote_servers/trilake/shard/replica/default_database")] == ["a", "b"]
    assert root.findtext("max_server_memory_usage") == str(1 << 30)
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 0},
        {"port": "8123"},
        {"data": "relative"},
        {"users": {}},
        {"users": {"u": ""}},
        {"users": "u"},
        {"shards": ["a b"]},
        {"shards": "shard_1"},
        {"database": "a`b"},
        {"named_collections": {"a><": {}}},
        {"named_collections": {"a": {"<": "x"}}},
        {"named_collections": {"a": {"url": 5}}},
        {"max_memory_bytes": 1},
        {"unknown": 1},
        {"host": 1},
    ],
)
def test_a_configuration_that_makes_no_sense(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        GatewayConfig.load(write(tmp_path, **changes))
    assert next(iter(changes)) in str(error.value)
    assert "secret" not in str(error.value)
