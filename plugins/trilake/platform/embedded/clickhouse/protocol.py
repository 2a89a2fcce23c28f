"""ClickHouse's HTTP interface as far as it is spoken here: a request's parameters and headers, typed; errors."""

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
"""An answer up to this size is complete before its first byte is sent: its status and summary are the final ones."""

_SETTING = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_FORMAT = re.compile(r"\w+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What changes the answer in a way that is not made here. Refused when asked for.
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
        """The engine raises RuntimeError with ClickHouse's text; the number is in the text.

        :param note: what the engine does not know of it; it follows.
        """
        text = str(error).strip()
        m = _CODE.search(text)
        said = text[m.start() :] if m else text or type(error).__name__
        return cls(int(m.group(1)) if m else 1001, f"{said} {note}".strip())

    @property
    def status(self) -> int:
        """The HTTP status that goes with the number."""
        return _STATUS.get(self.code, 500)


def quoted(text: str) -> str:
    """A string literal of ClickHouse's SQL; nothing in it can end it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0") + "'"


def identifier(name: str) -> str:
    """A quoted name of ClickHouse's SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`").replace("\0", "\\0") + "`"


@dataclass(frozen=True)
class Session:
    """A session that a request belongs to."""

    id: str
    seconds: int = DEFAULT_SESSION_SECONDS
    must_exist: bool = False


@dataclass(frozen=True)
class Request:
    """A request but its body.

    :param settings: the engine's settings, in the order given.
    :param parameters: values of the query's {name:Type}, as text that the engine parses.
    :param hold: bytes of the answer to wait for before its first is sent; None is all of them.
    :param may_write: a GET may not.
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
        """Whether a setting of the HTTP interface is switched on by this request."""
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
    """User and password of a request, from one of the three places where they may be.

    :raises QueryError: they are given in two places, or cannot be read (516).
    """
    url = {name: value for name, value in parameters if name in ("user", "password")}
    basic = headers.get("authorization")
    own = {name: headers[name] for name in ("x-clickhouse-user", "x-clickhouse-key") if name in headers}
    if "x-clickhouse-ssl-certificate-auth" in headers:
        raise QueryError(516, "Authentication by certificate is not available here.")
    if sum(map(bool, (url, basic, own))) > 1:
        raise QueryError(516, "Use one way to authenticate: the URL, X-ClickHouse headers or Basic authentication.")
    if own:
        return own.get("x-clickhouse-user", "default"), own.get("x-clickhouse-key", "")
    if basic:
        scheme, _, encoded = basic.partition(" ")
        try:
            name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except ValueError:
            colon = ""
        if scheme.lower() != "basic" or not colon:
            raise QueryError(516, "Authentication failed: only Basic authentication is available here.")
        return name, password
    return url.get("user", "default"), url.get("password", "")


def parse_request(method: str, pairs: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> Request:
    """Type a request's parameters (of the URL, then of a form) and headers (names in lower case).

    :raises QueryError: a parameter makes no sense, or asks for what is not to be had here.
    """
    values = dict(pairs)
    for name in sorted((_REFUSED_PARAMETERS | _REFUSED_SETTINGS) & values.keys()):
        if values[name].lower() not in _OFF:
            raise QueryError(48, f"{name} is not implemented by this gateway.")
    if headers.get("x-clickhouse-quota"):
        raise QueryError(48, "Quotas are not implemented by this gateway.")
    if values.get("role"):
        raise QueryError(511, "There are no roles in this gateway.")
    settings = {n: v for n, v in values.items() if n not in _NOT_SETTINGS and not n.startswith("param_")}
    for name in settings:
        if name == QUERY_ID_SETTING or not _SETTING.fullmatch(name):
            raise QueryError(115, f"Unknown setting {quoted(name)}.")
    default_format = values.get("default_format") or headers.get("x-clickhouse-format") or DEFAULT_FORMAT
    if not _FORMAT.fullmatch(default_format):
        raise QueryError(73, f"Unknown format {quoted(default_format)}.")
    query_id = values.get("query_id") or str(uuid.uuid4())
    if _CONTROL.search(query_id):
        raise QueryError(36, "A query id has no control characters.")
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
        # the engine's own default of the setting is on
        lz4_answer="lz4" in accepted and values.get("enable_http_compression", "1").lower() in _ON,
    )


def body_is_lz4(headers: Mapping[str, str]) -> bool:
    """Whether a body is compressed with the one compression that is known here.

    :raises QueryError: it is compressed with another (432).
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "lz4"):
        raise QueryError(432, f"Unknown Content-Encoding {quoted(encoding)}: send lz4 (frames) or nothing.")
    return encoding == "lz4"


def _session(values: Mapping[str, str]) -> Session | None:
    if not values.get("session_id"):
        return None
    seconds = _integer(values, "session_timeout", DEFAULT_SESSION_SECONDS)
    if not 0 < seconds <= MAX_SESSION_SECONDS:
        raise QueryError(374, f"Session timeout {seconds} is not between 1 and {MAX_SESSION_SECONDS} seconds.")
    if "readonly" in values:
        raise QueryError(48, "readonly as a parameter is not implemented for sessions: the engine cannot take it back.")
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
