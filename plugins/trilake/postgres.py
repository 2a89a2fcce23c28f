"""PostgreSQL: connections whose errors name the database, and marts that are swapped in one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trilake.endpoints import PostgresEndpoint
from trilake.errors import CountMismatchError, TrilakeError, UnreachableError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

CONNECT_TIMEOUT_S = 10
ROWS_PER_BLOCK = 10_000


class PostgresError(TrilakeError):
    """What PostgreSQL refused, and in which database."""


@contextmanager
def connect(endpoint: PostgresEndpoint, *, autocommit: bool = False) -> Iterator[Connection]:
    """A connection for the length of a `with` block: one transaction (committed at the end, undone by an error),
    or with `autocommit` none.

    :raises UnreachableError: the server does not answer, or refuses the user.
    :raises PostgresError: a statement failed.
    """
    import psycopg2

    try:
        connection = psycopg2.connect(
            host=endpoint.host,
            port=endpoint.port,
            dbname=endpoint.database,
            user=endpoint.user,
            password=endpoint.password,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="trilake",
            options="-c timezone=UTC",
        )
    except psycopg2.OperationalError as e:
        raise UnreachableError(
            f"PostgreSQL database {endpoint.database} ({endpoint.host}:{endpoint.port}): {' '.join(str(e).split())}",
            hint="Is PostgreSQL up? `trilake status` shows it.",
        ) from None
    connection.autocommit = autocommit
    try:
        yield connection
        if not autocommit:
            connection.commit()
    except psycopg2.Error as e:
        # the first line alone, and `from None`: what follows quotes the statement with its values in it
        first = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise PostgresError(f"PostgreSQL database {endpoint.database}: {first}") from None
    finally:
        connection.close()  # an open transaction is rolled back by the server


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
    from psycopg2.extras import execute_values

    quoted = ", ".join(_quote(column) for column in columns)
    staging = f"pg_temp.staging_{time.monotonic_ns()}"
    sent = 0
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TEMP TABLE {staging.removeprefix('pg_temp.')} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP"
        )
        for block in _blocks(rows):
            execute_values(cursor, f"INSERT INTO {staging} ({quoted}) VALUES %s", block, page_size=1_000)
            sent += len(block)
        # one writer of a mart at a time; readers are not held up
        cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(f"DELETE FROM {table} WHERE {where}", tuple(parameters) or None)
        written = 0
        if sent:
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


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _blocks(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    block: list[Sequence[Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == ROWS_PER_BLOCK:
            yield block
            block = []
    if block:
        yield block
