"""Marts: tables of PostgreSQL whose rows are replaced or merged in one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError, CountMismatchError, TrilakeError
from trilake.postgres.connection import listed, quote

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

ROWS_PER_BLOCK = 10_000


class DuplicateKeyError(TrilakeError):
    """Rows that are to be merged by a key do not have one each. Nothing was written."""


def replace_rows(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    where: str = "TRUE",
    parameters: Sequence[Any] = (),
) -> int:
    """Replace the rows of `table` that match `where` by `rows`, in the connection's transaction. Gives their number.

    Rows are streamed into a staging table first, so that readers wait for the swap alone and not for the source.

    :param table: `schema.table`, as written in SQL.
    :param columns: of each row. May be empty where there is no row: ClickHouse names none then.
    :raises CountMismatchError: PostgreSQL does not hold what was sent.
    """
    with connection.cursor() as cursor:
        staging, sent = _stage(cursor, table, columns, rows)
    return replace_from(connection, table, columns, staging, sent, where=where, parameters=parameters)


def replace_from(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    staging: str,
    sent: int,
    *,
    where: str = "TRUE",
    parameters: Sequence[Any] = (),
) -> int:
    """As `replace_rows`, by the `sent` rows that are staged already.

    :param staging: what the rows are selected from, as written behind FROM.
    """
    with connection.cursor() as cursor:
        _lock(cursor, table)
        cursor.execute(f"DELETE FROM {table} WHERE {where}", tuple(parameters) or None)
        written = 0
        if sent:
            quoted = listed(columns)
            cursor.execute(f"INSERT INTO {table} ({quoted}) SELECT {quoted} FROM {staging}")
            written = cursor.rowcount
        if written != sent:
            raise CountMismatchError(f"{table}: {sent} rows were sent, {written} were written.")
        cursor.execute(f"SELECT count(*) FROM {table} WHERE {where}", tuple(parameters) or None)
        found = cursor.fetchone()
        if found is None or found[0] != sent:
            raise CountMismatchError(
                f"{table}: {sent} rows were written, {found[0] if found else 'none'} match {where!r}.",
                hint="The query gave rows outside of what is replaced.",
            )
    return sent


def merge_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, key: Sequence[str]
) -> tuple[int, int]:
    """Merge `rows` into `table` by a key, in the connection's transaction. Gives how many were inserted, and updated.

    Streamed and staged as `replace_rows`. A row whose key is there gets the new values of `columns`; its others stay.

    :param key: columns that the table has a primary key or unique constraint on.
    :raises DuplicateKeyError: two rows have one key, or a row has none (NULL).
    :raises ConfigurationError: the rows have no such column, or the table no such constraint.
    :raises CountMismatchError: PostgreSQL did not write what was sent.
    """
    if columns and (missing := [name for name in key if name not in columns]):
        raise ConfigurationError(f"Rows for {table} have no column {missing[0]}.", hint="Name it in the query.")
    with connection.cursor() as cursor:
        staging, sent = _stage(cursor, table, columns, rows)
    return merge_from(connection, table, columns, staging, sent, key=key)


def merge_from(
    connection: Connection, table: str, columns: Sequence[str], staging: str, sent: int, *, key: Sequence[str]
) -> tuple[int, int]:
    """As `merge_rows`, with the `sent` rows that are staged already; `staging` as in `replace_from`."""
    from psycopg2.errors import InvalidColumnReference

    if not sent:
        return 0, 0
    with connection.cursor() as cursor:
        _check_keys(cursor, table, staging, key)
        _lock(cursor, table)
        values = [name for name in columns if name not in key] or list(key)
        assigned = ", ".join(f"{quote(name)} = EXCLUDED.{quote(name)}" for name in values)
        quoted = listed(columns)
        try:
            cursor.execute(
                f"WITH merged AS (INSERT INTO {table} ({quoted}) SELECT {quoted} FROM {staging} "
                # of a row that was there, this transaction has locked the earlier version
                f"ON CONFLICT ({listed(key)}) DO UPDATE SET {assigned} RETURNING xmax = 0 AS inserted) "
                "SELECT count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted) FROM merged"
            )
        except InvalidColumnReference:
            raise ConfigurationError(
                f"{table} has no unique constraint on ({', '.join(key)}).",
                hint="Make it the primary key, or add UNIQUE, in a step below sql/postgres/.",
            ) from None
        inserted, updated = cursor.fetchone() or (0, 0)
        if inserted + updated != sent:
            raise CountMismatchError(f"{table}: {sent} rows were sent, {inserted} were inserted and {updated} updated.")
    return inserted, updated


def _stage(cursor: Cursor, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> tuple[str, int]:
    """Stream rows into a table of this transaction alone. Gives its name, and their number."""
    from psycopg2.extras import execute_values

    name = f"staging_{time.monotonic_ns()}"
    staging, sent = f"pg_temp.{name}", 0
    cursor.execute(f"CREATE TEMP TABLE {name} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP")
    for block in _blocks(rows):
        execute_values(cursor, f"INSERT INTO {staging} ({listed(columns)}) VALUES %s", block, page_size=1_000)
        sent += len(block)
    return staging, sent


def _lock(cursor: Cursor, table: str) -> None:
    """One writer of a mart at a time; readers are not held up."""
    cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")


def _check_keys(cursor: Cursor, table: str, staging: str, key: Sequence[str]) -> None:
    empty = " OR ".join(f"{quote(name)} IS NULL" for name in key)
    cursor.execute(f"SELECT count(*) FROM {staging} WHERE {empty}")
    found = cursor.fetchone()
    if found and found[0]:
        raise DuplicateKeyError(
            f"{table}: {found[0]} rows have a NULL in their key ({', '.join(key)}).",
            hint="Leave them out of the query.",
        )
    keys_of = listed(key)
    cursor.execute(
        f"SELECT count(*) OVER (), {keys_of}, count(*) FROM {staging} GROUP BY {keys_of} HAVING count(*) > 1 LIMIT 1"
    )
    if found := cursor.fetchone():
        keys, *values, rows = found
        raise DuplicateKeyError(
            f"{table}: {keys} keys ({', '.join(key)}) come more than once, such as {tuple(values)} in {rows} rows.",
            hint="Nothing was written. Group the query by its key.",
        )


def _blocks(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    block: list[Sequence[Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == ROWS_PER_BLOCK:
            yield block
            block = []
    if block:
        yield block
