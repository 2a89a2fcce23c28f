"""The columns of a table in PostgreSQL, as its catalog describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

_COLUMNS = """
WITH RECURSIVE bases AS (
    SELECT a.attnum, t.oid, t.typtype, t.typbasetype, t.typnotnull
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %(table)s::oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.attnum, t.oid, t.typtype, t.typbasetype, b.typnotnull OR t.typnotnull
    FROM bases b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd')
SELECT a.attname, format_type(a.atttypid, a.atttypmod), CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname END,
    CASE e.typtype WHEN 'e' THEN 'enum' ELSE e.typname END, t.oid <> a.atttypid, a.attnotnull OR b.typnotnull,
    a.atthasdef OR a.attidentity <> '', a.attidentity = 'a', a.attgenerated <> ''
FROM pg_attribute a JOIN bases b ON b.attnum = a.attnum AND b.typtype <> 'd' JOIN pg_type t ON t.oid = b.oid
LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
WHERE a.attrelid = %(table)s::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    :param type: the type as SQL writes it, such as ``numeric(9,2)`` or ``text[]``.
    :param base: the catalog's name of the type, such as ``int4``; ``enum`` for each type of that kind; of a domain, the
        type below it.
    :param element: of an array: the `base` of its elements. Empty: the column is not an array.
    :param domain: whether the type is a domain.
    :param filled: whether a row without this column gets a value: a default, or an identity.
    :param identity: ``GENERATED ALWAYS AS IDENTITY``: PostgreSQL refuses other values.
    :param generated: computed from other columns.
    """

    name: str
    type: str
    base: str
    element: str
    domain: bool
    not_null: bool
    filled: bool
    identity: bool
    generated: bool


def table_columns(cursor: Cursor, table: str) -> dict[str, TableColumn]:
    """The columns of a table or view by name, in its order.

    :param table: ``schema.table``, as written in SQL.
    :raises ConfigurationError: no such table.
    """
    cursor.execute("SELECT to_regclass(%s)::oid", (table,))
    found = cursor.fetchone()
    if not found or found[0] is None:
        raise ConfigurationError(
            f"PostgreSQL has no table {table}.",
            hint="Check the name: lower case without quotes. Apply the migrations: `trilake migrate`.",
        )
    cursor.execute(_COLUMNS, {"table": found[0]})
    rows = cursor.fetchall()
    return {row[0]: TableColumn(row[0], row[1], row[2], row[3] or "", *row[4:]) for row in rows}


def check_names(table: str, columns: Mapping[str, TableColumn], given: Sequence[str]) -> None:
    """Check the names of the columns that rows have against those of their table.

    :raises ConfigurationError: names the columns that cannot be written, or that a new row needs.
    """
    problems = [f"column {name} is given twice" for name in sorted({n for n in given if given.count(n) > 1})]
    for name in dict.fromkeys(given):
        column = columns.get(name)
        if column is None:
            problems.append(f"the table has no column {name}")
        elif column.generated:
            problems.append(f"column {name} is computed by PostgreSQL (GENERATED), so it cannot be written")
        elif column.identity:
            problems.append(f"column {name} is GENERATED ALWAYS AS IDENTITY, so it cannot be written")
    problems += [
        f"column {column.name} is NOT NULL without a default, and the rows do not have it"
        for column in columns.values()
        if column.not_null and not (column.filled or column.generated or column.name in given)
    ]
    if problems:
        raise ConfigurationError(
            f"{table}: {'; '.join(problems)}. Nothing was written.",
            hint="Give each column of the query the name of a column of the table (AS name), and leave out those that "
            "PostgreSQL fills itself.",
        )
