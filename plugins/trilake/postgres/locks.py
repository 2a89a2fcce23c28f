"""Advisory locks of PostgreSQL: which process is alive, and which one may change a mart."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
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

# How often `keep_lock` checks its lock. Less than the ten minutes between two runs of publication_housekeeping.
RENEW_SECONDS = 15


class LockSpace(IntEnum):
    """The first half of a two-part advisory lock key: one value for each kind of name.

    The values are fixed. Jobs that run during an upgrade hold locks by them. PostgreSQL keeps advisory locks apart by
    database, so a value may occur once in `lake` and once in `oltp`.
    """

    PUBLICATION_ATTEMPT = 0x7471  # lake
    PUBLISHED_PARTITION = 0x7472  # lake
    ARRIVAL = 0x7473  # lake
    MART_STAGING = 0x7473  # oltp: staging tables of a Spark job. An alias of ARRIVAL, in another database.
    SPARK_SESSION = 0x7474  # lake
    PARTITION = 0x7475  # lake
    MART = 0x7476  # oltp
    JOB = 0x7477  # lake


# A lock of one part, in database lake: one migration at a time.
MIGRATION_LOCK = 0x7470


@contextmanager
def hold_lock(endpoint: PostgresEndpoint, space: LockSpace, name: str) -> Iterator[Connection]:
    """Hold the lock of a name for the length of the block. Gives the connection that holds it.

    The lock ends with the connection, and so with the process. `try_lock` by another process tells whether it is free.
    """
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (space, lock_key(name)))
        yield connection


@contextmanager
def keep_lock(
    endpoint: PostgresEndpoint, space: LockSpace, name: str, *, shared: bool = False, waiting: str = ""
) -> Iterator[None]:
    """Hold the lock of a name for the length of the block, also across restarts of the server.

    A restarted server has forgotten its advisory locks. A job that works with S3 alone for hours would not notice, and
    clean-up would take it for dead. So a thread checks the lock every `RENEW_SECONDS` and takes it again if it is lost.

    :param shared: other processes may hold the same lock, if they share it too.
    :param waiting: what is logged if the lock is not free at once.
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
                log.warning("The lock of %s is lost, and is being taken again: %s", name, e)
                ended.wait(RENEW_SECONDS)

    thread = Thread(target=hold, name=f"lock of {name}", daemon=True)
    thread.start()
    try:
        first.result()
        yield
    finally:
        ended.set()
        thread.join(RENEW_SECONDS)  # a stalled connection keeps the thread; its lock ends with that connection


@contextmanager
def try_lock(endpoint: PostgresEndpoint, space: LockSpace, name: str) -> Iterator[bool]:
    """Whether the lock of a name was free. If True, it is held for the length of the block."""
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (space, lock_key(name)))
        row = cursor.fetchone()
        yield bool(row and row[0])


def lock_key(text: str) -> int:
    """A signed 32-bit number for advisory locks. Two names with one number wait for each other, and nothing worse."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big", signed=True)


def lock_mart(connection: Connection, table: str) -> None:
    """Make other writers of `table` that call this wait until the connection's transaction ends.

    Call it before the rows are read: a process that reads later sees newer rows, and must be the one that writes last.
    Readers of the table do not wait.

    :param table: a mart of this database, or a table elsewhere that is written from its rows.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LockSpace.MART, lock_key(table)))
