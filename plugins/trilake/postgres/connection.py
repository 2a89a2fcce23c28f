"""Connections to PostgreSQL. Their errors name the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trilake.endpoints import PostgresEndpoint
from trilake.errors import IS_IT_UP, RefusedError, TrilakeError, UnreachableError
from trilake.retry import retry_while_unreachable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

CONNECT_TIMEOUT_S = 10
# A connection that holds a lock is idle while a job runs. Firewalls drop idle connections.
KEEPALIVE_S = 60


class PostgresError(TrilakeError):
    """An error that PostgreSQL returned, with the database."""


@contextmanager
def connect(endpoint: PostgresEndpoint, *, autocommit: bool = False) -> Iterator[Connection]:
    """A connection for the length of a `with` block. The block is one transaction: committed at the end, rolled back
    after an error. With `autocommit` there is no transaction.

    :raises UnreachableError: the server does not answer.
    :raises RefusedError: the server refuses the password.
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
            # The server sends keepalives too. Otherwise a connection of a host that died holds its locks for two hours.
            options=f"-c timezone=UTC -c tcp_keepalives_idle={KEEPALIVE_S} -c tcp_keepalives_interval=10 "
            "-c tcp_keepalives_count=3",
        )
    except psycopg2.OperationalError as e:
        refused = "authentication failed" in str(e)
        raise (RefusedError if refused else UnreachableError)(
            f"PostgreSQL database {endpoint.database} ({endpoint.host}:{endpoint.port}): {' '.join(str(e).split())}.",
            hint="Check the password: the server keeps the one that it was created with." if refused else IS_IT_UP,
        ) from None
    connection.autocommit = autocommit
    try:
        yield connection
        if not autocommit:
            connection.commit()
    except psycopg2.Error as e:
        # Show the first line only, and `from None`: the other lines quote the statement with its values.
        first = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise PostgresError(f"PostgreSQL database {endpoint.database}: {first}") from None
    finally:
        connection.close()  # an open transaction is rolled back by the server


def await_answer(endpoint: PostgresEndpoint) -> None:
    """Return when the server answers; see `trilake.retry`."""

    def ask() -> None:
        with connect(endpoint):
            pass

    retry_while_unreachable(ask)


def listed(columns: Sequence[str]) -> str:
    """Quoted column names, with commas between them."""
    return ", ".join(map(quote, columns))


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
