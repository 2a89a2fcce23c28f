"""Split ClickHouse SQL into statements, and find out what a statement returns and which parameters it has."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | --[^\n]* | \#[ !][^\n]* | /\*.*?\*/ )
    | (?P<quoted> '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<parameter> \{\s*(?P<name>[A-Za-z_]\w*)\s*: )
    | (?P<word> [A-Za-z_]\w* )
    | (?P<end> ; )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_READS = frozenset({"SELECT", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK", "VALUES", "("})


def split_statements(text: str) -> list[str]:
    """The statements of a text, with comments and without semicolons. Comments alone are not a statement."""
    statements, start, empty = [], 0, True
    for token in _TOKEN.finditer(text + ";"):
        if token.lastgroup == "end":
            if not empty:
                statements.append(text[start : token.start()].strip())
            start, empty = token.end(), True
        elif token.lastgroup != "space":
            empty = False
    return statements


def has_result(statement: str) -> bool:
    """Whether the statement returns rows."""
    tokens = [token for token in _TOKEN.finditer(statement) if token.lastgroup != "space"]
    first = tokens[0].group().upper() if tokens else ""
    if first == "WITH":
        return not any(token.group().upper() == "INSERT" for token in tokens if token.lastgroup == "word")
    return first in _READS


def parameter_names(statement: str) -> set[str]:
    """The names of a statement's parameters ``{name:Type}``."""
    return {token["name"] for token in _TOKEN.finditer(statement) if token["name"]}
