"""A ClickHouse cluster as a few verbs: any host, every host, every shard.

The shape is PostHog's `clickhouse/cluster.py`: an operation is a small callable that takes a client, runs side by side
on the hosts it is meant for, and the errors of all of them arrive as one.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard
from trilake.errors import TrilakeError, UnreachableError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5
# The longest a single statement may take. A load of a large partition runs on the server without a word to the
# client, so this is a limit on the work and not on the network.
STATEMENT_TIMEOUT_S = 3_600
# Statements under way at once, per shard: enough to hide a round trip, few enough not to crowd out the readers.
STATEMENTS_PER_SHARD = 2

UNKNOWN_TABLE = 60
INCOMPATIBLE_COLUMNS = 122

_POLL_S = 1.0

_CODE = re.compile(r"[Cc]ode: (\d+)")
# of what the operating system says; a full disk, say, is not the network's
_NETWORK_ERRORS = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
_QUOTED_STATEMENT = re.compile(r"[.,:]?\s+(?:in scope|while (?:processing|executing))\b", re.IGNORECASE)
_STATUS = re.compile(r"HTTP status \d+")


class ClickHouseError(TrilakeError):
    """What ClickHouse answered, and on which host.

    :ivar code: ClickHouse's own error code; 0 when it gave none.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ClusterError(ClickHouseError):
    """The errors of all hosts that failed, in one."""

    def __init__(self, errors: Sequence[tuple[ClickHouseShard, TrilakeError]]) -> None:
        self.errors = tuple(errors)
        codes = {error.code for _, error in errors if isinstance(error, ClickHouseError)}
        lines = "; ".join(dict.fromkeys(error.message.rstrip(".") for _, error in errors)) + "."
        hints = dict.fromkeys(error.hint for _, error in errors if error.hint)
        super().__init__(lines, code=codes.pop() if len(codes) == 1 else 0, hint=" ".join(hints))


def error_of(where: ClickHouseShard | str | None, error: Exception) -> Exception:
    """ClickHouse's or the network's error as one of ours, without the statement: that may hold a secret.

    What is neither of them is a fault of the program and comes back as it is: its traceback tells where.
    """
    from clickhouse_connect.driver import exceptions as driver
    from urllib3.exceptions import HTTPError

    if isinstance(error, TrilakeError) or not isinstance(error, (driver.DatabaseError, HTTPError, *_NETWORK_ERRORS)):
        return error
    # of a shard, or of the driver itself when it is used in a wrong way
    if isinstance(error, (driver.ProgrammingError, driver.DataError, driver.NotSupportedError)):
        return error
    text, host = str(error), str(where or "ClickHouse")
    code = int(getattr(error, "code", None) or 0)
    if found := _CODE.search(text):
        first = without_statement(text[found.start() :].splitlines()[0])
        return ClickHouseError(f"{host}: {first[:500]}", code=code or int(found.group(1)))
    if code:  # a number and no words
        return ClickHouseError(f"{host}: Code: {code}.", code=code)
    status = _STATUS.search(text)
    # the innermost: a refused connection and one that stalls are the same to the driver
    cause: BaseException = error.__cause__ or error
    reason = status[0] if status else type(getattr(cause, "reason", None) or cause).__name__
    return UnreachableError(f"{host} does not answer ({reason}).")


def without_statement(text: str) -> str:
    """ClickHouse's message without the statement that it may quote, in which bound parameters stand in the clear."""
    found = _QUOTED_STATEMENT.search(text)
    if not found:
        return text
    name = re.findall(r"\(([A-Z][A-Z0-9_]+)\)", text[found.end() :])
    return f"{text[: found.start()].rstrip()}." + (f" ({name[-1]})" if name else "")


def quote_name(name: str) -> str:
    """An identifier, quoted for ClickHouse."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def quote_text(text: str) -> str:
    """A string literal of ClickHouse."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@dataclass(frozen=True)
class Statement:
    """One statement, to be given to a verb of `Cluster`. `{shard}` in it is the shard's database, quoted.

    :param settings: of the server, for this statement alone.
    """

    sql: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, client: Client, shard: ClickHouseShard) -> list[tuple[Any, ...]]:
        sql = self.sql.replace("{shard}", quote_name(shard.database))
        result = client.query(sql, settings=dict(self.settings))
        return [tuple(row) for row in result.result_rows]


Operation = Callable[["Client", ClickHouseShard], T]


class Cluster:
    """The shards of one cluster. Use it as a context manager: it holds an HTTP connection pool a host.

    :param comment: what `log_comment` says of every statement (dag, task, run, ...), as JSON in the query log.
    """

    def __init__(
        self,
        endpoint: ClickHouseEndpoint,
        *,
        comment: Mapping[str, Any] | None = None,
        connect: Callable[[ClickHouseEndpoint, ClickHouseShard, str], Client] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.shards = endpoint.shards
        self._comment = json.dumps(dict(comment or {}), sort_keys=True)
        self._connect = connect or _connect
        self._clients: dict[tuple[str, int], Client] = {}
        self._guard = threading.Lock()
        self._connecting: dict[tuple[str, int], threading.Lock] = {}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    @cached_property
    def hosts(self) -> tuple[ClickHouseShard, ...]:
        """One shard of each server: several shards may be databases of the same one."""
        return tuple({(shard.host, shard.port): shard for shard in reversed(self.shards)}.values())[::-1]

    # --- the verbs

    def any_host(self, operation: Operation[T]) -> T:
        """On the first host that answers.

        :raises ClusterError: none did. An answer that is an error is an answer, and is raised at once.
        """
        errors: list[tuple[ClickHouseShard, TrilakeError]] = []
        for shard in self.hosts:
            try:
                return self._run(operation, shard)
            except UnreachableError as e:
                errors.append((shard, e))
        raise ClusterError(errors)

    def every_host(self, operation: Operation[T]) -> dict[int, T]:
        """On each server once, side by side. Gives the results by the number of a shard there.

        :raises ClusterError: of every host that failed, after all have ended.
        """
        results = self._side_by_side([(host, operation) for host in self.hosts], len(self.hosts))
        return {host.number: result for host, result in zip(self.hosts, results, strict=True)}

    def every_shard(self, operation: Operation[T]) -> dict[int, T]:
        """On each shard, side by side. Gives the results by shard number.

        :raises ClusterError: of every shard that failed, after all have ended.
        """
        results = self._side_by_side([(shard, operation) for shard in self.shards], len(self.shards))
        return {shard.number: result for shard, result in zip(self.shards, results, strict=True)}

    def on_shard(self, shard: ClickHouseShard, operation: Operation[T]) -> T:
        """On one shard.

        :raises ClickHouseError: it refused. :raises UnreachableError: it does not answer.
        """
        return self._run(operation, shard)

    def on_shards(self, operations: Sequence[tuple[ClickHouseShard, Operation[T]]]) -> list[T]:
        """Many operations, each on its shard, side by side with bounded threads. Gives the results in order.

        :raises ClusterError: of all that failed; what waits for a thread is not started after a failure.
        """
        return self._side_by_side(operations, len(self.shards) * STATEMENTS_PER_SHARD, stop_early=True)

    def _side_by_side(
        self, operations: Sequence[tuple[ClickHouseShard, Operation[T]]], threads: int, *, stop_early: bool = False
    ) -> list[T]:
        results: dict[int, T] = {}
        errors: list[tuple[ClickHouseShard, TrilakeError]] = []

        def run(index: int) -> None:
            if errors and stop_early:
                return
            shard, operation = operations[index]
            try:
                results[index] = self._run(operation, shard)
            except TrilakeError as e:
                errors.append((shard, e))

        with ThreadPoolExecutor(max_workers=threads) as pool:
            list(pool.map(run, range(len(operations))))
        if errors:
            raise ClusterError(errors)
        return [results[index] for index in range(len(operations))]

    def await_hosts(self, seconds: float) -> None:
        """Return when every host answers. One that refuses us has answered, and its error is raised at once.

        :raises ClusterError: not all answer within `seconds`.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                self.every_host(Statement("SELECT 1"))
                return
            except ClusterError as e:
                refused = any(not isinstance(error, UnreachableError) for _, error in e.errors)
                if refused or time.monotonic() > until:
                    raise
            time.sleep(_POLL_S)

    def check_topology(self) -> None:
        """:raises ClickHouseError: the server's own list of shards is not the connection's."""
        rows = self.any_host(
            Statement(
                "SELECT shard_num, default_database FROM system.clusters "
                f"WHERE cluster = {quote_text(self.endpoint.cluster)} ORDER BY shard_num"
            )
        )
        listed = {int(number): database for number, database in rows}
        named = {shard.number: shard.database for shard in self.shards}
        if listed != named:
            raise ClickHouseError(
                f"The connection names the shards {named}, system.clusters lists {listed or 'none'} for cluster "
                f"{self.endpoint.cluster}.",
                hint="Make the connection's extra and the server's remote_servers agree.",
            )

    # --- inside

    def client(self, shard: ClickHouseShard) -> Client:
        """The client of the shard's server.

        :raises UnreachableError: it does not answer.
        :raises ClickHouseError: it refused us.
        """
        address = (shard.host, shard.port)
        with self._guard:
            connecting = self._connecting.setdefault(address, threading.Lock())
        with connecting:  # a lock a host: a slow one keeps no other waiting
            if address not in self._clients:
                try:
                    self._clients[address] = self._connect(self.endpoint, shard, self._comment)
                except Exception as e:
                    raise error_of(shard, e) from None
            return self._clients[address]

    def _run(self, operation: Operation[T], shard: ClickHouseShard) -> T:
        client = self.client(shard)
        try:
            return operation(client, shard)
        except Exception as e:
            # `from None`: the client's error carries the whole statement
            raise error_of(shard, e) from None


def _connect(endpoint: ClickHouseEndpoint, shard: ClickHouseShard, comment: str) -> Client:
    import clickhouse_connect

    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "send_receive_timeout": STATEMENT_TIMEOUT_S,
        # a statement that is sent twice is not ours to decide in a pool of connections
        "query_retries": 0,
        **endpoint.options,
    }
    settings = {**(options.pop("settings", None) or {}), "log_comment": comment}
    return clickhouse_connect.get_client(
        **{
            **options,
            "host": shard.host,
            "port": shard.port,
            "username": endpoint.user,
            "password": endpoint.password,
            "secure": endpoint.secure,
            "verify": endpoint.verify,
            # statements run side by side on one client, which a session would forbid
            "autogenerate_session_id": False,
            "settings": settings,
        }
    )
