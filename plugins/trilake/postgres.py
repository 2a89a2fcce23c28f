"""PostgreSQL: connections whose errors name the database, and marts that are changed in one transaction."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from trilake.endpoints import PostgresEndpoint
from trilake.errors import (
    IS_IT_UP,
    ConfigurationError,
    CountMismatchError,
    RefusedError,
    TrilakeError,
    UnreachableError,
)
from trilake.patience import patiently

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
# A connection that holds a lock says nothing for as long as a job runs, and firewalls forget what says nothing.
KEEPALIVE_S = 60
ROWS_PER_BLOCK = 10_000
# How often `stay_alive` looks: no more often than nothing is cleared away (publication_housekeeping: ten minutes).
LOOK_SECONDS = 15
# The first half of the advisory locks' keys, beside the ledger's (trilake.clickhouse.ledger).
MART_LOCKS = 0x7476


class PostgresError(TrilakeError):
    """What PostgreSQL refused, and in which database."""


class DuplicateKeyError(TrilakeError):
    """Rows that are to be merged by a key do not have one each. Nothing was written."""


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
            keepalives_idle=KEEPALIVE_S,
            application_name="trilake",
            # for the server, too: one whose host is gone would hold its locks for two hours
            options=f"-c timezone=UTC -c tcp_keepalives_idle={KEEPALIVE_S} -c tcp_keepalives_interval=10 "
            "-c tcp_keepalives_count=3",
        )
    except psycopg2.OperationalError as e:
        refused = "authentication failed" in str(e)
        raise (RefusedError if refused else UnreachableError)(
            f"PostgreSQL database {endpoint.database} ({endpoint.host}:{endpoint.port}): {' '.join(str(e).split())}.",
            hint="The password is not the one that the server was made with." if refused else IS_IT_UP,
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


def await_answer(endpoint: PostgresEndpoint) -> None:
    """Return when the server answers; see `trilake.patience`."""

    def ask() -> None:
        with connect(endpoint):
            pass

    patiently(ask)


@contextmanager
def alive(endpoint: PostgresEndpoint, space: int, name: str) -> Iterator[Connection]:
    """Be known as alive under a name, for the length of a `with` block, by an advisory lock of the given connection.

    :param space: the first half of the lock's key, one for each kind of names.
    """
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (space, lock_key(name)))
        # closing the connection gives the lock back, and so does our death
        yield connection


@contextmanager
def stay_alive(
    endpoint: PostgresEndpoint, space: int, name: str, *, shared: bool = False, waiting: str = ""
) -> Iterator[None]:
    """Be known as alive under a name, also to a server that was restarted meanwhile: it has forgotten the lock that
    `alive` holds, and whoever is at work for hours with S3 alone would not notice, but be cleared away for dead.

    A thread looks after the lock every `LOOK_SECONDS`, and takes it again.

    :param shared: others may be alive under the same name.
    :param waiting: what is logged if the name cannot be had at once.
    """
    lock, kind = (space, lock_key(name)), "_shared" if shared else ""
    taken: Future[None] = Future()
    ended = Event()

    def hold() -> None:
        while not ended.is_set():
            try:
                with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
                    cursor.execute(f"SELECT pg_try_advisory_lock{kind}(%s, %s)", lock)
                    if cursor.fetchone() != (True,):
                        if waiting:
                            log.warning("%s", waiting)
                        cursor.execute(f"SELECT pg_advisory_lock{kind}(%s, %s)", lock)
                    if not taken.done():
                        taken.set_result(None)
                    while not ended.wait(LOOK_SECONDS):
                        cursor.execute("SELECT 1")
            except Exception as e:
                if not taken.done():
                    taken.set_exception(e)
                    return
                log.warning("%s is not known as alive any more, and is to be again: %s", name, e)
                ended.wait(LOOK_SECONDS)

    holder = Thread(target=hold, name=f"alive as {name}", daemon=True)
    holder.start()
    try:
        taken.result()
        yield
    finally:
        ended.set()
        holder.join(LOOK_SECONDS)  # one that a stalled connection keeps gives the lock back when that ends


@contextmanager
def unless_alive(endpoint: PostgresEndpoint, space: int, name: str) -> Iterator[bool]:
    """Whether nobody is `alive` under a name. If so, nobody else can find that for the length of the block."""
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (space, lock_key(name)))
        found = cursor.fetchone()
        yield bool(found and found[0])


def lock_key(text: str) -> int:
    """A signed 32 bit number for advisory locks. Two names that share one only wait for each other."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big", signed=True)


def take_turn(connection: Connection, table: str) -> None:
    """Wait until no other transaction that took a turn changes `table`, and keep others waiting until this one ends.

    To be called before the rows are read: whoever reads later has seen more, and has to be the one who writes later.
    Readers of the table are not held up.

    :param table: a mart of this database, or what is made of its rows elsewhere.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (MART_LOCKS, lock_key(table)))


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
        assigned = ", ".join(f"{_quote(name)} = EXCLUDED.{_quote(name)}" for name in values)
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
    empty = " OR ".join(f"{_quote(name)} IS NULL" for name in key)
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


def listed(columns: Sequence[str]) -> str:
    """Column names as SQL takes them, quoted."""
    return ", ".join(map(_quote, columns))


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


def make_databases(superuser: PostgresEndpoint, passwords: Mapping[str, str]) -> None:
    """Databases that do not know one another, each owned by a user of its name, who may enter no other. Safe twice.

    A user that is there gets this password: it is the one that everybody is told.

    :param passwords: by database.
    """
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles UNION ALL SELECT 'database ' || datname FROM pg_database")
        known = {name for (name,) in cursor.fetchall()}
        for name, password in passwords.items():
            # hashed here: the password itself is never part of a statement
            hashed = encrypt_password(password, name, connection, "scram-sha-256")
            verb = "ALTER" if name in known else "CREATE"
            cursor.execute(
                sql.SQL(f"{verb} ROLE {{}} LOGIN PASSWORD {{}}").format(sql.Identifier(name), sql.Literal(hashed))
            )
            if f"database {name}" not in known:
                cursor.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
