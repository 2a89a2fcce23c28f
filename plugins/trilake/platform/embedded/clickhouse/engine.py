"""The engine: chDB's connections, each used by one request or one session, and what streams through them.

chDB runs the queries of one connection one after the other and those of several side by side. A buffered query that
fails leaves its partial output to the connection's next answer: a request has a connection of its own (about 1 ms),
and a session's is rinsed after every failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.platform.embedded.clickhouse.config import GatewayConfig
from trilake.platform.embedded.clickhouse.protocol import QueryError, Session, identifier, quoted
from trilake.platform.embedded.clickhouse.statement import (
    GATEWAY_DATABASE,
    QUERY_ID,
    QUERY_ID_SETTING,
    STREAMED_FORMATS,
    STREAMED_INPUTS,
    VIEWS,
    Head,
)
from trilake.platform.embedded.clickhouse.wire import (
    MAX_SPOOL_BYTES,
    PIECE_BYTES,
    arrow_stream_of_file,
    joined_arrow_streams,
    spool,
)

MAX_SESSIONS = 1000
"""Sessions kept at the same time; each holds a connection (about 80 KiB) until its timeout."""

_BLOCKS_IN_MEMORY = 16
"""An insert gathers rows into blocks of this part of the memory limit: a few are in work at the same time."""

_OURS = b"/* gateway */ "
"""Begins every statement of the gateway itself; the view of the query log leaves them out."""

_READ_ONLY = "READ_ONLY"

FULL_BYTES = 16 << 20
"""With less room on its disk, an error of the engine may come of that."""


@dataclass
class Summary:
    """What a query read, wrote and gave, as far as the engine tells. Bytes are uncompressed."""

    started_ns: int
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0

    def add(self, result: Any) -> None:
        """Count one of the engine's results."""
        self.read_rows += result.storage_rows_read()
        self.read_bytes += result.storage_bytes_read()
        self.written_rows += result.rows_written()
        self.written_bytes += result.bytes_written()
        self.result_rows += result.rows_read()
        self.result_bytes += result.bytes_read()

    def fields(self) -> dict[str, str]:
        """The fields of X-ClickHouse-Summary; numbers are strings there."""
        values = {name: str(value) for name, value in vars(self).items() if name != "started_ns"}
        return {**values, "elapsed_ns": str(time.perf_counter_ns() - self.started_ns)}


class Connection:
    """One connection to the engine. Used by one thread at a time."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened  # closes itself when it is no longer held, and a closed one never answers
        self._raw = opened._conn
        self._dirty = False
        self.streams = True
        """False once a session has made a setting that keeps answers from being streamed."""

    def configure(self, database: str, settings: Mapping[str, str]) -> None:
        """Make the database and the settings those of the following statements.

        :raises QueryError: the engine refuses one.
        """
        if database:
            self._command(f"USE {identifier(database)}")
        # readonly last: after it nothing can be set
        names = sorted(settings, key=lambda name: name == "readonly")
        if names:
            self._command("SET " + ", ".join(f"{name} = {quoted(settings[name])}" for name in names))

    def remember(self, settings: Iterable[str]) -> Mapping[str, str | None]:
        """The present database (under an empty name) and values of settings; None where it is the default."""
        names = ", ".join(map(quoted, settings)) or "''"
        found = self._command(
            "SELECT '' AS name, currentDatabase() AS value, true AS changed UNION ALL "
            f"SELECT name, value, changed::Bool FROM system.settings WHERE name IN ({names}) FORMAT JSONCompactEachRow"
        )
        rows = [json.loads(line) for line in found.splitlines()]
        return {name: value if changed else None for name, value, changed in rows}

    def restore(self, remembered: Mapping[str, str | None], *, database: bool) -> None:
        """Undo `configure`.

        :param database: whether it changed the database; if not, a USE since then stands.
        """
        if database:
            self._command(f"USE {identifier(remembered[''] or 'default')}")
        values = {name: value for name, value in remembered.items() if name}
        if values:
            self._command(
                "SET " + ", ".join(f"{n} = {'DEFAULT' if v is None else quoted(v)}" for n, v in values.items())
            )

    def rinse(self) -> None:
        """Take away what a failed query left: the next answer would begin with it."""
        if self._dirty:
            with contextlib.suppress(QueryError):
                self._command("SELECT 1 FORMAT Null")
            self._dirty = False

    def classify(self, sql: bytes) -> tuple[int, bool]:
        """How many statements a text holds (0: it is none), and whether it only reads."""
        found = self._raw.classify_query(sql)
        return found["statement_count"], found["query_class"].name == _READ_ONLY

    def query(self, sql: bytes, format_: str, parameters: Mapping[str, str], summary: Summary) -> Iterator[bytes]:
        """Run a statement; its answer is made as a whole, in memory, then given piece by piece: not for SELECT."""
        with self._failing():
            result = self._raw.query(sql, format_, params=dict(parameters))
        summary.add(result)
        view = memoryview(result.get_memview().view())
        for start in range(0, len(view), PIECE_BYTES):
            yield bytes(view[start : start + PIECE_BYTES])

    def to_file(self, sql: bytes, path: str, parameters: Mapping[str, str], summary: Summary) -> Iterator[bytes]:
        """Run a SELECT that writes a file, then give the file piece by piece and remove it.

        Some formats are whole documents (JSON, Parquet); chDB would make them in memory, beyond any limit.

        :param path: relative to the data folder, as in the statement.
        """
        remembered = self.remember(["max_result_bytes", "readonly"])
        # with readonly=1 nothing can be set, and nothing undone
        limited = remembered["max_result_bytes"] is None and remembered["readonly"] != "1"
        if limited:
            self._command(f"SET max_result_bytes = {MAX_SPOOL_BYTES}")
        try:
            with self._failing():
                summary.add(self._raw.query(sql, "TabSeparated", params=dict(parameters)))
            with open(path, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        finally:
            Path(path).unlink(missing_ok=True)
            if limited:
                self.restore({"max_result_bytes": None}, database=False)

    def stream(self, sql: bytes, format_: str, parameters: Mapping[str, str], summary: Summary) -> Iterator[bytes]:
        """Run a SELECT; its answer is made while it is taken. Closing the iterator cancels it."""
        with contextlib.closing(self._blocks(sql, format_, parameters, summary)) as pieces:
            yield from joined_arrow_streams(pieces) if format_.lower() == "arrowstream" else pieces

    def _blocks(self, sql: bytes, format_: str, parameters: Mapping[str, str], summary: Summary) -> Generator[bytes]:
        with self._failing():
            handle = self._raw.send_query(sql, format_, params=dict(parameters))
        rows, first = 1, True
        try:
            while rows:
                with self._failing():
                    result = self._raw.streaming_fetch_result(handle)
                summary.add(result)
                rows = result.rows_read()
                content = result.bytes()
                # the last result has no rows, and no bytes either unless it is the only one (a header)
                if content and (rows or first):
                    yield content
                first = False
        finally:
            if rows:
                self._raw.streaming_cancel_query(handle)

    def insert(self, head: Head, data: Iterable[bytes], spool_path: str, summary: Summary) -> None:
        """Insert data while it comes, or from a file once it is whole, as its format allows.

        If `data` raises, the insert is aborted: everything that the engine has not yet made a part of the table is
        dropped. It makes parts of min_insert_block_size_bytes or _rows (1M); those stay, as in a server.

        :param spool_path: a new file for the data, relative to the data folder.
        """
        format_ = head.format.lower()
        if format_ == "arrow":
            self._insert_stream(head.insert, "ArrowStream", arrow_stream_of_file(data), summary)
        elif format_ in STREAMED_INPUTS:
            self._insert_stream(head.insert, head.format, data, summary)
        else:
            try:
                spool(data, Path(spool_path))
                with self._failing():
                    summary.add(self._raw.query(head.from_file(spool_path), "TabSeparated"))
            finally:
                Path(spool_path).unlink(missing_ok=True)

    def _insert_stream(self, sql: bytes | None, format_: str, data: Iterable[bytes], summary: Summary) -> None:
        with self._failing():
            handle = self._raw.send_insert(sql, format_)
        done = False
        try:
            for piece in data:
                with self._failing():
                    self._raw.insert_append(handle, piece)
            with self._failing():
                result = self._raw.insert_done(handle)
            done = True
        finally:
            if not done:
                with contextlib.suppress(RuntimeError):
                    self._raw.insert_cancel(handle)
        summary.add(result)

    def close(self) -> None:
        self._opened.close()

    def _command(self, sql: str) -> str:
        with self._failing():
            content: bytes = self._raw.query(_OURS + sql.encode(), "TabSeparated").bytes() or b""
        return content.decode()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:
            self._dirty = True
            raise QueryError.of_engine(e, note=_lack_of_room()) from None


def check_room() -> None:
    """Before a statement makes or fills a table: on a full disk the engine makes one whose definition is empty.

    It reports success, finds the definition to be an "Empty query" when it reads it again, and does not say why.

    :raises QueryError: the disk is full (243).
    """
    if lack := _lack_of_room():
        raise QueryError(243, lack)


def _lack_of_room() -> str:
    free = shutil.disk_usage(".").free  # the data folder, see `Engine`
    return f"The disk of the data folder is full: {free} bytes are free." if free < FULL_BYTES else ""


class _Held:
    """A session's connection, and until when it is kept."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.until = 0.0
        self.busy = False


class Engine:
    """The engine of this process, on one data folder.

    :raises ConfigurationError: the folder is another process's, or the engine cannot start on it.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        block = str(config.max_memory_bytes // _BLOCKS_IN_MEMORY)
        self._settings = {
            "log_queries": "1",
            # what differs between the engine as a library and as a server
            "implicit_select": "0",
            "allow_introspection_functions": "0",
            "storage_file_read_method": "pread",
            # acknowledged is written, by the insert itself
            "async_insert": "0",
            # by default a block of wide rows may be as large as the memory limit
            "max_insert_block_size_bytes": block,
            "min_insert_block_size_bytes": block,
        }
        self._sessions: dict[str, _Held] = {}
        self._guard = threading.Lock()
        # the engine takes its time zone from the process, not from its configuration
        os.environ["TZ"] = "UTC"
        time.tzset()
        import chdb

        self._chdb: Any = chdb
        # The engine takes its paths from a URL; relative ones need no quoting.
        os.chdir(config.data)
        try:
            self._first = self._connect()  # the engine ends with its last connection
        except RuntimeError as e:
            raise ConfigurationError(
                f"The engine cannot start on {config.data} ({str(e).splitlines()[0]}).",
                hint="If the folder was made by a newer version, use that one; the message above says more.",
            ) from None
        self._prepare()

    def _connect(self) -> Connection:
        return Connection(self._chdb.connect(f"engine?config-file={self._config.engine_file.name}&log_queries=0"))

    def _prepare(self) -> None:
        for database in (*self._config.shards, self._config.database, GATEWAY_DATABASE):
            self.run(f"CREATE DATABASE IF NOT EXISTS {identifier(database)}")
        self.run("SYSTEM FLUSH LOGS")  # makes the log's table, which the view stands on
        replaced = f"if(Settings['{QUERY_ID_SETTING}'] = '', {{0}}, {QUERY_ID}) AS {{0}}"
        for table in sorted(VIEWS):
            self.run(
                f"CREATE OR REPLACE VIEW {GATEWAY_DATABASE}.{table} AS SELECT * REPLACE "
                f"({replaced.format('query_id')}, {replaced.format('initial_query_id')}) "
                f"FROM system.{table} WHERE NOT startsWith(query, {quoted(_OURS.decode().strip())})"
            )
        self.version = self.run("SELECT version()").strip()
        self.timezone = self.run("SELECT timezone()").strip()

    def run(self, sql: str) -> str:
        """Run a statement of the gateway's own.

        :raises QueryError: it failed.
        """
        connection = self._connect()
        try:
            return connection._command(sql)
        finally:
            connection.close()

    def kill(self, query_id: str) -> None:
        """Ask a client's query to stop."""
        self.run(f"KILL QUERY WHERE {QUERY_ID} = {quoted(query_id)} ASYNC")

    def kill_all(self) -> None:
        """Ask every client's query to stop."""
        self.run(f"KILL QUERY WHERE {QUERY_ID} != '' ASYNC")

    @contextlib.contextmanager
    def connection(self, session: Session | None, database: str, settings: Mapping[str, str]) -> Iterator[Connection]:
        """A request's connection, with its database and settings: a new one, or its session's.

        :raises QueryError: the session is in use (373), is not there and must be (372), or a setting is refused.
        """
        if session is None:
            connection = self._connect()
            try:
                connection.configure(database, {**self._settings, **settings})
                yield connection
            finally:
                connection.close()
            return
        held = self._enter(session)
        try:
            # a request's settings are its own; what it SETs is the session's
            remembered = held.connection.remember(settings)
            try:
                held.connection.configure(database, settings)
                yield held.connection
            finally:
                held.connection.rinse()
                held.connection.restore(remembered, database=bool(database))
        finally:
            with self._guard:
                held.busy, held.until = False, time.monotonic() + session.seconds

    def _enter(self, session: Session) -> _Held:
        now = time.monotonic()
        with self._guard:
            for name, other in list(self._sessions.items()):
                if not other.busy and other.until < now:
                    self._sessions.pop(name).connection.close()
            held = self._sessions.get(session.id)
            if held is None:
                if session.must_exist:
                    raise QueryError(372, "Session not found.")
                if len(self._sessions) >= MAX_SESSIONS:
                    raise QueryError(202, f"Too many sessions: {MAX_SESSIONS} are open.")
                connection = self._connect()
                connection.configure("", self._settings)
                held = self._sessions[session.id] = _Held(connection)
            if held.busy:
                raise QueryError(373, "Session is locked by a concurrent client.")
            held.busy = True
            return held

    def close(self) -> None:
        """End the engine; queries that still run are lost."""
        self.run("SYSTEM FLUSH LOGS")
        with self._guard:
            for held in self._sessions.values():
                if not held.busy:
                    held.connection.close()
        self._first.close()


def can_stream(format_: str) -> bool:
    """Whether answers in a format can be sent while they are made."""
    return format_.lower() in STREAMED_FORMATS
