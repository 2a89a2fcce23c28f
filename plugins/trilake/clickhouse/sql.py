"""Split ClickHouse SQL into statements, and find out what a statement returns, needs and has as parameters.

The tokens are those of ClickHouse's own lexer (src/Parsers/Lexer.cpp), as far as they hide semicolons and words:
comments (``--``, ``//``, ``# ``, ``#!``, and ``/* */``, which may be nested), quoted text and names (also in
typographic quotes), and heredocs (``$tag$ ... $tag$``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal

from trilake.errors import ConfigurationError
from trilake.postgres.sql import comment_end

Kind = Literal["space", "quoted", "parameter", "word", "end", "sign"]

_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | --[^\n]* | //[^\n]* | \#[ !][^\n]* )
    | (?P<quoted> '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*`
      | \u2018[^\u2019]*\u2019 | \u201c[^\u201d]*\u201d | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<parameter> \{\s*(?P<name>[A-Za-z_]\w*)\s*: )
    | (?P<word> [A-Za-z_][\w$]* )
    | (?P<end> ; )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_READS = frozenset({"SELECT", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK", "VALUES", "("})
# Statements that only change a session. Each statement of a task is a request of its own, without a session.
_SESSION = frozenset({"USE", "SET", "BEGIN", "START", "COMMIT", "ROLLBACK"})


@dataclass(frozen=True)
class Token:
    """A piece of SQL.

    :param name: the name of a parameter ``{name:Type}``; else empty.
    """

    kind: Kind
    text: str
    start: int
    end: int
    name: str = ""

    @property
    def word(self) -> str:
        """In upper case, for comparing keywords. Empty for text and names in quotes."""
        return "" if self.kind == "quoted" else self.text.upper()


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of a text, with its comments and white space as ``space``. Together they are the whole text."""
    position = 0
    while position < len(sql):
        if sql.startswith("/*", position):
            end = comment_end(sql, position)
            yield Token("space", sql[position:end], position, end)
        else:
            match = _TOKEN.match(sql, position)
            assert match is not None  # noqa: S101 - the last alternative matches any character
            kind: Kind = match.lastgroup if match.lastgroup != "tag" else "quoted"  # type: ignore[assignment]
            end = match.end()
            yield Token(kind, match.group(), position, end, match["name"] or "")
        position = end


def split_statements(text: str) -> list[str]:
    """The statements of a text, with comments and without semicolons. Comments alone are not a statement.

    :raises ConfigurationError: it is not clear where the data of an ``INSERT ... FORMAT`` ends.
    """
    statements: list[str] = []
    start = 0
    seen: list[Token] = []  # of the current statement, without space
    for token in tokens(text):
        if token.kind == "end":
            if seen:
                statements.append(text[start : token.start].strip())
            start, seen = token.end, []
        elif token.kind != "space":
            seen.append(token)
            if _begins_data(seen):
                _check_data(text[token.end :])
                break
    if seen:
        statements.append(text[start:].strip())
    return statements


def _begins_data(seen: Sequence[Token]) -> bool:
    """Whether all that follows is the data of an INSERT in a format that is not SQL, such as CSV."""
    if len(seen) < 2 or seen[0].word != "INSERT" or seen[-2].word != "FORMAT":
        return False
    if seen[-1].kind != "word" or seen[-1].word == "VALUES":
        return False
    if sum((token.text == "(") - (token.text == ")") for token in seen):  # a column of this name
        return False
    outer = _outer_words(seen[:-2])
    return not outer & {"SELECT", "WITH", "VALUES", "INFILE", "WATCH"}


def _check_data(data: str) -> None:
    if re.search(r";[ \t\r]*(\n|\Z)", data):
        raise ConfigurationError(
            "An INSERT with FORMAT has data with a semicolon at the end of a line, so it is not clear whether the data "
            "or the statement ends there.",
            hint="Write the rows as VALUES, or remove the semicolon and put the next statement into another text.",
        )


def _outer_words(seen: Sequence[Token]) -> set[str]:
    """The keywords outside of parentheses."""
    words, depth = set(), 0
    for token in seen:
        if token.text in ("(", ")"):
            depth += 1 if token.text == "(" else -1
        elif depth == 0 and token.kind == "word":
            words.add(token.word)
    return words


def has_result(statement: str) -> bool:
    """Whether the statement returns rows."""
    seen = [token for token in tokens(statement) if token.kind != "space"]
    first = seen[0].word if seen else ""
    if first != "WITH":
        return first in _READS
    depth = 0
    for before, token in pairwise(seen):
        if token.text in ("(", ")"):
            depth += 1 if token.text == "(" else -1
        # a name after AS may also be such a word
        elif depth == 0 and before.word != "AS" and token.word in ("SELECT", "FROM", "INSERT"):
            return token.word != "INSERT"
    return True


def first_word(statement: str) -> str:
    """The statement's first keyword, in upper case; empty: it has none."""
    return next((token.word for token in tokens(statement) if token.kind != "space"), "")


def parameter_names(statement: str) -> set[str]:
    """The names of a statement's parameters ``{name:Type}``."""
    return {token.name for token in tokens(statement) if token.name}


def output_format(statement: str) -> str:
    """The format that a query asks for at its end (``FORMAT JSON``); empty: none."""
    if not has_result(statement):
        return ""
    last = [token for token in tokens(statement) if token.kind != "space"][-2:]
    return last[1].text if len(last) > 1 and last[0].word == "FORMAT" and last[1].kind == "word" else ""


def refuse_statement(statement: str, number: int, where: str) -> None:
    """
    :param number: the statement's number, from 1, for the message.
    :param where: what sends the statements, such as a task, for the message.
    :raises ConfigurationError: the statement would only change its session, or names the format of its result, which
        the driver does.
    """
    if name := output_format(statement):
        raise ConfigurationError(
            f"Statement {number} of {where} ends in FORMAT {name}, but its rows are read in another format; nothing "
            "was sent.",
            hint="Remove FORMAT. To write rows to a file, use ClickHouseToS3Operator.",
        )
    if name := session_statement(statement):
        raise ConfigurationError(
            f"Statement {number} of {where} is {name}. Each statement is sent without a session, so it would have no "
            "effect on the others; nothing was sent.",
            hint="Name the database in the tables (or set database), set settings on the task, and use a table with a "
            "unique name instead of a temporary one.",
        )


def session_statement(statement: str) -> str:
    """What the statement would change in its session and nowhere else, such as ``USE``; empty: nothing."""
    words = [token.word for token in islice((t for t in tokens(statement) if t.kind != "space"), 4)]
    if words and words[0] in _SESSION:
        return words[0]
    temporary = words[:2] == ["CREATE", "TEMPORARY"] or words[:4] == ["CREATE", "OR", "REPLACE", "TEMPORARY"]
    return "CREATE TEMPORARY" if temporary else ""
