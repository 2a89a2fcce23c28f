"""Which SQL an agent may send to ClickHouse: one statement that only reads tables which the project declares.

The statement is parsed by sqlglot, and every table and function in it is compared with what is allowed. What sqlglot
cannot parse is refused. The text that was checked is sent as it is, so text that ClickHouse's lexer could read in
another way than sqlglot's is refused, too: comments other than ``--`` and ``/* */``, typographic quotes and heredocs.

This is the first of two checks. The second one is ClickHouse's: the request has the setting ``readonly=1``, and on the
hosts the user has the right to read these tables and no other right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from trilake.agents.refusals import CallError
from trilake.clickhouse.sql import tokens

if TYPE_CHECKING:
    from sqlglot import exp

MAX_SQL = 20_000  # characters
# Table functions that make rows from their arguments alone.
TABLE_FUNCTIONS = frozenset({"numbers", "zeros", "generate_series", "generateseries", "values", "null"})
# Functions that read a file, a table or a dictionary that no FROM names, reveal the server, or only take time.
REFUSED_FUNCTIONS = re.compile(
    r"file|dict[A-Z].*|joinGet.*|hasColumnInTable|catboostEvaluate|getSetting.*|getServer.*|getMacro|getOSKernelVersion|"
    r"hostName|fqdn|serverUUID|tcpPort|current(User|Roles|Profiles|QueryID|Schemas|Database)|initialQuery.*|queryID|"
    r"(default|enabled)(Roles|Profiles)|show(Certificate)|user|database|sleep.*|throwIf|block.*|shard(Num|Count)|buildId|"
    r"filesystem.*|isDecimalOverflow|demangle|addressTo.*|trap|executable|ai[A-Z].*|naiveBayesClassifier|"
    r"(global)?(not)?(null)?in(ignoreset)?",
    re.IGNORECASE,
)
_EXPLAIN = re.compile(r"EXPLAIN\b(?:\s+(?P<kind>AST|SYNTAX|QUERY\s+TREE|PLAN|PIPELINE|ESTIMATE)\b)?", re.IGNORECASE)
_EXISTS = re.compile(r"EXISTS\b(?:\s+TABLE\b)?", re.IGNORECASE)
_KINDS = "SELECT, WITH, EXPLAIN, DESCRIBE or EXISTS"
# Clauses that change how the answer is made or where it goes.
_CLAUSES = {
    "settings": ("SETTINGS", "The bounds of a query are max_rows and max_seconds."),
    "format": ("FORMAT", "An answer always has the same form."),
    "into": ("INTO", "To get a large result as a file, submit agent_export."),
}


@dataclass(frozen=True)
class Statement:
    """A statement that may be sent.

    :param tables: the names of the tables that it reads, without their database.
    """

    sql: str
    tables: frozenset[str]


def check_statement(sql: str, tables: Collection[str], *, database: str = "analytics") -> Statement:
    """Check one statement.

    :param tables: the tables that may be read, without their database.
    :param database: their database. A name without a database means this one.
    :raises CallError: it is not one statement that only reads these tables.
    """
    if len(sql) > MAX_SQL:
        raise CallError(
            "sql_too_long", f"The statement has {len(sql)} characters.", hint=f"At most {MAX_SQL} are read."
        )
    text = _without_end(sql)
    rest = text
    if match := _EXPLAIN.match(_skip_space(text)):
        rest = _skip_space(text)[match.end() :]
    elif match := _EXISTS.match(_skip_space(text)):
        rest = "DESCRIBE TABLE " + _skip_space(text)[match.end() :]
    checked = _Checked(frozenset(tables), database)
    checked.statement(_parse(rest))
    return Statement(text, frozenset(checked.read))


def _skip_space(text: str) -> str:
    """The text without the comments and white space that it begins with."""
    return text[next((token.start for token in tokens(text) if token.kind != "space"), len(text)) :]


def _without_end(sql: str) -> str:
    """The statement without a semicolon at its end.

    :raises CallError: there is nothing, or more than one statement, or text that two lexers may read differently.
    """
    end = len(sql)
    listed = list(tokens(sql))
    seen = [token for token in listed if token.kind != "space"]
    while seen and seen[-1].kind == "end":
        end = seen.pop().start
    if not seen:
        raise CallError("no_statement", "There is no statement.", hint=f"Send one {_KINDS}.")
    for token in listed:
        if token.kind == "end" and token.start < end:
            raise CallError("several_statements", "There are several statements.", hint="Send one statement in a call.")
        if token.kind == "parameter":
            raise CallError(
                "parameter", f"The statement has a parameter: {token.text}", hint="Write its value instead."
            )
        if token.kind == "quoted" and token.text[0] not in "'\"`":
            raise CallError("quotes", f"Text is quoted as {token.text[:40]}.", hint="Quote it with '.")
        if token.kind == "space" and (comment := token.text.strip()):
            nested = comment.startswith("/*") and (comment.count("/*") > 1 or not comment.endswith("*/"))
            if not comment.startswith(("--", "/*")) or nested:
                raise CallError("comment", f"The statement has a comment of a kind that is not read: {comment[:40]}",
                              hint="Leave comments out, or begin them with --.")  # fmt: skip
        if "\0" in token.text:
            raise CallError("nul", "The statement has a NUL character.", hint="Leave it out.")
    return sql[:end]


def _parse(text: str) -> exp.Expr:
    import sqlglot
    from sqlglot.errors import SqlglotError

    # it warns about statements that it does not parse, and these are refused
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        parsed = sqlglot.parse(text, dialect="clickhouse")
    except (SqlglotError, RecursionError) as e:
        place: dict[str, Any] = next(iter(getattr(e, "errors", ())), {})
        where = f" at line {place['line']}, column {place['col']}" if place.get("line") else ""
        raise CallError(
            "not_parsed",
            f"The statement cannot be parsed{where}.",
            hint=f"Send one {_KINDS} in ClickHouse's SQL. describe(name) has examples.",
        ) from None
    if len(parsed) != 1 or parsed[0] is None:
        raise CallError("several_statements", "It is not one statement.", hint=f"Send one {_KINDS}.")
    return parsed[0]


class _Checked:
    """Walks through a parsed statement and collects what it reads."""

    def __init__(self, tables: frozenset[str], database: str) -> None:
        self._tables = tables
        self._database = database
        self.read: set[str] = set()

    def statement(self, parsed: exp.Expr) -> None:
        from sqlglot import exp

        if isinstance(parsed, exp.Describe):
            # a table function after DESCRIBE is parsed as a table with a schema
            if isinstance(parsed.this, exp.Schema):
                self._function_of(parsed.this.this.name)
            known = {"this", "kind", "as_json"}
            if extra := sorted(name for name, value in parsed.args.items() if value and name not in known):
                raise CallError("clause", f"DESCRIBE has a clause that is not read: {extra[0]}.", hint="Leave it out.")
        elif not isinstance(parsed, exp.Query):
            word = type(parsed).__name__ if not isinstance(parsed, exp.Command) else str(parsed.this)
            raise CallError(
                "not_a_query", f"{word.upper()} is not answered here.", hint=f"Only {_KINDS} are. Nothing was sent."
            )
        names = {cte.alias for cte in parsed.find_all(exp.CTE)}
        for node in parsed.walk():
            self._node(node, names)

    def _node(self, node: exp.Expr, names: Collection[str]) -> None:
        from sqlglot import exp

        if isinstance(node, (exp.Command, exp.DDL, exp.DML)) and not isinstance(node, exp.Query):
            raise CallError("not_a_query", f"{type(node).__name__.upper()} is not answered here.", hint="Only read.")
        if isinstance(node, exp.Describe) and node.parent is not None:
            raise CallError("not_a_query", "DESCRIBE cannot be part of a query.", hint="Send it alone.")
        if isinstance(node, exp.Query):
            for clause, (word, hint) in _CLAUSES.items():
                if node.args.get(clause):
                    raise CallError("clause", f"The clause {word} is not allowed.", hint=hint)
        if isinstance(node, exp.Table):
            self._table(node, names)
        elif isinstance(node, exp.In) and (column := _table_of(node)):
            self._column_as_table(column, names)
        elif isinstance(node, exp.Placeholder | exp.Parameter):
            raise CallError("parameter", "The statement has a parameter.", hint="Write its value instead.")
        elif isinstance(node, exp.Func) and not isinstance(node.parent, exp.Table):
            self._scalar(node)

    def _table(self, node: exp.Table, names: Collection[str]) -> None:
        from sqlglot import exp

        if isinstance(node.this, exp.Func):
            self._function_of(node.this.name or node.this.sql_name())
            return
        if not isinstance(node.this, exp.Identifier):
            raise CallError(
                "unknown_table", "A table is not named plainly.", hint="Name it, such as analytics.flights."
            )
        self._named(node.catalog, node.db, node.name, names)

    def _column_as_table(self, column: exp.Column, names: Collection[str]) -> None:
        """A name alone after IN is a table, or a name that WITH made, or a column with an array."""
        if column.table and column.table not in (self._database,):
            raise CallError(
                "unknown_table",
                f"{column.sql(dialect='clickhouse')} after IN may be a table.",
                hint="Write IN (SELECT ...), or has(array, value) for a column with an array.",
            )
        self._named(column.catalog, column.table, column.name, names)

    def _named(self, catalog: str, database: str, name: str, names: Collection[str]) -> None:
        if not catalog and not database and name in names:
            return
        if catalog or database not in ("", self._database) or name not in self._tables:
            written = ".".join(part for part in (catalog, database, name) if part)
            similar = get_close_matches(name, self._tables, n=1)
            hint = f"Is it {similar[0]}? " if similar and similar[0] != name else ""
            raise CallError(
                "unknown_table",
                f"{written} is not one of the tables that can be read.",
                hint=f"{hint}find() lists the tables. They are in the database {self._database}.",
            )
        self.read.add(name)

    def _function_of(self, name: str) -> None:
        if name.lower() not in TABLE_FUNCTIONS:
            raise CallError(
                "table_function",
                f"The table function {name} is not allowed.",
                hint=f"Read a table that find() lists. Allowed are {', '.join(sorted(TABLE_FUNCTIONS))}.",
            )

    def _scalar(self, node: exp.Func) -> None:
        for name in _names_of(node):
            if REFUSED_FUNCTIONS.fullmatch(name):
                raise CallError(
                    "function",
                    f"The function {name} is not allowed.",
                    hint="It reads something outside of the query's tables, reveals the server, or only waits.",
                )


def _table_of(node: exp.In) -> exp.Column | None:
    """The name alone that follows IN, with or without parentheses: ClickHouse reads it as a table if there is one."""
    from sqlglot import exp

    values = node.args.get("expressions") or []
    value = node.args.get("field") or (values[0] if len(values) == 1 else None)
    while isinstance(value, exp.Paren):
        value = value.this
    return value if isinstance(value, exp.Column) else None


def _names_of(node: exp.Func) -> Iterator[str]:
    """The names that a function may have been written with."""
    from sqlglot import exp

    if isinstance(node, exp.Anonymous | exp.AnonymousAggFunc):
        yield node.name
    else:
        yield from node.sql_names()
        yield node.sql(dialect="clickhouse").partition("(")[0]
