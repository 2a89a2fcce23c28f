"""Advisory locks of PostgreSQL. They show which process is alive and decide which process may change a mart."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from enum import IntEnum
from threading import Event, Thread
from typing import TYPE_CHECKING

from trilake.endpoints import PostgresEndpoint
from trilake.postgres.connection import connect

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

# Seconds between two checks of `keep_lock`. Less than the ten minutes between two runs of publication_housekeeping.
RENEW_SECONDS = 15


class LockSpace(IntEnum):
    """The first half of a two-part advisory lock key: one value for each kind of name.

    The values must not change, because jobs that run during an upgrade hold locks with them. PostgreSQL keeps the
    advisory locks of each database separate, so a value may occur once in `lake` and once in `oltp`.
    """

    PUBLICATION_ATTEMPT = 0x7471  # lake
    PUBLISHED_PARTITION = 0x7472  # lake
    ARRIVAL = 0x7473  # lake
    MART_STAGING = 0x7473  # oltp: staging tables of a Spark job. An alias of ARRIVAL, in another database.
    SPARK_SESSION = 0x7474  # lake
    PARTITION = 0x7475  # lake
    MART = 0x7476  # oltp
    JOB = 0x7477  # lake
    SHARD_SET = 0x7478  # lake
    RESHARD = 0x7479  # lake
    AGENT = 0x747A  # lake


# A lock with a one-part key, in database lake: one migration at a time.
MIGRATION_LOCK = 0x7470


@contextmanager
def hold_lock(endpoint: PostgresEndpoint, space: LockSpace, name: str) -> Iterator[Connection]:
    """Hold the lock of a name for the length of the block. Yields the connection that holds it.

    The lock ends with the connection, and so with the process. Another process can test it with `try_lock`.
    """
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (space, lock_key(name)))
        yield connection


@contextmanager
def keep_lock(
    endpoint: PostgresEndpoint, space: LockSpace, name: str, *, shared: bool = False, waiting: str = ""
) -> Iterator[None]:
    """Hold the lock of a name for the length of the block, also across restarts of the server.

    A server that restarts loses its advisory locks. A job that uses only S3 for hours would not notice, and a clean-up
    would treat it as dead. So a thread checks the lock every `RENEW_SECONDS`, and locks again if it is lost.

    :param shared: take a shared lock, which several processes can hold at the same time.
    :param waiting: a message to log if the lock is not free at once.
    """
    lock, kind = (space, lock_key(name)), "_shared" if shared else ""
    first: Future[None] = Future()
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
                    if not first.done():
                        first.set_result(None)
                    while not ended.wait(RENEW_SECONDS):
                        cursor.execute("SELECT 1")
            except Exception as e:
                if not first.done():
                    first.set_exception(e)
                    return
                log.warning("The lock of %s was lost; trying to lock again: %s", name, e)
                ended.wait(RENEW_SECONDS)

    thread = Thread(target=hold, name=f"lock of {name}", daemon=True)
    thread.start()
    try:
        first.result()
        yield
    finally:
        ended.set()
        thread.join(RENEW_SECONDS)  # a stalled connection blocks the thread; the lock ends with that connection


@contextmanager
def try_lock(endpoint: PostgresEndpoint, space: LockSpace, name: str) -> Iterator[bool]:
    """Yields whether the lock of a name was free. If True, the block holds it."""
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (space, lock_key(name)))
        row = cursor.fetchone()
        yield bool(row and row[0])


@contextmanager
def watched_lock(endpoint: PostgresEndpoint, space: LockSpace, name: str) -> Iterator[Callable[[], bool] | None]:
    """Like `try_lock`. Yields None if the lock is not free, or else a function that says whether it is still held.

    A server that restarts loses its locks. Ask before each step that no other process may do at the same time.
    """
    import psycopg2

    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (space, lock_key(name)))

        def held() -> bool:
            try:
                cursor.execute("SELECT 1")
            except psycopg2.Error:
                return False
            return True

        yield held if cursor.fetchone() == (True,) else None


@contextmanager
def migration_lock(endpoint: PostgresEndpoint) -> Iterator[None]:
    """Wait until no migration runs, and keep others waiting for the length of the block."""
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        yield


def lock_key(text: str) -> int:
    """A signed 32-bit number for advisory locks. Two names with the same number only wait for each other."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big", signed=True)


def lock_mart(connection: Connection, table: str) -> None:
    """Make other writers of `table` that call this function wait until the connection's transaction ends.

    Call it before the rows are read. A process that reads later sees newer rows, so it must also write later. Readers
    of the table do not wait.

    :param table: a mart of this database, or a table elsewhere that is written from a mart's rows.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LockSpace.MART, lock_key(table)))
