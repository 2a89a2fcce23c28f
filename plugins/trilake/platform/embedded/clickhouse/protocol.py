"""The supported part of ClickHouse's HTTP interface: typed parameters and headers of a request, and errors."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from trilake.errors import TrilakeError
from trilake.platform.embedded.clickhouse.statement import QUERY_ID_SETTING

ERRORS = {
    36: "BAD_ARGUMENTS",
    48: "NOT_IMPLEMENTED",
    62: "SYNTAX_ERROR",
    73: "UNKNOWN_FORMAT",
    78: "UNKNOWN_TYPE_OF_QUERY",
    115: "UNKNOWN_SETTING",
    117: "INCORRECT_DATA",
    164: "READONLY",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    216: "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
    243: "NOT_ENOUGH_SPACE",
    271: "CANNOT_DECOMPRESS",
    358: "INTO_OUTFILE_NOT_ALLOWED",
    372: "SESSION_NOT_FOUND",
    373: "SESSION_IS_LOCKED",
    374: "INVALID_SESSION_TIMEOUT",
    396: "TOO_MANY_ROWS_OR_BYTES",
    432: "UNKNOWN_CODEC",
    511: "UNKNOWN_ROLE",
    516: "AUTHENTICATION_FAILED",
    1001: "STD_EXCEPTION",
}
_STATUS = {47: 400, 62: 400, 60: 404, 81: 404, 516: 403}
_CODE = re.compile(r"Code: (\d+)\.")

DEFAULT_FORMAT = "TabSeparated"
DEFAULT_SESSION_SECONDS = 60
MAX_SESSION_SECONDS = 3600
DEFAULT_HOLD_BYTES = 1 << 20
"""An answer up to this size is complete before its first byte is sent, so its status and summary are final."""

_SETTING = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_FORMAT = re.compile(r"\w+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# These change the answer in a way that is not implemented here. They are refused unless they are off.
_REFUSED_PARAMETERS = frozenset({"client_protocol_version", "compress", "decompress", "quota_key", "stacktrace"})
_REFUSED_SETTINGS = frozenset(
    {
        "add_http_cors_header",
        "allow_get_client_http_header",
        "http_response_headers",
        "http_write_exception_in_output_format",
        "replace_running_query",
    }
)
_NOT_SETTINGS = _REFUSED_PARAMETERS | {
    "buffer_size",
    "database",
    "default_format",
    "password",
    "query",
    "query_id",
    "role",
    "session_check",
    "session_id",
    "session_timeout",
    "user",
    "wait_end_of_query",
}
_OFF = frozenset({"", "0", "false", "{}"})
_ON = frozenset({"1", "true"})

CONTENT_TYPES = {
    "tabseparated": "text/tab-separated-values; charset=UTF-8",
    "tsv": "text/tab-separated-values; charset=UTF-8",
    "csv": "text/csv; charset=UTF-8; header=absent",
    "csvwithnames": "text/csv; charset=UTF-8; header=present",
    "json": "application/json; charset=UTF-8",
    "jsoncompact": "application/json; charset=UTF-8",
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    "native": "application/octet-stream",
    "rowbinary": "application/octet-stream",
    "arrow": "application/vnd.apache.arrow.file",
    "arrowstream": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


class QueryError(TrilakeError):
    """An error with ClickHouse's number, as the engine or the gateway raised it."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        name = ERRORS.get(code)
        text = message if message.startswith("Code: ") else f"Code: {code}. DB::Exception: {message} ({name})"
        super().__init__(text)

    @classmethod
    def of_engine(cls, error: Exception, *, note: str = "") -> QueryError:
        """Convert the engine's RuntimeError. ClickHouse's error number is in its text.

        :param note: more about the cause, which the engine does not know. It is added to the text.
        """
        text = str(error).strip()
        match = _CODE.search(text)
        message = text[match.start() :] if match else text or type(error).__name__
        return cls(int(match.group(1)) if match else 1001, f"{message} {note}".strip())

    @property
    def status(self) -> int:
        """The HTTP status for the error number."""
        return _STATUS.get(self.code, 500)


def quoted(text: str) -> str:
    """A string literal of ClickHouse's SQL. All characters that could end it are escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0") + "'"


def identifier(name: str) -> str:
    """A quoted name of ClickHouse's SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`").replace("\0", "\\0") + "`"


@dataclass(frozen=True)
class Session:
    """The session of a request."""

    id: str
    seconds: int = DEFAULT_SESSION_SECONDS
    must_exist: bool = False


@dataclass(frozen=True)
class Request:
    """A request without its body.

    :param settings: the engine's settings, in the given order.
    :param parameters: values of the query's {name:Type}, as text that the engine parses.
    :param hold: how many bytes of the answer to buffer before the first is sent; None means all.
    :param may_write: False for a GET.
    """

    query: str
    query_id: str
    database: str
    default_format: str
    settings: Mapping[str, str]
    parameters: Mapping[str, str] = field(repr=False)
    session: Session | None
    hold: int | None
    may_write: bool
    lz4_answer: bool

    def is_on(self, setting: str) -> bool:
        """Whether this request turns a setting of the HTTP interface on."""
        return self.settings.get(setting, "0").lower() in _ON


def decode_parameters(query_string: bytes) -> list[tuple[str, str]]:
    """The names and values of a URL.

    :raises QueryError: they are not UTF-8 (36).
    """
    try:
        return parse_qsl(query_string.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise QueryError(36, "The parameters of the URL are not percent-encoded UTF-8.") from None


def credentials(parameters: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> tuple[str, str]:
    """User and password of a request: from the URL, the X-ClickHouse headers or Basic authentication.

    :raises QueryError: they are given in two of these ways, or cannot be read (516).
    """
    url_values = {name: value for name, value in parameters if name in ("user", "password")}
    basic = headers.get("authorization")
    clickhouse_headers = {name: headers[name] for name in ("x-clickhouse-user", "x-clickhouse-key") if name in headers}
    if "x-clickhouse-ssl-certificate-auth" in headers:
        raise QueryError(516, "Authentication by certificate is not available here.")
    if sum(map(bool, (url_values, basic, clickhouse_headers))) > 1:
        raise QueryError(516, "Use one way to authenticate: the URL, X-ClickHouse headers or Basic authentication.")
    if clickhouse_headers:
        return clickhouse_headers.get("x-clickhouse-user", "default"), clickhouse_headers.get("x-clickhouse-key", "")
    if basic:
        scheme, _, encoded = basic.partition(" ")
        try:
            name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except ValueError:
            colon = ""
        if scheme.lower() != "basic" or not colon:
            raise QueryError(516, "Authentication failed: only Basic authentication is available here.")
        return name, password
    return url_values.get("user", "default"), url_values.get("password", "")


def parse_request(method: str, pairs: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> Request:
    """Parse a request's parameters (of the URL, then of a form) and headers (names in lower case).

    :raises QueryError: a parameter is invalid, or requests a feature that is not implemented.
    """
    values = dict(pairs)
    for name in sorted((_REFUSED_PARAMETERS | _REFUSED_SETTINGS) & values.keys()):
        if values[name].lower() not in _OFF:
            raise QueryError(48, f"{name} is not implemented by this gateway.")
    if values.get("role"):
        raise QueryError(511, "Roles are not implemented by this gateway.")
    settings = {n: v for n, v in values.items() if n not in _NOT_SETTINGS and not n.startswith("param_")}
    for name in settings:
        if name == QUERY_ID_SETTING or not _SETTING.fullmatch(name):
            raise QueryError(115, f"Unknown setting {quoted(name)}.")
    default_format = values.get("default_format") or headers.get("x-clickhouse-format") or DEFAULT_FORMAT
    if not _FORMAT.fullmatch(default_format):
        raise QueryError(73, f"Unknown format {quoted(default_format)}.")
    query_id = values.get("query_id") or str(uuid.uuid4())
    if _CONTROL.search(query_id):
        raise QueryError(36, "A query id must not have control characters.")
    wait = _boolean(values, "wait_end_of_query") or _boolean(values, "http_wait_end_of_query")
    accepted = {part.partition(";")[0].strip().lower() for part in headers.get("accept-encoding", "").split(",")}
    return Request(
        query=values.get("query", ""),
        query_id=query_id,
        database=values.get("database") or headers.get("x-clickhouse-database", ""),
        default_format=default_format,
        settings=settings,
        parameters={n[6:]: v for n, v in values.items() if n.startswith("param_")},
        session=_session(values),
        hold=None if wait else max(DEFAULT_HOLD_BYTES, _integer(values, "buffer_size", 0)),
        may_write=method == "POST",
        # the setting is on by default, as in the engine
        lz4_answer="lz4" in accepted and values.get("enable_http_compression", "1").lower() in _ON,
    )


def body_is_lz4(headers: Mapping[str, str]) -> bool:
    """Whether a body is compressed with LZ4, the only supported compression.

    :raises QueryError: another compression is used (432).
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "lz4"):
        raise QueryError(432, f"Unknown Content-Encoding {quoted(encoding)}: use lz4 (frames) or no compression.")
    return encoding == "lz4"


def _session(values: Mapping[str, str]) -> Session | None:
    if not values.get("session_id"):
        return None
    seconds = _integer(values, "session_timeout", DEFAULT_SESSION_SECONDS)
    if not 0 < seconds <= MAX_SESSION_SECONDS:
        raise QueryError(374, f"Session timeout {seconds} is not between 1 and {MAX_SESSION_SECONDS} seconds.")
    if "readonly" in values:
        raise QueryError(48, "readonly as a parameter is not implemented for sessions: the engine cannot reset it.")
    return Session(values["session_id"], seconds, must_exist=_boolean(values, "session_check"))


def _integer(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise QueryError(36, f"{name} is not a number.")
    return int(text)


def _boolean(values: Mapping[str, str], name: str) -> bool:
    text = values.get(name, "").lower()
    if text not in _ON | _OFF:
        raise QueryError(36, f"{name} is neither 0 nor 1.")
    return text in _ON
