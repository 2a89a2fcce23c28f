"""A ClickHouse cluster with a few methods: any host, every host, every shard.

The design follows PostHog's `clickhouse/cluster.py`: an operation is a small callable that takes a client. It runs in
parallel on its hosts, and the errors of all hosts are raised as one error.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard, hosts_of
from trilake.errors import ConfigurationError, TrilakeError, UnreachableError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5
# The longest time for a single statement. While a large partition is loaded, the server sends nothing to the client, so
# this limits the work and not the network.
STATEMENT_TIMEOUT_S = 3_600
# Parallel statements per shard: enough to hide a round trip, and few enough to leave resources for readers.
STATEMENTS_PER_SHARD = 2

UNKNOWN_TABLE = 60
UNKNOWN_DATABASE = 81
INCOMPATIBLE_COLUMNS = 122

_POLL_S = 1.0

_CODE = re.compile(r"[Cc]ode: (\d+)")
# Network errors of the operating system. Others, such as a full disk, are not the network's fault.
_NETWORK_ERRORS = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
_QUOTED_STATEMENT = re.compile(r"[.,:]?\s+(?:in scope|while (?:processing|executing))\b", re.IGNORECASE)
_STATUS = re.compile(r"HTTP status \d+")


class ClickHouseError(TrilakeError):
    """An error that ClickHouse returned, with the host.

    :ivar code: ClickHouse's own error code; 0 if it sent none.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ClusterError(ClickHouseError):
    """The errors of all hosts that failed, as one error."""

    def __init__(self, errors: Sequence[tuple[ClickHouseShard, TrilakeError]]) -> None:
        self.errors = tuple(errors)
        codes = {error.code for _, error in errors if isinstance(error, ClickHouseError)}
        lines = "; ".join(dict.fromkeys(error.message.rstrip(".") for _, error in errors)) + "."
        hints = dict.fromkeys(error.hint for _, error in errors if error.hint)
        super().__init__(lines, code=codes.pop() if len(codes) == 1 else 0, hint=" ".join(hints))


def error_of(where: ClickHouseShard | str | None, error: Exception) -> Exception:
    """An error of ClickHouse or the network as a `TrilakeError`, without the statement, which may hold a secret.

    Any other error is a fault of the program. It is returned unchanged, so that its traceback shows where it happened.
    """
    from clickhouse_connect.driver import exceptions as driver
    from urllib3.exceptions import HTTPError

    if isinstance(error, TrilakeError) or not isinstance(error, (driver.DatabaseError, HTTPError, *_NETWORK_ERRORS)):
        return error
    # wrong use of the driver
    if isinstance(error, (driver.ProgrammingError, driver.DataError, driver.NotSupportedError)):
        return error
    text, host = str(error), str(where or "ClickHouse")
    code = int(getattr(error, "code", None) or 0)
    if match := _CODE.search(text):
        first = without_statement(text[match.start() :].splitlines()[0])
        return ClickHouseError(f"{host}: {first[:500]}", code=code or int(match.group(1)))
    if code:  # a number without a message
        return ClickHouseError(f"{host}: Code: {code}.", code=code)
    status = _STATUS.search(text)
    # the innermost cause: the driver does not distinguish a refused connection from one that stalls
    cause: BaseException = error.__cause__ or error
    reason = status[0] if status else type(getattr(cause, "reason", None) or cause).__name__
    return UnreachableError(f"{host} does not answer ({reason}).")


def without_statement(text: str) -> str:
    """ClickHouse's message without the statement that it may quote: that shows the values of bound parameters."""
    match = _QUOTED_STATEMENT.search(text)
    if not match:
        return text
    name = re.findall(r"\(([A-Z][A-Z0-9_]+)\)", text[match.end() :])
    return f"{text[: match.start()].rstrip()}." + (f" ({name[-1]})" if name else "")


def quote_name(name: str) -> str:
    """An identifier, quoted for ClickHouse."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def quote_text(text: str) -> str:
    """A string literal of ClickHouse."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@dataclass(frozen=True)
class Statement:
    """One statement, as an operation for a method of `Cluster`.

    :param sql: `{shard}` in it is replaced by the shard's database, and `{staging}` by the database of its staging
        tables, both quoted.
    :param settings: server settings for this statement only.
    """

    sql: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, client: Client, shard: ClickHouseShard) -> list[tuple[Any, ...]]:
        sql = self.sql.replace("{shard}", quote_name(shard.database))
        sql = sql.replace("{staging}", quote_name(shard.staging_database))
        result = client.query(sql, settings=dict(self.settings))
        return [tuple(row) for row in result.result_rows]


Operation = Callable[["Client", ClickHouseShard], T]


class Cluster:
    """The shards of one cluster. Use it as a context manager: it holds one HTTP connection pool per host.

    :param comment: the `log_comment` of every statement (dag, task, run, ...), as JSON in the query log.
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
        """One shard of each server. Several shards may be databases of the same server."""
        return hosts_of(self.shards)

    def only(self, numbers: Collection[int]) -> Cluster:
        """A view with only these shards. It uses the connections of this cluster.

        :raises ConfigurationError: the connection does not name all of them.
        """
        if missing := sorted(set(numbers) - {shard.number for shard in self.shards}):
            raise ConfigurationError(
                f"Rows are on shard {missing[0]}, but the connection names {len(self.shards)} shards.",
                hint="Name all shards in the connection. To remove one, spread the rows over fewer shards first: "
                "`trilake reshard`.",
            )
        view = copy(self)
        view.shards = tuple(shard for shard in self.shards if shard.number in numbers)
        view.__dict__.pop("hosts", None)
        return view

    # --- operations

    def any_host(self, operation: Operation[T]) -> T:
        """Run an operation on the first host that answers.

        :raises ClusterError: no host answers.
        :raises ClickHouseError: the first host that answers returned an error. No other host is tried.
        """
        errors: list[tuple[ClickHouseShard, TrilakeError]] = []
        for shard in self.hosts:
            try:
                return self._run(operation, shard)
            except UnreachableError as e:
                errors.append((shard, e))
        raise ClusterError(errors)

    def every_host(self, operation: Operation[T]) -> dict[int, T]:
        """Run an operation once on each server, in parallel. Returns the results by the number of a shard there.

        :raises ClusterError: names every host that failed, after all have ended.
        """
        results = self._side_by_side([(host, operation) for host in self.hosts], len(self.hosts))
        return {host.number: result for host, result in zip(self.hosts, results, strict=True)}

    def every_shard(self, operation: Operation[T]) -> dict[int, T]:
        """Run an operation on each shard, in parallel. Returns the results by shard number.

        :raises ClusterError: names every shard that failed, after all have ended.
        """
        results = self._side_by_side([(shard, operation) for shard in self.shards], len(self.shards))
        return {shard.number: result for shard, result in zip(self.shards, results, strict=True)}

    def on_shard(self, shard: ClickHouseShard, operation: Operation[T]) -> T:
        """Run an operation on one shard.

        :raises ClickHouseError: the server returned an error.
        :raises UnreachableError: the server does not answer.
        """
        return self._run(operation, shard)

    def on_shards(self, operations: Sequence[tuple[ClickHouseShard, Operation[T]]]) -> list[T]:
        """Run many operations, each on its shard, in a limited number of threads. Returns the results in order.

        :raises ClusterError: names all that failed. After a failure no waiting operation is started.
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
        """Return when every host answers.

        :raises ClusterError: not all hosts answer within `seconds`, or a host returned an error, which is raised at
            once.
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
        """:raises ClickHouseError: a server's list of shards differs from the connection's."""
        by_host = self.every_host(
            Statement(
                "SELECT shard_num, default_database FROM system.clusters "
                f"WHERE cluster = {quote_text(self.endpoint.cluster)} ORDER BY shard_num"
            )
        )
        named = {shard.number: shard.database for shard in self.shards}
        for host in self.hosts:
            listed = {int(number): database for number, database in by_host[host.number]}
            if listed != named:
                raise ClickHouseError(
                    f"The connection names the shards {named}, but system.clusters of {host} lists {listed or 'none'} "
                    f"for cluster {self.endpoint.cluster}.",
                    hint="Name the same shards in the connection's extra and in each server's remote_servers.",
                )

    # --- internals

    def client(self, shard: ClickHouseShard) -> Client:
        """The client of the shard's server.

        :raises UnreachableError: the server does not answer.
        :raises ClickHouseError: the server refused the connection.
        """
        address = (shard.host, shard.port)
        with self._guard:
            connecting = self._connecting.setdefault(address, threading.Lock())
        with connecting:  # one lock per host, so that a slow host does not delay the others
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
            # `from None`: the client's error contains the whole statement
            raise error_of(shard, e) from None


def _connect(endpoint: ClickHouseEndpoint, shard: ClickHouseShard, comment: str) -> Client:
    import clickhouse_connect

    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "send_receive_timeout": STATEMENT_TIMEOUT_S,
        # The driver must not send a statement twice. The caller decides on retries.
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
            # statements run in parallel on one client, which a session does not allow
            "autogenerate_session_id": False,
            "settings": settings,
        }
    )
