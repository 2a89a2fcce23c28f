"""What has to be known of a text of SQL before the engine sees it.

The engine parses SQL; this only finds where an INSERT's data begins, which format an answer will have, and the few
names that mean something else here. It works on tokens, so a keyword inside a string or a comment is none, and on
bytes (as Latin-1, so that offsets agree), because SQL and binary data may share one body.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GATEWAY_DATABASE = "trilake_gateway"
"""Holds views of the system tables that know the clients' query ids."""

QUERY_ID_SETTING = "stream_like_engine_insert_queue"
"""The engine makes query ids of its own. A client's travels in this setting, which only NATS and Redis tables read."""

QUERY_ID = f"CAST(Settings['{QUERY_ID_SETTING}'] AS String)"

VIEWS = frozenset({"processes", "query_log"})

# Formats whose answers' pieces follow each other without header, footer or separator (ArrowStream: once spliced).
STREAMED_FORMATS = frozenset(
    """
    ArrowStream CSV JSONCompactEachRow JSONEachRow JSONLines JSONStringsEachRow LineAsString Native NDJSON Null Raw
    RowBinary TabSeparated TabSeparatedRaw TSV TSVRaw
    """.lower().split()
)
# Formats that the engine reads while they come; of others it would gather the whole in memory, beyond any limit.
STREAMED_INPUTS = frozenset(
    """
    Arrow ArrowStream Avro CSV CSVWithNames CSVWithNamesAndTypes JSONAsObject JSONAsString JSONCompactEachRow
    JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes JSONEachRow JSONLines JSONStringsEachRow
    LineAsString MsgPack Native NDJSON RawBLOB RowBinary RowBinaryWithDefaults RowBinaryWithNames
    RowBinaryWithNamesAndTypes TabSeparated TabSeparatedRaw TabSeparatedWithNames TabSeparatedWithNamesAndTypes TSKV
    TSV TSVRaw TSVWithNames TSVWithNamesAndTypes Values
    """.lower().split()
)
# Settings that put something before, between or after the rows of those formats.
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
    """A piece of SQL that is neither blank nor comment; `depth` counts the brackets around it."""

    kind: str
    text: str
    start: int
    end: int
    depth: int

    @property
    def word(self) -> str:
        """A bare word in capitals; brackets and signs as they are; nothing for strings and quoted names."""
        return "" if self.kind == "quoted" else self.text.upper()

    @property
    def name(self) -> str:
        """An identifier without its quotes; nothing for a string."""
        if self.kind == "word":
            return self.text
        return self.text[1:-1] if self.kind == "quoted" and self.text[0] in '`"' else ""


def tokens(sql: bytes) -> Iterator[Token]:
    """The tokens of a text of SQL; a string or comment without an end is one token of kind `unfinished`."""
    depth = 0
    for m in _TOKEN.finditer(sql.decode("latin-1")):
        kind = m.lastgroup or ""
        kind = "quoted" if kind == "tag" else kind
        if kind == "close":
            depth = max(0, depth - 1)
        if kind != "space":
            yield Token(kind, m.group(), m.start(), m.end(), depth)
        if kind == "open":
            depth += 1
        if kind == "unfinished":
            return


@dataclass(frozen=True)
class Head:
    """The beginning of a request's text, understood.

    :param insert: the INSERT without its FORMAT or VALUES; None if the whole text is a statement.
    :param format: the format of its data.
    :param data_at: where the data begins.
    :param file_at: where FROM INFILE may be put in the INSERT.
    """

    insert: bytes | None = None
    format: str = ""
    data_at: int = 0
    file_at: int = 0

    def from_file(self, path: str) -> bytes:
        """The INSERT with its data coming from a file of the engine's.

        :param path: a plain path, without quotes.
        """
        insert = self.insert or b""
        clause = f" FROM INFILE '{path}' ".encode()
        return insert[: self.file_at] + clause + insert[self.file_at :] + f" FORMAT {self.format}".encode()


class _Cursor:
    """Walks tokens no further than asked: binary data may follow them."""

    def __init__(self, walked: Iterator[Token]) -> None:
        self._walked = walked
        self.step()

    def step(self) -> None:
        self.now = next(self._walked, None)

    def skip(self, word: str) -> None:
        if self.now is not None and self.now.word == word:
            self.step()


def read_head(text: bytes, *, complete: bool) -> Head | None:
    """Find an INSERT's data in the first bytes of a text; None if more of it has to be seen.

    :param complete: no more bytes follow.
    """
    cursor = _Cursor(_certain(text, complete))
    if cursor.now is None or cursor.now.word != "INSERT":
        return Head() if cursor.now is not None or complete else None
    for word in ("INSERT", "INTO", "TABLE", "FUNCTION"):
        cursor.skip(word)
    # the name, whose parts may be keywords
    while cursor.now is not None and cursor.now.kind in ("word", "quoted"):
        cursor.step()
        if cursor.now is None or cursor.now.text != ".":
            break
        cursor.step()
    head = _find_data(cursor, text)
    if head is not None and head.data_at == len(text) and not complete and not text.endswith(b"\n"):
        return None  # a line's end may follow, which is not data either
    return head or (Head() if complete else None)


def _find_data(cursor: _Cursor, text: bytes) -> Head | None:
    settings_at = 0
    while (token := cursor.now) is not None:
        cursor.step()
        following = cursor.now
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
        inner = following is not None and token.word == "(" and following.word in _SELECTS
        if inner or token.word in ("SELECT", "WITH", "FROM", "WATCH", ";"):
            return Head()
    return None


def _certain(text: bytes, complete: bool) -> Iterator[Token]:
    """Tokens that further bytes cannot change."""
    for token in tokens(text):
        # at the very end a word may go on, a quote be half of a doubled one, a sign half of a comment's begin
        open_end = token.kind == "unfinished" or (token.end == len(text) and token.kind not in ("open", "close"))
        if open_end and not complete:
            return
        yield token


@dataclass(frozen=True)
class ParsedStatement:
    """A statement that is run as it is.

    :param sql: what the engine gets.
    :param first_word: in capitals.
    :param format: the format that it names for its answer, if it does.
    :param select: it is a SELECT.
    :param streams: nothing in it keeps the rows of its answer from being the whole answer.
    :param file: OUTFILE or INFILE if it names a file of the client's.
    :param inserts_input: it is an INSERT SELECT with data behind it, which the engine would answer with OK and lose.
    :param file_at: where INTO OUTFILE may be put.
    :param end: where only comments and semicolons are left.
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
        """The statement with its answer going to a file of the engine's, in its own format or another.

        :param path: a plain path, without quotes.
        """
        clause = f" INTO OUTFILE '{path}' " + ("" if self.format else f"FORMAT {format_}")
        return self.sql[: self.file_at] + clause.encode() + self.sql[self.file_at : self.end]


def understand(text: bytes) -> ParsedStatement:
    """Look at a statement; views of `GATEWAY_DATABASE` and the clients' query ids are put in their places."""
    sql = _rewrite(text, list(tokens(text)))
    seen = list(tokens(sql))
    words = [token.word for token in seen]
    pairs = set(itertools.pairwise(words))
    outermost = {token.word for token in seen if not token.depth}
    format_ = _named_format(seen)
    end = max((token.end for token in seen if token.text != ";"), default=0)
    return ParsedStatement(
        sql=sql,
        first_word=words[0] if end else "",
        format=format_[1] if format_ else None,
        select=bool(words) and words[0] in _SELECTS and "INSERT" not in outermost,
        streams=("WITH", "TOTALS") not in pairs and not any(token.text in UNSTREAMABLE_SETTINGS for token in seen),
        file="OUTFILE" if ("INTO", "OUTFILE") in pairs else "INFILE" if ("FROM", "INFILE") in pairs else "",
        inserts_input="INSERT" in outermost and ("INPUT", "(") in pairs,
        file_at=format_[0] if format_ else end,
        end=end,
    )


def _named_format(seen: Sequence[Token]) -> tuple[int, str] | None:
    """Where the last FORMAT outside brackets is, and the word after it, if only settings follow."""
    outer = [token for token in seen if not token.depth and token.kind not in ("open", "close")]
    for at in range(len(outer) - 2, -1, -1):
        before, name = outer[at - 1] if at else None, outer[at + 1]
        if outer[at].word == "FORMAT" and name.kind == "word":
            if name.word in _AFTER_A_COLUMN or (before and (before.text in ".," or before.word in ("BY", "AS"))):
                continue  # a column, or a name for one
            after = outer[at + 2].word if at + 2 < len(outer) else ";"
            return (outer[at].start, name.text) if after in (";", "SETTINGS") else None
    return None


def _rewrite(sql: bytes, seen: Sequence[Token]) -> bytes:
    replacements: list[tuple[int, int, str]] = []
    words = [token.word for token in seen[:2]]
    if words == ["KILL", "QUERY"]:
        replacements = [(token.start, token.end, QUERY_ID) for token in seen if token.name == "query_id"]
    elif words and words[0] in _SELECTS | {"EXPLAIN", "INSERT"}:
        for before, schema, dot, table in zip([None, *seen], seen, seen[1:], seen[2:], strict=False):
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
