"""What has to be known of a text of ClickHouse's SQL before it is sent."""

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
    """The statements of a text, comments kept, without their semicolons; one of comments alone is none."""
    statements, start, empty = [], 0, True
    for found in _TOKEN.finditer(text + ";"):
        if found.lastgroup == "end":
            if not empty:
                statements.append(text[start : found.start()].strip())
            start, empty = found.end(), True
        elif found.lastgroup != "space":
            empty = False
    return statements


def has_result(statement: str) -> bool:
    """Whether it answers with rows."""
    words = [found for found in _TOKEN.finditer(statement) if found.lastgroup != "space"]
    first = words[0].group().upper() if words else ""
    if first == "WITH":
        return not any(found.group().upper() == "INSERT" for found in words if found.lastgroup == "word")
    return first in _READS


def parameter_names(statement: str) -> set[str]:
    """The names of its parameters ``{name:Type}``."""
    return {found["name"] for found in _TOKEN.finditer(statement) if found["name"]}
