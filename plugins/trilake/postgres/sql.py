"""Parameters and statements in SQL for PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from trilake.errors import ConfigurationError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

Kind = Literal["comment", "quoted", "end", "code"]

# The tokens of PostgreSQL's lexer (src/backend/parser/scan.l) that can hide a semicolon or a parameter. A text that is
# not closed goes on to the end: PostgreSQL then says so.
_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* )
    | (?P<quoted> (?<![A-Za-z0-9_$])[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z) | '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z)
      | (?<![A-Za-z0-9_])\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z) )
    | (?P<end> ; )
    | (?P<code> [A-Za-z0-9_]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PERCENT = re.compile(r"%%|%\((?P<name>[^)]*)\)s|(?P<positional>%s(?!\w))")


def bound_query(cursor: Cursor, sql: str, parameters: Mapping[str, Any]) -> str:
    """The one statement of a text, with its parameters as literals, without a semicolon and what follows it.

    ``%(name)s`` is a parameter, and ``%%`` is a percent sign. Any other percent sign is one, too. Comments are kept as
    they are.

    :raises ConfigurationError: a parameter is missing or has no name, or the text is not one statement.
    """
    pieces: list[str] = []
    empty, ended = True, False
    for kind, text in _tokens(sql):
        if kind == "end":
            ended = ended or not empty
        elif kind != "comment" and text.strip():
            if ended:
                raise ConfigurationError("The text has more than one statement.", hint="Write one SELECT.")
            empty = False
        if not ended and kind != "end":
            pieces.append(text if kind == "comment" else _bind(cursor, text, parameters, quoted=kind == "quoted"))
    if empty:
        raise ConfigurationError("The text has no statement.", hint="Write one SELECT.")
    return "".join(pieces).strip()


def _tokens(sql: str) -> Iterator[tuple[Kind, str]]:
    """Neighbours of kind ``code`` are one token, so that a parameter is not split."""
    position, code = 0, ""
    while position < len(sql):
        if sql.startswith("/*", position):
            kind, end = "comment", comment_end(sql, position)
        else:
            match = _TOKEN.match(sql, position)
            assert match is not None  # noqa: S101 - the last alternative matches any character
            kind, end = match.lastgroup if match.lastgroup != "tag" else "quoted", match.end()  # type: ignore[assignment]
        text, position = sql[position:end], end
        if kind == "code":
            code += text
            continue
        if code:
            yield "code", code
            code = ""
        yield kind, text  # type: ignore[misc]
    if code:
        yield "code", code


def comment_end(sql: str, start: int) -> int:
    """Where the comment that begins at `start` ends. Comments can be nested, in PostgreSQL and in ClickHouse.

    One that is not closed goes on to the end of the text.
    """
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def _bind(cursor: Cursor, text: str, parameters: Mapping[str, Any], *, quoted: bool) -> str:
    def value(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match["positional"]:
            if quoted:  # a pattern of LIKE
                return match[0]
            raise ConfigurationError(
                "The query has a parameter without a name (%s).",
                hint="Write %(name)s, and set the name in parameters. For the remainder of a division, write a blank "
                "behind the percent sign.",
            )
        if match["name"] not in parameters:
            raise ConfigurationError(
                f"The query uses the parameter {match['name']}, which is not given. Given: "
                f"{', '.join(sorted(parameters)) or 'none'}.",
                hint="Set it in parameters. Write a percent sign in front of a parenthesis twice.",
            )
        return cursor.mogrify("%s", (parameters[match["name"]],)).decode()

    return _PERCENT.sub(value, text)
