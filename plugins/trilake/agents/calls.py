"""The record of every call: written before anything is done, completed after it. A call that cannot be recorded is not
done.

The record is in PostgreSQL, table ``agent_calls`` of the database ``lake``. It is kept for `KEPT_DAYS` days.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from trilake.agents.refusals import CallError, plain
from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.postgres.connection import connect

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

T = TypeVar("T")

KEPT_DAYS = 90
# A statement of up to `MAX_SQL` characters is recorded as a whole.
_MAX_ARGUMENTS = 32_000
_FORGET_EVERY = 1_000  # calls


@dataclass
class Outcome:
    """What a call did, for its record.

    :ivar rows: rows of the answer, or files listed; `bytes`: of the answer or the object.
    """

    rows: int | None = None
    bytes: int | None = None
    query_id: str | None = None
    run_id: str | None = None


class Calls:
    """Records calls. It may be used in several threads; they share one connection.

    :param endpoint: the database ``lake``.
    """

    def __init__(self, endpoint: PostgresEndpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._held: Any = None  # the context manager of the connection
        self._connection: Any = None

    def begin(self, agent: str, tool: str, arguments: Mapping[str, Any]) -> int:
        """Record that a call begins. Returns its number.

        :raises CallError: it could not be recorded.
        """
        from psycopg2.extras import Json

        def insert(cursor: Cursor) -> int:
            cursor.execute(
                "INSERT INTO agent_calls (agent, tool, arguments) VALUES (%s, %s, %s) RETURNING id",
                (agent, tool, Json(_bounded(arguments))),
            )
            row = cursor.fetchone()
            assert row is not None  # noqa: S101 - INSERT RETURNING always gives a row
            if row[0] % _FORGET_EVERY == 0:
                cursor.execute(f"DELETE FROM agent_calls WHERE at < now() - interval '{KEPT_DAYS} days'")
            return int(row[0])

        return self._do(insert)

    def end(self, call: int, outcome: Outcome, *, error: CallError | None = None) -> None:
        """Record how a call ended.

        :raises CallError: it could not be recorded.
        """

        def update(cursor: Cursor) -> None:
            cursor.execute(
                "UPDATE agent_calls SET ended_at = now(), outcome = %s, said = %s, rows = %s, bytes = %s, "
                "query_id = %s, run_id = %s WHERE id = %s",
                (
                    error.code if error else "done",
                    plain(error.message, 1_000).replace("\0", "\\0") if error else None,
                    outcome.rows,
                    outcome.bytes,
                    outcome.query_id,
                    outcome.run_id,
                    call,
                ),
            )

        self._do(update)

    def close(self) -> None:
        with self._lock:
            self._forget()

    def _do(self, work: Callable[[Cursor], T]) -> T:
        """Run statements, each of which commits. A connection that was lost meanwhile is made again, once."""
        with self._lock:
            kept = self._connection is not None
            try:
                return self._try(work)
            except TrilakeError as e:
                self._forget()
                if not kept:
                    raise _unrecorded(e) from None
            try:
                return self._try(work)
            except TrilakeError as e:
                self._forget()
                raise _unrecorded(e) from None

    def _try(self, work: Callable[[Cursor], T]) -> T:
        import psycopg2

        if self._connection is None:
            self._held = connect(self._endpoint, autocommit=True)
            self._connection = self._held.__enter__()
        try:
            with self._connection.cursor() as cursor:
                return work(cursor)
        except psycopg2.Error as e:
            first = next(iter(str(e).strip().splitlines()), type(e).__name__)
            raise TrilakeError(f"PostgreSQL database {self._endpoint.database}: {first}") from None

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._held = self._connection = None


def _unrecorded(error: TrilakeError) -> CallError:
    return CallError(
        "not_recorded",
        f"The call could not be recorded, so it was not done or its end is not recorded. {error.message}",
        hint="Try again in a minute. If it stays, tell the platform's operator.",
        retry=True,
    )


def _bounded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they are recorded: text is cut, and NUL, which jsonb refuses, is escaped."""

    def bounded(value: Any) -> Any:
        if isinstance(value, str):
            return plain(value, _MAX_ARGUMENTS).replace("\0", "\\0")
        if isinstance(value, Mapping):
            return {str(bounded(str(name))): bounded(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [bounded(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    return {name: bounded(value) for name, value in arguments.items()}
