"""Publishers that go one statement at a time: a schedule says who goes next, and what befalls them there.

Each actor is a greenlet on the real ClickHouse and PostgreSQL; so is each branch that it runs side by side. An actor
stops before each statement, until the schedule lets it go on or makes the statement fail. Nothing here depends on a
clock, so that a schedule can be played again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unittest.mock import patch

import psycopg2
from clickhouse_connect.driver.exceptions import OperationalError
from greenlet import getcurrent, greenlet
from psycopg2.errors import LockNotAvailable

from trilake.clickhouse import cluster as cluster_module
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.publication import publisher, switch
from trilake.endpoints import Endpoints, PostgresEndpoint
from trilake.errors import TrilakeError

# PostgreSQL says that somebody holds what is asked for, instead of waiting: who holds it may be waiting for us.
LOCK_TIMEOUT_MS = 5


class Death(BaseException):
    """The process is gone: none of its statements is sent any more, in no `finally` either."""


class Fate(StrEnum):
    """What becomes of a statement."""

    GO = "go"
    REFUSED = "refused"
    """The network fails before it is sent."""
    ANSWER_LOST = "answer lost"
    """It is done, and the network fails before that is known."""
    DEATH = "death"
    """The process dies before it is sent, which is after the one before."""
    DEATH_IN_FLIGHT = "death in flight"
    """The process dies, and the statement is on its way: it arrives at any later time, or never."""


@dataclass(eq=False)
class Step:
    """A branch of an actor, stopped before a statement."""

    actor: Actor
    branch: greenlet
    server: str
    sql: str
    send: Callable[[], Any]

    def __str__(self) -> str:
        return f"{self.actor.name}: {' '.join(self.sql.split())[:110]}"


class Actor:
    """One process: a publisher, a finisher or a cleaner.

    :param attempt: what a publisher calls its attempt, instead of something random.
    :ivar result: what the work gave. :ivar error: what it raised.
    """

    def __init__(self, name: str, attempt: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.attempt = attempt
        self.waiting: list[Step] = []
        self.connections: list[SteppedConnection] = []
        self.result: Any = None
        self.error: TrilakeError | None = None
        self.dead = self.ended = False
        self._work = work
        self._runnable: list[greenlet] = []
        self._branches: list[greenlet] = []
        self.spawn(self._main)
        self._drain()

    @property
    def alive(self) -> bool:
        return not (self.dead or self.ended)

    def _main(self) -> None:
        try:
            self.result = self._work()
        except TrilakeError as e:
            self.error = e
        except Death:
            pass
        self.ended = not self.dead

    def spawn(self, work: Callable[[], None]) -> None:
        branch = _Branch(self, work)
        self._branches.append(branch)
        self._runnable.append(branch)

    def resume(self, branch: greenlet) -> None:
        self._runnable.append(branch)

    def step(self, branch: int = 0, fate: Fate = Fate.GO) -> Step:
        """Give one of the waiting statements its fate; all branches are before a statement then, or over."""
        step = self.waiting.pop(branch % len(self.waiting))
        if fate in (Fate.DEATH, Fate.DEATH_IN_FLIGHT):
            self.die()
        else:
            step.branch.fate = fate
            self.resume(step.branch)
            self._drain()
        return step

    def run(self) -> Actor:
        """All statements that are left."""
        while self.alive:
            self.step()
        return self

    def die(self) -> None:
        """As by kill -9: PostgreSQL rolls back, and gives its locks to others."""
        self.dead = True
        for connection in self.connections:
            connection.lose()
        for branch in self._branches:
            if branch and not branch.dead:
                branch.parent = getcurrent()
                branch.throw(Death)
        self.waiting.clear()
        self._runnable.clear()

    def lose_connections(self) -> None:
        """PostgreSQL has restarted. The process learns of it when it asks the next time."""
        for connection in self.connections:
            connection.lose()

    def perform(self, server: str, sql: str, send: Callable[[], Any], unreachable: Callable[[], Exception]) -> Any:
        """Called by a branch before each of its statements."""
        while True:
            branch = self._stop(server, sql, send)
            if branch.fate is Fate.REFUSED:
                raise unreachable()
            try:
                answer = send()
            except LockNotAvailable:
                continue
            if branch.fate is Fate.ANSWER_LOST:
                raise unreachable()
            return answer

    def _stop(self, server: str, sql: str, send: Callable[[], Any]) -> _Branch:
        branch = getcurrent()
        assert isinstance(branch, _Branch)
        if self.dead:
            raise Death
        self.waiting.append(Step(self, branch, server, sql, send))
        branch.parent.switch()
        if self.dead:
            raise Death
        return branch

    def _drain(self) -> None:
        while self._runnable:
            branch = self._runnable.pop(0)
            branch.parent = getcurrent()
            branch.switch()


class _Branch(greenlet):  # type: ignore[misc]
    fate = Fate.GO

    def __init__(self, actor: Actor, work: Callable[[], None]) -> None:
        super().__init__(self._run)
        self.actor, self._work = actor, work

    def _run(self) -> None:
        with suppress(Death):
            self._work()


class SideBySide:
    """Stands where the cluster's thread pool does: a branch for each call, let go in the order of the schedule."""

    def __init__(self, max_workers: int) -> None:
        pass

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def map(self, function: Callable[[int], None], items: Iterable[int]) -> Iterator[None]:
        caller = getcurrent()
        if not isinstance(caller, _Branch):
            return iter([function(item) for item in items])
        left = list(items)
        errors: list[Exception] = []

        def one(item: int) -> None:
            try:
                function(item)
            except Exception as e:
                errors.append(e)
            left.remove(item)
            if not left:
                caller.actor.resume(caller)

        for item in list(left):
            caller.actor.spawn(lambda item=item: one(item))
        if left:
            caller.parent.switch()
        if caller.actor.dead:
            raise Death
        if errors:
            raise errors[0]
        return iter(())


class SteppedClient:
    """A client of ClickHouse that stops before each statement."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def query(self, sql: str, **options: Any) -> Any:
        return self._perform(self._client.query, sql, options)

    def command(self, sql: str, **options: Any) -> Any:
        return self._perform(self._client.command, sql, options)

    def close(self) -> None:
        pass

    def _perform(self, method: Callable[..., Any], sql: str, options: dict[str, Any]) -> Any:
        branch = getcurrent()
        if not isinstance(branch, _Branch):
            return method(sql, **options)
        return branch.actor.perform(
            "clickhouse", sql, lambda: method(sql, **options), lambda: OperationalError("connection reset by peer")
        )


class Connections:
    """PostgreSQL's connections, kept open: one that is closed is rolled back, rid of its locks, and used again."""

    def __init__(self, endpoint: PostgresEndpoint) -> None:
        self._connect, self._endpoint = psycopg2.connect, endpoint
        self._free: list[Any] = []

    def take(self) -> Any:
        if self._free:
            return self._free.pop()
        e = self._endpoint
        made = self._connect(host=e.host, port=e.port, dbname=e.database, user=e.user, password=e.password)
        made.autocommit = True
        with made.cursor() as cursor:
            cursor.execute("SET timezone = 'UTC'")
            cursor.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        return made

    def give(self, connection: Any) -> None:
        connection.rollback()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_all()")
        self._free.append(connection)

    def close(self) -> None:
        for connection in self._free:
            connection.close()

    def connect(self, **options: Any) -> Any:
        branch = getcurrent()
        if not isinstance(branch, _Branch):
            return self._connect(**options)
        if branch.actor.dead:
            raise Death
        return SteppedConnection(branch.actor, self)


class SteppedConnection:
    """A connection of psycopg2 that stops before each statement and each commit."""

    def __init__(self, actor: Actor, pool: Connections) -> None:
        self._actor, self._pool = actor, pool
        self._real: Any = pool.take()
        self._real.autocommit = False
        self.closed = 0
        actor.connections.append(self)

    @property
    def autocommit(self) -> bool:
        return bool(self._real and self._real.autocommit)

    @autocommit.setter
    def autocommit(self, on: bool) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if self._real:
            self._real.autocommit = on

    def lose(self) -> None:
        if self._real:
            self._pool.give(self._real)
            self._real = None

    def close(self) -> None:
        self.lose()
        self.closed = self.closed or 1
        if self in self._actor.connections:
            self._actor.connections.remove(self)

    def gone(self) -> Exception:
        self.lose()
        self.closed = 2
        return psycopg2.OperationalError("server closed the connection unexpectedly")

    def real(self) -> Any:
        if not self._real:
            raise self.gone()
        return self._real

    def cursor(self) -> SteppedCursor:
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        return SteppedCursor(self)

    def perform(self, sql: str, send: Callable[[], Any]) -> Any:
        return self._actor.perform("postgres", sql, send, self.gone)

    def commit(self) -> None:
        self.perform("COMMIT", lambda: self.real().commit())

    def rollback(self) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if self._real:
            self._real.rollback()

    def __enter__(self) -> SteppedConnection:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()


class SteppedCursor:
    def __init__(self, connection: SteppedConnection) -> None:
        self._connection = connection
        self._cursor: Any = None

    def __enter__(self) -> SteppedCursor:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def execute(self, sql: str, parameters: Sequence[Any] | None = None) -> None:
        def send() -> None:
            real = self._connection.real()
            self._cursor = real.cursor()
            if real.autocommit:
                self._cursor.execute(sql, parameters)
                return
            self._cursor.execute("SAVEPOINT stopped")
            try:
                self._cursor.execute(sql, parameters)
            except LockNotAvailable:
                self._cursor.execute("ROLLBACK TO SAVEPOINT stopped")
                raise

        self._connection.perform(sql, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


_random = secrets.token_hex


def _name_attempt(size: int) -> str:
    branch = getcurrent()
    return branch.actor.attempt if isinstance(branch, _Branch) else _random(size)


class Stage:
    """Where actors act: while it is entered, they go statement by statement, and nobody else does."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._open = ExitStack()

    def __enter__(self) -> Stage:
        self._pool = Connections(self._endpoints.lake)
        self._open.callback(self._pool.close)
        self.connection = self._pool.take()
        self._open.callback(self.connection.close)
        self._cluster = self._open.enter_context(Cluster(self._endpoints.clickhouse))
        self._open.enter_context(patch.object(psycopg2, "connect", self._pool.connect))
        self._open.enter_context(patch.object(publisher.secrets, "token_hex", _name_attempt))
        for module in (cluster_module, switch):
            self._open.enter_context(patch.object(module, "ThreadPoolExecutor", SideBySide))
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def cluster(self) -> Cluster:
        """For one actor."""
        real = self._cluster
        return Cluster(real.endpoint, connect=lambda _endpoint, shard, _comment: SteppedClient(real.client(shard)))  # type: ignore[arg-type,return-value]

    @property
    def plain(self) -> Cluster:
        """For who looks on."""
        return self._cluster
