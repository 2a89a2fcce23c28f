"""Marts: tables of PostgreSQL whose rows are replaced or merged in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError, CountMismatchError, TrilakeError
from trilake.postgres.connection import listed, quote

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor


class DuplicateKeyError(TrilakeError):
    """Rows to merge do not each have their own key. Nothing was written."""


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
    """Replace the rows of `table` that match `where` by `sent` staged rows, in the connection's transaction. Returns
    their number.

    `table` is locked only for this swap, not while the rows are staged.

    :param table: `schema.table`, as written in SQL.
    :param columns: of each row.
    :param staging: what holds the rows with the table's types, as written after FROM: see
        `trilake.postgres.staging.converted_rows`.
    :param where: a condition in SQL; `parameters` are its values. A percent sign in it is written twice.
    :raises CountMismatchError: PostgreSQL does not hold the rows that were sent.
    """
    with connection.cursor() as cursor:
        # Only the condition has parameters: names of tables and columns may contain percent signs.
        condition = cursor.mogrify(where, tuple(parameters)).decode() if parameters else where
        _lock(cursor, table)
        cursor.execute(f"DELETE FROM {table} WHERE {condition}")
        written = 0
        if sent:
            quoted = listed(columns)
            cursor.execute(f"INSERT INTO {table} ({quoted}) SELECT {quoted} FROM {staging}")
            written = cursor.rowcount
        if written != sent:
            raise CountMismatchError(
                f"{table}: {sent} rows were sent, but {written} were written.",
                hint="Nothing was changed. Check the table's triggers and rules.",
            )
        cursor.execute(f"SELECT count(*) FROM {table} WHERE {condition}")
        matching = cursor.fetchone()
        if matching is None or matching[0] != sent:
            raise CountMismatchError(
                f"{table}: {sent} rows were written, but {matching[0] if matching else 'none'} match {condition}.",
                hint="Nothing was changed. The query returned rows outside of the part that is replaced.",
            )
    return sent


def merge_from(
    connection: Connection, table: str, columns: Sequence[str], staging: str, sent: int, *, key: Sequence[str]
) -> tuple[int, int]:
    """Merge `sent` staged rows into `table` by a key, in the connection's transaction. Returns how many rows were
    inserted, and how many were updated.

    A row with an existing key gets the new values of `columns`; its other columns do not change.

    :param staging: see `replace_from`.
    :param key: the columns of a primary key or unique constraint of the table.
    :raises DuplicateKeyError: two rows have the same key, or a row has NULL in its key.
    :raises ConfigurationError: the table has no such constraint.
    :raises CountMismatchError: PostgreSQL did not write the rows that were sent.
    """
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
                # xmax is 0 in a new row. In an updated row it is this transaction, which locked the earlier version.
                f"ON CONFLICT ({listed(key)}) DO UPDATE SET {assigned} RETURNING xmax = 0 AS inserted) "
                "SELECT count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted) FROM merged"
            )
        except InvalidColumnReference:
            raise ConfigurationError(
                f"{table} has no unique constraint on ({', '.join(key)}).",
                hint="Make it the primary key, or add UNIQUE, in a step in sql/postgres/.",
            ) from None
        inserted, updated = cursor.fetchone() or (0, 0)
        if inserted + updated != sent:
            raise CountMismatchError(
                f"{table}: {sent} rows were sent, but {inserted} were inserted and {updated} updated.",
                hint="Nothing was changed. Check the table's triggers and rules.",
            )
    return inserted, updated


def _lock(cursor: Cursor, table: str) -> None:
    """Allow one writer of a mart at a time. Readers do not wait."""
    cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")


def _check_keys(cursor: Cursor, table: str, staging: str, key: Sequence[str]) -> None:
    empty = " OR ".join(f"{quote(name)} IS NULL" for name in key)
    cursor.execute(f"SELECT count(*) FROM {staging} WHERE {empty}")
    without_key = cursor.fetchone()
    if without_key and without_key[0]:
        raise DuplicateKeyError(
            f"{table}: {without_key[0]} rows have a NULL in their key ({', '.join(key)}).",
            hint="Nothing was written. Leave them out of the query.",
        )
    keys_of = listed(key)
    cursor.execute(
        f"SELECT count(*) OVER (), {keys_of}, count(*) FROM {staging} GROUP BY {keys_of} HAVING count(*) > 1 LIMIT 1"
    )
    if duplicate := cursor.fetchone():
        keys, *values, rows = duplicate
        raise DuplicateKeyError(
            f"{table}: {keys} keys ({', '.join(key)}) occur more than once, such as {tuple(values)} in {rows} rows.",
            hint="Nothing was written. Group the query by its key.",
        )
