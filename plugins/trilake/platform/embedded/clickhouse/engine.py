"""The engine: chDB's connections, each for one request or one session, and the streams over them.

chDB runs the queries of one connection one after the other, and those of several connections in parallel. If a buffered
query fails, its partial output is added to the connection's next answer. So each request gets a new connection (about
1 ms), and the connection of a session is cleaned after every failure.
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
"""The maximum number of sessions. Each has a connection (about 80 KiB) until its timeout."""

_BLOCKS_IN_MEMORY = 16
"""An insert's block has the memory limit divided by this, because several blocks are in memory at the same time."""

_GATEWAY_COMMENT = b"/* gateway */ "
"""The beginning of every statement of the gateway itself. The views of system tables hide these statements."""

_READ_ONLY = "READ_ONLY"

# Defaults of all connections. The engine's fast parser reads about 30 % of the floats with 17 digits as a neighbour of
# the nearest double.
_SETTINGS = "log_queries=0&precise_float_parsing=1"

FULL_BYTES = 16 << 20
"""If less space than this is free, an error of the engine may be caused by the full disk."""


@dataclass
class Summary:
    """What a query read, wrote and returned, as reported by the engine. Bytes are uncompressed."""

    started_ns: int
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0

    def add(self, result: Any) -> None:
        """Add the counts of one of the engine's results."""
        self.read_rows += result.storage_rows_read()
        self.read_bytes += result.storage_bytes_read()
        self.written_rows += result.rows_written()
        self.written_bytes += result.bytes_written()
        self.result_rows += result.rows_read()
        self.result_bytes += result.bytes_read()

    def fields(self) -> dict[str, str]:
        """The fields of X-ClickHouse-Summary. Numbers are strings there."""
        values = {name: str(value) for name, value in vars(self).items() if name != "started_ns"}
        return {**values, "elapsed_ns": str(time.perf_counter_ns() - self.started_ns)}


class Connection:
    """A connection to the engine. Only one thread may use it at a time."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened  # keep a reference: else chDB closes the connection, and a closed one never answers
        self._raw = opened._conn
        self._dirty = False
        self.streams = True
        """False after a SET statement with a setting that prevents streaming."""

    def configure(self, database: str, settings: Mapping[str, str]) -> None:
        """Set the database and the settings for the following statements.

        :raises QueryError: the engine refuses one of them.
        """
        if database:
            self._command(f"USE {identifier(database)}")
        # readonly last: after it, no setting can be changed
        names = sorted(settings, key=lambda name: name == "readonly")
        if names:
            self._command("SET " + ", ".join(f"{name} = {quoted(settings[name])}" for name in names))

    def remember(self, settings: Iterable[str]) -> Mapping[str, str | None]:
        """The current database (under an empty name) and the values of settings; None for a default value."""
        names = ", ".join(map(quoted, settings)) or "''"
        answer = self._command(
            "SELECT '' AS name, currentDatabase() AS value, true AS changed UNION ALL "
            f"SELECT name, value, changed::Bool FROM system.settings WHERE name IN ({names}) FORMAT JSONCompactEachRow"
        )
        rows = [json.loads(line) for line in answer.splitlines()]
        return {name: value if changed else None for name, value, changed in rows}

    def restore(self, remembered: Mapping[str, str | None], *, database: bool) -> None:
        """Undo `configure`.

        :param database: whether `configure` changed the database. If not, the effect of a USE statement is kept.
        """
        if database:
            self._command(f"USE {identifier(remembered[''] or 'default')}")
        values = {name: value for name, value in remembered.items() if name}
        if values:
            self._command(
                "SET " + ", ".join(f"{n} = {'DEFAULT' if v is None else quoted(v)}" for n, v in values.items())
            )

    def rinse(self) -> None:
        """Discard the partial output of a failed query. Otherwise the next answer would begin with it."""
        if self._dirty:
            with contextlib.suppress(QueryError):
                self._command("SELECT 1 FORMAT Null")
            self._dirty = False

    def classify(self, sql: bytes) -> tuple[int, bool]:
        """The number of statements in a text (0 if it has none), and whether it only reads."""
        answer = self._raw.classify_query(sql)
        return answer["statement_count"], answer["query_class"].name == _READ_ONLY

    def query(self, sql: bytes, format_: str, parameters: Mapping[str, str], summary: Summary) -> Iterator[bytes]:
        """Run a statement, and return its answer in pieces. Not for SELECT: the answer is buffered in memory."""
        with self._engine_errors():
            result = self._raw.query(sql, format_, params=dict(parameters))
        summary.add(result)
        view = memoryview(result.get_memview().view())
        for start in range(0, len(view), PIECE_BYTES):
            yield bytes(view[start : start + PIECE_BYTES])

    def to_file(self, sql: bytes, path: str, parameters: Mapping[str, str], summary: Summary) -> Iterator[bytes]:
        """Run a SELECT that writes a file, then return the file in pieces and remove it.

        An answer in some formats is one document (JSON, Parquet). chDB would make it in memory, without a limit.

        :param path: relative to the data folder, as in the statement.
        """
        remembered = self.remember(["max_result_bytes", "readonly"])
        # with readonly=1, no setting can be changed or reset
        limited = remembered["max_result_bytes"] is None and remembered["readonly"] != "1"
        if limited:
            self._command(f"SET max_result_bytes = {MAX_SPOOL_BYTES}")
        try:
            with self._engine_errors():
                summary.add(self._raw.query(sql, "TabSeparated", params=dict(parameters)))
            with open(path, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        finally:
            Path(path).unlink(missing_ok=True)
            if limited:
                self.restore({"max_result_bytes": None}, database=False)

    def stream(self, sql: bytes, format_: str, parameters: Mapping[str, str], summary: Summary) -> Iterator[bytes]:
        """Run a SELECT. Its answer is made while the iterator is read. Closing the iterator cancels the query."""
        with contextlib.closing(self._blocks(sql, format_, parameters, summary)) as blocks:
            yield from joined_arrow_streams(blocks) if format_.lower() == "arrowstream" else blocks

    def _blocks(self, sql: bytes, format_: str, parameters: Mapping[str, str], summary: Summary) -> Generator[bytes]:
        with self._engine_errors():
            handle = self._raw.send_query(sql, format_, params=dict(parameters))
        rows, first = 1, True
        try:
            while rows:
                with self._engine_errors():
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
        """Insert data while it arrives. If the format does not allow this, insert it from a file when it is complete.

        If `data` raises an error, the insert is aborted: rows that the engine has not written to a part are dropped. It
        writes a part for min_insert_block_size_bytes or _rows (1M). Written parts are kept, as in a ClickHouse server.

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
                with self._engine_errors():
                    summary.add(self._raw.query(head.from_file(spool_path), "TabSeparated"))
            finally:
                Path(spool_path).unlink(missing_ok=True)

    def _insert_stream(self, sql: bytes | None, format_: str, data: Iterable[bytes], summary: Summary) -> None:
        with self._engine_errors():
            handle = self._raw.send_insert(sql, format_)
        finished = False
        try:
            for piece in data:
                with self._engine_errors():
                    self._raw.insert_append(handle, piece)
            with self._engine_errors():
                result = self._raw.insert_done(handle)
            finished = True
        finally:
            if not finished:
                with contextlib.suppress(RuntimeError):
                    self._raw.insert_cancel(handle)
        summary.add(result)

    def close(self) -> None:
        self._opened.close()

    def _command(self, sql: str) -> str:
        with self._engine_errors():
            content: bytes = self._raw.query(_GATEWAY_COMMENT + sql.encode(), "TabSeparated").bytes() or b""
        return content.decode()

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:
            self._dirty = True
            raise QueryError.of_engine(e, note=_disk_full_message()) from None


def check_room() -> None:
    """Check the disk before a statement creates or fills a table.

    On a full disk, the engine reports success but creates a table with an empty definition. When it reads the
    definition later, the error is only "Empty query".

    :raises QueryError: the disk is full (243).
    """
    if message := _disk_full_message():
        raise QueryError(243, message)


def _disk_full_message() -> str:
    free = shutil.disk_usage(".").free  # the current folder is the data folder, see `Engine`
    return f"The disk of the data folder is full: {free} bytes are free." if free < FULL_BYTES else ""


class _OpenSession:
    """A session's connection, and the time until which it is kept."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.until = 0.0
        self.busy = False


class Engine:
    """The engine of this process, with one data folder.

    :raises ConfigurationError: the engine cannot start with this folder.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        block = str(config.max_memory_bytes // _BLOCKS_IN_MEMORY)
        self._settings = {
            "log_queries": "1",
            # defaults that differ between the engine as a library and as a server
            "implicit_select": "0",
            "allow_introspection_functions": "0",
            "storage_file_read_method": "pread",
            # an insert is acknowledged only after its data is written
            "async_insert": "0",
            # by default, a block of wide rows can be as large as the memory limit
            "max_insert_block_size_bytes": block,
            "min_insert_block_size_bytes": block,
        }
        self._sessions: dict[str, _OpenSession] = {}
        self._lock = threading.Lock()
        # the engine takes its time zone from the process, not from its configuration
        os.environ["TZ"] = "UTC"
        time.tzset()
        import chdb

        self._chdb: Any = chdb
        # The engine gets its paths in a URL. Relative paths need no quoting.
        os.chdir(config.data)
        try:
            self._permanent_connection = self._connect()  # the engine ends when its last connection is closed
        except RuntimeError as e:
            raise ConfigurationError(
                f"The engine cannot start with the data folder {config.data} ({str(e).splitlines()[0]}).",
                hint="If a newer version of Trilake or chDB created the folder, use that version.",
            ) from None
        self._prepare()

    def _connect(self) -> Connection:
        return Connection(self._chdb.connect(f"engine?config-file={self._config.engine_file.name}&{_SETTINGS}"))

    def _prepare(self) -> None:
        for database in (*self._config.shards, self._config.database, GATEWAY_DATABASE):
            self.run(f"CREATE DATABASE IF NOT EXISTS {identifier(database)}")
        self.run("SYSTEM FLUSH LOGS")  # creates the table of the query log, which the view needs
        column = f"if(Settings['{QUERY_ID_SETTING}'] = '', {{0}}, {QUERY_ID}) AS {{0}}"
        for table in sorted(VIEWS):
            self.run(
                f"CREATE OR REPLACE VIEW {GATEWAY_DATABASE}.{table} AS SELECT * REPLACE "
                f"({column.format('query_id')}, {column.format('initial_query_id')}) "
                f"FROM system.{table} WHERE NOT startsWith(query, {quoted(_GATEWAY_COMMENT.decode().strip())})"
            )
        self.version = self.run("SELECT version()").strip()
        self.timezone = self.run("SELECT timezone()").strip()

    def run(self, sql: str) -> str:
        """Run a statement of the gateway itself.

        :raises QueryError: the statement failed.
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
        """A connection for a request, with its database and settings: a new one, or that of its session.

        :raises QueryError: the session is in use (373), must exist but does not (372), or a setting is refused.
        """
        if session is None:
            connection = self._connect()
            try:
                connection.configure(database, {**self._settings, **settings})
                yield connection
            finally:
                connection.close()
            return
        open_session = self._enter(session)
        try:
            # settings of the request are reset after it; settings of a SET statement stay in the session
            remembered = open_session.connection.remember(settings)
            try:
                open_session.connection.configure(database, settings)
                yield open_session.connection
            finally:
                open_session.connection.rinse()
                open_session.connection.restore(remembered, database=bool(database))
        finally:
            with self._lock:
                open_session.busy, open_session.until = False, time.monotonic() + session.seconds

    def _enter(self, session: Session) -> _OpenSession:
        now = time.monotonic()
        with self._lock:
            for name, candidate in list(self._sessions.items()):
                if not candidate.busy and candidate.until < now:
                    self._sessions.pop(name).connection.close()
            open_session = self._sessions.get(session.id)
            if open_session is None:
                if session.must_exist:
                    raise QueryError(372, "Session not found.")
                if len(self._sessions) >= MAX_SESSIONS:
                    raise QueryError(202, f"Too many sessions: {MAX_SESSIONS} are open.")
                connection = self._connect()
                connection.configure("", self._settings)
                open_session = self._sessions[session.id] = _OpenSession(connection)
            if open_session.busy:
                raise QueryError(373, "Session is locked by a concurrent client.")
            open_session.busy = True
            return open_session

    def close(self) -> None:
        """End the engine. Queries that still run are lost."""
        self.run("SYSTEM FLUSH LOGS")
        with self._lock:
            for open_session in self._sessions.values():
                if not open_session.busy:
                    open_session.connection.close()
        self._permanent_connection.close()


def can_stream(format_: str) -> bool:
    """Whether an answer in this format can be sent while it is made."""
    return format_.lower() in STREAMED_FORMATS
