"""Statements and parameters in SQL for PostgreSQL, as its own lexer sees them."""

from __future__ import annotations

from typing import Any

import pytest

from trilake.errors import ConfigurationError
from trilake.postgres.sql import bound_query


class Cursor:
    """Marks where a value was put. The real quoting is psycopg2's, and tested with the server."""

    def mogrify(self, _: str, values: tuple[Any, ...]) -> bytes:
        return f"<{values[0]}>".encode()


def bound(sql: str, **parameters: Any) -> str:
    return bound_query(Cursor(), sql, parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT 1; -- the end", "SELECT 1"),
        ("SELECT 1 -- the end", "SELECT 1 -- the end"),
        ("SELECT 1 ;\n;; /* a; /* nested; */ b */ ", "SELECT 1"),
        ("/* ; */ SELECT 1", "/* ; */ SELECT 1"),
        ("SELECT ';', \";\", $$;$$, $a$;$$;$a$, E'\\';' ; ", "SELECT ';', \";\", $$;$$, $a$;$$;$a$, E'\\';'"),
        ("SELECT 'it''s;'", "SELECT 'it''s;'"),
        ("SELECT a$b$c FROM t$1;", "SELECT a$b$c FROM t$1"),
        ("SELECT 'a' LIKE 'a%', 'b' LIKE '%s', '%b%', 5 % 3", "SELECT 'a' LIKE 'a%', 'b' LIKE '%s', '%b%', 5 % 3"),
        ("SELECT '100%%', 5 %% 3", "SELECT '100%', 5 % 3"),
        ("SELECT %(a)s::int, '%(a)s' -- %(no)s\n, 1 /* %s */", "SELECT <7>::int, '<7>' -- %(no)s\n, 1 /* %s */"),
        ("SELECT x %size FROM t", "SELECT x %size FROM t"),
    ],
)  # fmt: skip
def test_a_query_is_found_and_bound(sql: str, expected: str) -> None:
    assert bound(sql, a=7) == expected


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SET x = 1; SELECT 2", "more than one statement"),
        ("SELECT E'\\\\'; DELETE FROM t; --'", "more than one statement"),
        ("", "no statement"),
        ("-- nothing\n;", "no statement"),
        ("SELECT %(b)s", "uses the parameter b, which is not given. Given: a"),
        ("SELECT %s", "without a name"),
    ],
)
def test_what_is_not_one_query_with_its_parameters_is_named(sql: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        bound(sql, a=7)
