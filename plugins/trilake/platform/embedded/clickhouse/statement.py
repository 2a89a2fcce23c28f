"""Finds what the gateway must know about an SQL text before the engine gets it.

The engine parses SQL. This module only finds where an INSERT's data begins, which format an answer will have, and the
few names that the gateway replaces. It works on tokens, so that a keyword in a string or comment is ignored. It works
on bytes (as Latin-1, so that offsets match), because one body can have SQL and binary data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GATEWAY_DATABASE = "trilake_gateway"
"""The database with views of system tables that show the clients' query ids."""

QUERY_ID_SETTING = "stream_like_engine_insert_queue"
"""The engine makes its own query ids. The client's is passed in this setting, which only NATS and Redis tables use."""

QUERY_ID = f"CAST(Settings['{QUERY_ID_SETTING}'] AS String)"

VIEWS = frozenset({"processes", "query_log"})

# Formats whose pieces can be concatenated: no header, footer or separator (ArrowStream: after `joined_arrow_streams`).
STREAMED_FORMATS = frozenset(
    """
    ArrowStream CSV JSONCompactEachRow JSONEachRow JSONLines JSONStringsEachRow LineAsString Native NDJSON Null Raw
    RowBinary TabSeparated TabSeparatedRaw TSV TSVRaw
    """.lower().split()
)
# Formats that the engine parses while data arrives. For others it would buffer all data in memory, without a limit.
STREAMED_INPUTS = frozenset(
    """
    Arrow ArrowStream Avro CSV CSVWithNames CSVWithNamesAndTypes JSONAsObject JSONAsString JSONCompactEachRow
    JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes JSONEachRow JSONLines JSONStringsEachRow
    LineAsString MsgPack Native NDJSON RawBLOB RowBinary RowBinaryWithDefaults RowBinaryWithNames
    RowBinaryWithNamesAndTypes TabSeparated TabSeparatedRaw TabSeparatedWithNames TabSeparatedWithNamesAndTypes TSKV
    TSV TSVRaw TSVWithNames TSVWithNamesAndTypes Values
    """.lower().split()
)
# Settings that add output before, between or after the rows of `STREAMED_FORMATS`.
UNSTREAMABLE_SETTINGS = frozenset({"extremes", "output_format_json_array_of_rows"})

_TOKEN = re.compile(
    r"""
      (?P<space> \s++ | --[^\n]*+ | \#[ !][^\n]*+ | /\*.*?\*/ )
    | (?P<quoted> '(?:[^'\\]++|\\.|'')*+' | "(?:[^"\\]++|\\.|"")*+" | `(?:[^`\\]++|\\.|``)*+`
                | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<word> [A-Za-z_][\w$]*+ )
    | (?P<number> \d[\w.]*+ )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<unfinished> ['"`] | /\* )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_AFTER_FORMAT = re.compile(rb"[ \t\f]*+\r?\n?")
_AFTER_A_COLUMN = {"ASC", "ASCENDING", "DESC", "DESCENDING", "FINAL", "NULLS"}
_SELECTS = frozenset({"SELECT", "WITH", "FROM", "("})


@dataclass(frozen=True)
class Token:
    """A piece of SQL that is not white space or a comment; `depth` is the number of brackets around it."""

    kind: str
    text: str
    start: int
    end: int
    depth: int

    @property
    def word(self) -> str:
        """An unquoted word in upper case; brackets and signs unchanged; empty for strings and quoted names."""
        return "" if self.kind == "quoted" else self.text.upper()

    @property
    def name(self) -> str:
        """An identifier without quotes; empty for a string."""
        if self.kind == "word":
            return self.text
        return self.text[1:-1] if self.kind == "quoted" and self.text[0] in '`"' else ""


def tokens(sql: bytes) -> Iterator[Token]:
    """The tokens of an SQL text. A string or comment without an end is a token of kind `unfinished`, the last one."""
    depth = 0
    for match in _TOKEN.finditer(sql.decode("latin-1")):
        kind = match.lastgroup or ""
        kind = "quoted" if kind == "tag" else kind
        if kind == "close":
            depth = max(0, depth - 1)
        if kind != "space":
            yield Token(kind, match.group(), match.start(), match.end(), depth)
        if kind == "open":
            depth += 1
        if kind == "unfinished":
            return


@dataclass(frozen=True)
class Head:
    """The parsed beginning of a request's text.

    :param insert: the INSERT without its FORMAT or VALUES; None if the text has no data after a statement.
    :param format: the format of its data.
    :param data_at: the offset at which the data begins.
    :param file_at: the offset in the INSERT at which FROM INFILE can be inserted.
    """

    insert: bytes | None = None
    format: str = ""
    data_at: int = 0
    file_at: int = 0

    def from_file(self, path: str) -> bytes:
        """The INSERT, changed to read its data from a file of the engine.

        :param path: a plain path, without quotes.
        """
        insert = self.insert or b""
        clause = f" FROM INFILE '{path}' ".encode()
        return insert[: self.file_at] + clause + insert[self.file_at :] + f" FORMAT {self.format}".encode()


class _Cursor:
    """Reads tokens one by one, and never ahead: binary data may follow them."""

    def __init__(self, remaining: Iterator[Token]) -> None:
        self._tokens = remaining
        self.step()

    def step(self) -> None:
        self.current = next(self._tokens, None)

    def skip(self, word: str) -> None:
        if self.current is not None and self.current.word == word:
            self.step()


def read_head(text: bytes, *, complete: bool) -> Head | None:
    """Find an INSERT's data in the first bytes of a text; None if more bytes are needed.

    :param complete: whether the text is complete.
    """
    cursor = _Cursor(_stable_tokens(text, complete))
    if cursor.current is None or cursor.current.word != "INSERT":
        return Head() if cursor.current is not None or complete else None
    for word in ("INSERT", "INTO", "TABLE", "FUNCTION"):
        cursor.skip(word)
    # skip the table name, whose parts may be keywords
    while cursor.current is not None and cursor.current.kind in ("word", "quoted"):
        cursor.step()
        if cursor.current is None or cursor.current.text != ".":
            break
        cursor.step()
    head = _find_data(cursor, text)
    if head is not None and head.data_at == len(text) and not complete and not text.endswith(b"\n"):
        return None  # the end of the line may follow, which is not data
    return head or (Head() if complete else None)


def _find_data(cursor: _Cursor, text: bytes) -> Head | None:
    settings_at = 0
    while (token := cursor.current) is not None:
        cursor.step()
        following = cursor.current
        if token.depth:
            continue
        if token.word == "SETTINGS":
            settings_at = settings_at or token.start
        if token.word == "VALUES":
            return Head(text[: token.start], "Values", token.end, settings_at or token.start)
        if token.word == "FORMAT" and following is not None and following.kind == "word":
            end = _AFTER_FORMAT.match(text, following.end)
            data_at = end.end() if end else following.end
            return Head(text[: token.start], following.text, data_at, settings_at or token.start)
        is_select = following is not None and token.word == "(" and following.word in _SELECTS
        if is_select or token.word in ("SELECT", "WITH", "FROM", "WATCH", ";"):
            return Head()
    return None


def _stable_tokens(text: bytes, complete: bool) -> Iterator[Token]:
    """The tokens that more bytes cannot change."""
    for token in tokens(text):
        # more bytes may continue the last word, double the last quote, or make a comment of the last sign
        open_end = token.kind == "unfinished" or (token.end == len(text) and token.kind not in ("open", "close"))
        if open_end and not complete:
            return
        yield token


@dataclass(frozen=True)
class ParsedStatement:
    """A statement without data after it.

    :param sql: the text for the engine.
    :param first_word: in upper case.
    :param format: the FORMAT of its answer; None if it has no FORMAT clause.
    :param select: whether it is a SELECT.
    :param streams: whether its answer has only rows, so that it can be sent while it is made.
    :param file: OUTFILE or INFILE if it refers to a file of the client.
    :param inserts_input: whether it is an INSERT SELECT from input(). The engine would lose its data and answer OK.
    :param file_at: the offset at which INTO OUTFILE can be inserted.
    :param end: the offset after which only comments and semicolons follow.
    """

    sql: bytes
    first_word: str
    format: str | None
    select: bool
    streams: bool
    file: str
    inserts_input: bool
    file_at: int
    end: int

    def into_file(self, path: str, format_: str) -> bytes:
        """The statement, changed to write its answer to a file of the engine.

        :param path: a plain path, without quotes.
        :param format_: used if the statement has no FORMAT.
        """
        clause = f" INTO OUTFILE '{path}' " + ("" if self.format else f"FORMAT {format_}")
        return self.sql[: self.file_at] + clause.encode() + self.sql[self.file_at : self.end]


def understand(text: bytes) -> ParsedStatement:
    """Parse a statement, and replace system tables by views of `GATEWAY_DATABASE` and query_id by the clients' ids."""
    sql = _rewrite(text, list(tokens(text)))
    token_list = list(tokens(sql))
    words = [token.word for token in token_list]
    pairs = set(itertools.pairwise(words))
    outermost = {token.word for token in token_list if not token.depth}
    format_ = _named_format(token_list)
    end = max((token.end for token in token_list if token.text != ";"), default=0)
    return ParsedStatement(
        sql=sql,
        first_word=words[0] if end else "",
        format=format_[1] if format_ else None,
        select=bool(words) and words[0] in _SELECTS and "INSERT" not in outermost,
        streams=("WITH", "TOTALS") not in pairs
        and not any(token.text in UNSTREAMABLE_SETTINGS for token in token_list),
        file="OUTFILE" if ("INTO", "OUTFILE") in pairs else "INFILE" if ("FROM", "INFILE") in pairs else "",
        inserts_input="INSERT" in outermost and ("INPUT", "(") in pairs,
        file_at=format_[0] if format_ else end,
        end=end,
    )


def _named_format(token_list: Sequence[Token]) -> tuple[int, str] | None:
    """The offset of the last FORMAT outside brackets and the word after it. None if more than settings follows."""
    outer = [token for token in token_list if not token.depth and token.kind not in ("open", "close")]
    for position in range(len(outer) - 2, -1, -1):
        before, name = outer[position - 1] if position else None, outer[position + 1]
        if outer[position].word == "FORMAT" and name.kind == "word":
            if name.word in _AFTER_A_COLUMN or (before and (before.text in ".," or before.word in ("BY", "AS"))):
                continue  # a column or an alias with the name "format"
            after = outer[position + 2].word if position + 2 < len(outer) else ";"
            return (outer[position].start, name.text) if after in (";", "SETTINGS") else None
    return None


def _rewrite(sql: bytes, token_list: Sequence[Token]) -> bytes:
    replacements: list[tuple[int, int, str]] = []
    words = [token.word for token in token_list[:2]]
    if words == ["KILL", "QUERY"]:
        replacements = [(token.start, token.end, QUERY_ID) for token in token_list if token.name == "query_id"]
    elif words and words[0] in _SELECTS | {"EXPLAIN", "INSERT"}:
        for before, schema, dot, table in zip(
            [None, *token_list], token_list, token_list[1:], token_list[2:], strict=False
        ):
            if (
                schema.name == "system"
                and dot.text == "."
                and table.name in VIEWS
                and (before is None or before.text != ".")
            ):
                replacements.append((schema.start, schema.end, GATEWAY_DATABASE))
    for start, end, text in reversed(replacements):
        sql = sql[:start] + text.encode() + sql[end:]
    return sql
