"""Handles one request from its first byte to its last.

uvicorn implements HTTP. The engine's calls block, so each query has a worker thread. It reads the body and sends the
answer through the event loop and waits for each piece, so bodies of any size need little memory.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import hashlib
import hmac
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trilake.platform.embedded.clickhouse import protocol, wire
from trilake.platform.embedded.clickhouse.config import GatewayConfig
from trilake.platform.embedded.clickhouse.engine import Connection, Engine, Summary, can_stream, check_room
from trilake.platform.embedded.clickhouse.protocol import QueryError, Request
from trilake.platform.embedded.clickhouse.statement import QUERY_ID_SETTING, UNSTREAMABLE_SETTINGS, Head, understand

MAX_QUERIES = 100
"""The maximum number of queries at the same time. Each uses a thread and a connection."""

KILL_INTERVAL_SECONDS = 0.1
"""After its client has disconnected, a query is killed repeatedly: the first kill may come before it starts."""

_FILLS_THE_DISK = frozenset({"CREATE", "INSERT"})
"""First words of statements that need disk space. DROP, TRUNCATE and REPLACE PARTITION (hard links) must still work."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("trilake.clickhouse")


class ClientGoneError(Exception):
    """The client closed its connection before it had the complete answer."""


class Exchange:
    """A request's body and its answer, for use in a worker thread."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.query_string: bytes = scope["query_string"]
        self.http_version: str = scope["http_version"]
        self.headers: Mapping[str, str] = {
            k.decode("latin-1").lower(): v.decode(errors="replace") for k, v in scope["headers"]
        }
        self._receive, self._send = receive, send
        self._loop = asyncio.get_running_loop()
        self.body_read = asyncio.Event()
        self.body_taken = False
        self.gone = threading.Event()
        self.cancel_when_gone = False
        self.query_id = ""

    def body(self) -> Iterator[bytes]:
        """The body's pieces.

        :raises ClientGoneError: the client disconnected before it had sent the complete body.
        """
        more = True
        while more:
            message = self._wait(self._receive())
            if message["type"] == "http.disconnect":
                self.gone.set()
                raise ClientGoneError
            more = message.get("more_body", False)
            if content := message.get("body"):
                yield content
        self.body_taken = True
        self._loop.call_soon_threadsafe(self.body_read.set)

    def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the status and the headers."""
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._post({"type": "http.response.start", "status": status, "headers": pairs})

    def send(self, data: bytes) -> None:
        """Send a piece of the answer, and wait until the connection has accepted it.

        :raises ClientGoneError: the client has disconnected.
        """
        if self.method != "HEAD":
            self._post({"type": "http.response.body", "body": data, "more_body": True})

    def end(self) -> None:
        """Send the end of the answer. Without it, the client notices that the answer is incomplete."""
        # a client that knows the length may close the connection after the last byte; no data is lost
        with contextlib.suppress(ClientGoneError):
            self._post({"type": "http.response.body", "body": b""})

    def _post(self, message: Message) -> None:
        if self.gone.is_set():
            raise ClientGoneError
        self._wait(self._send(message))

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await awaitable

        try:
            return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()
        except concurrent.futures.CancelledError:  # the process is ending
            raise ClientGoneError from None


class Users:
    """The users. Passwords are compared as digests, and the time of a comparison does not depend on its result."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._digests = {name: hashlib.sha256(password.encode()).digest() for name, password in users.items()}
        self._nobody = secrets.token_bytes(32)

    def check(self, name: str, password: str) -> None:
        """:raises QueryError: the user does not exist, or the password is wrong (516)."""
        digest = hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(digest, self._digests.get(name, self._nobody)):
            raise QueryError(
                516, f"{name}: Authentication failed: password is incorrect, or there is no user with such name."
            )


class RunningQuery:
    """A request's query while it runs.

    :ivar head: whether data follows the SQL text, and where it begins.
    :ivar start: the bytes of text and data that were read for `head`.
    :ivar headers: more headers of its answer.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.head = Head()
        self.start = b""
        self.headers: dict[str, str] = {}
        self.summary = Summary(time.perf_counter_ns())


class Gateway:
    """The ASGI application."""

    def __init__(self, config: GatewayConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self._users = Users(config.users)
        self._workers = ThreadPoolExecutor(MAX_QUERIES, thread_name_prefix="query")
        self._running: set[str] = set()
        self._lock = threading.Lock()
        self._requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/ping", "/replicas_status"):
            await _plain(send, 200, "Ok.\n")
        elif scope["path"] != "/":
            await _plain(send, 404, f"The path {scope['path']} does not exist. Use /, /ping or /replicas_status.\n")
        elif scope["method"] not in ("GET", "HEAD", "POST"):
            await _plain(send, 405, "Use GET or POST.\n", allow="GET, HEAD, POST")
        else:
            await self._exchange(Exchange(scope, receive, send))

    async def _exchange(self, exchange: Exchange) -> None:
        if self._requests >= MAX_QUERIES:
            error = QueryError(202, f"Too many simultaneous queries: {MAX_QUERIES} are running.")
            await _plain(exchange._send, error.status, f"{error}\n", **{"x-clickhouse-exception-code": "202"})
            return
        self._requests += 1
        loop = asyncio.get_running_loop()
        watch_task = loop.create_task(self._watch(exchange))
        try:
            # if this task is cancelled, the worker continues: an INSERT SELECT goes on after its client disconnects
            await asyncio.shield(loop.run_in_executor(self._workers, self._serve, exchange))
        finally:
            self._requests -= 1
            watch_task.cancel()

    async def _watch(self, exchange: Exchange) -> None:
        """Notice a disconnect after the request was read, and kill the query if `cancel_when_gone` is set."""
        await exchange.body_read.wait()
        while (await exchange._receive())["type"] != "http.disconnect":
            pass
        exchange.gone.set()
        while exchange.cancel_when_gone:
            with contextlib.suppress(QueryError):
                await asyncio.to_thread(self._engine.kill, exchange.query_id)
            await asyncio.sleep(KILL_INTERVAL_SECONDS)

    def _serve(self, exchange: Exchange) -> None:
        """Answer one request, in a worker thread."""
        try:
            request = self._request(exchange)
            if request is None:
                exchange.start(200, {"Content-Type": "text/html; charset=UTF-8", "Content-Length": "4"})
                exchange.send(b"Ok.\n")
                exchange.end()
                return
            exchange.query_id = request.query_id
            self._answer(exchange, request)
        except ClientGoneError:
            log.info("query %s: the client has disconnected", exchange.query_id or "-")
        except QueryError as e:
            _refuse(exchange, e)
        except Exception as e:
            log.exception("query %s", exchange.query_id or "-")
            _refuse(exchange, _internal_error(e))

    def _request(self, exchange: Exchange) -> Request | None:
        """The request, after authentication; None if a GET has no query."""
        pairs = protocol.decode_parameters(exchange.query_string)
        if exchange.method != "POST" and not any(name == "query" and value for name, value in pairs):
            return None
        self._users.check(*protocol.credentials(pairs, exchange.headers))
        content_type = exchange.headers.get("content-type", "")
        if content_type.lower().startswith("multipart/form-data"):
            pairs += wire.read_form(content_type, self._body(exchange))
        return protocol.parse_request(exchange.method, pairs, exchange.headers)

    def _body(self, exchange: Exchange) -> Iterator[bytes]:
        pieces = exchange.body()
        return wire.decompressed(pieces) if protocol.body_is_lz4(exchange.headers) else pieces

    def _text(self, exchange: Exchange, request: Request) -> Iterator[bytes]:
        """The query of the URL or form, then the body, as one text."""
        if request.query:
            yield request.query.encode() + b"\n"
        if not exchange.body_taken:
            yield from self._body(exchange)

    @contextlib.contextmanager
    def _claimed(self, query_id: str) -> Generator[None]:
        with self._lock:
            if query_id in self._running:
                raise QueryError(216, f"Query with id = {query_id} is already running.")
            self._running.add(query_id)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(query_id)

    def _answer(self, exchange: Exchange, request: Request) -> None:
        tag = secrets.token_hex(8)
        query = RunningQuery(request)

        def headers() -> dict[str, str]:
            return {
                "Content-Type": "text/plain; charset=UTF-8",
                "X-ClickHouse-Summary": json.dumps(query.summary.fields(), separators=(",", ":")),
                "X-ClickHouse-Query-Id": request.query_id,
                "X-ClickHouse-Server-Display-Name": socket.gethostname(),
                "X-ClickHouse-Timezone": self._engine.timezone,
                "X-ClickHouse-Exception-Tag": tag,
                **query.headers,
            }

        # HTTP/1.0 has no chunks: an incomplete answer would look complete
        hold = request.hold if exchange.http_version != "1.0" else None
        with contextlib.closing(wire.Answer(exchange, hold, self._config.spool, request.lz4_answer, headers)) as answer:
            try:
                # release the query id and the session before the client gets the end of the answer
                with self._claimed(request.query_id):
                    self._execute(exchange, query, answer)
                answer.finish()
            except QueryError as e:
                if not answer.started:
                    raise
                log.info("query %s: error %d after its answer began", request.query_id, e.code)
                answer.break_off(_error_block(str(e), tag))

    def _execute(self, exchange: Exchange, query: RunningQuery, answer: wire.Answer) -> None:
        request = query.request
        # read the statement before taking a connection, so that a slow sender does not occupy one
        text = self._text(exchange, request)
        query.head, query.start = wire.read_statement(text)
        settings = {**request.settings, QUERY_ID_SETTING: request.query_id}
        with (
            self._engine.connection(request.session, request.database, settings) as connection,
            contextlib.closing(self._run(exchange, query, connection, text)) as pieces,
        ):
            for piece in pieces:
                answer.write(piece)

    def _run(
        self, exchange: Exchange, query: RunningQuery, connection: Connection, remaining: Iterator[bytes]
    ) -> Generator[bytes]:
        """Run a query, and return its answer in pieces."""
        path = f"{self._config.spool.name}/{secrets.token_hex(16)}"
        if query.head.insert is not None:
            yield from _insert(query, connection, remaining, path)
        else:
            yield from self._run_statement(exchange, query, connection, remaining, path)

    def _run_statement(
        self, exchange: Exchange, query: RunningQuery, connection: Connection, remaining: Iterator[bytes], path: str
    ) -> Generator[bytes]:
        """Run a statement without data after it."""
        request = query.request
        text = wire.read_whole(query.start, remaining)
        statement = understand(text)
        count, reads = connection.classify(text)
        if not statement.first_word:
            raise QueryError(62, "Syntax error: Empty query.")
        if statement.inserts_input:
            raise QueryError(48, "INSERT with input() is not implemented by this gateway: insert the data directly.")
        if statement.file:
            code = 358 if statement.file == "OUTFILE" else 78
            raise QueryError(code, f"{statement.file} works only in clients that read local files; this is a server.")
        _check_permitted(request, count, reads)
        if statement.first_word in _FILLS_THE_DISK:
            check_room()
        format_ = statement.format or request.default_format
        if reads:
            query.headers["X-ClickHouse-Format"] = format_
            query.headers["Content-Type"] = protocol.CONTENT_TYPES.get(format_.lower(), "text/plain; charset=UTF-8")
            exchange.cancel_when_gone = request.is_on("cancel_http_readonly_queries_on_client_close")
        streams = connection.streams and statement.streams and not UNSTREAMABLE_SETTINGS & request.settings.keys()
        try:
            if not statement.select:
                yield from connection.query(statement.sql, format_, request.parameters, query.summary)
            elif streams and can_stream(format_):
                yield from connection.stream(statement.sql, format_, request.parameters, query.summary)
            else:
                sql = statement.into_file(path, format_)
                yield from connection.to_file(sql, path, request.parameters, query.summary)
        finally:
            exchange.cancel_when_gone = False
        if statement.first_word == "SET":
            connection.streams = connection.streams and statement.streams


def _insert(query: RunningQuery, connection: Connection, remaining: Iterator[bytes], path: str) -> Generator[bytes]:
    """Run an INSERT with data after it."""
    request, head = query.request, query.head
    check_room()
    if request.parameters:  # the engine's parser replaces parameters, so it needs the complete text
        text = wire.read_whole(query.start, remaining)
        _check_permitted(request, *connection.classify(text))
        yield from connection.query(text, request.default_format, request.parameters, query.summary)
    else:
        _check_permitted(request, *connection.classify(query.start[: head.data_at]))
        connection.insert(head, _data(query.start[head.data_at :], remaining), path, query.summary)


def _check_permitted(request: Request, statements: int, reads: bool) -> None:
    """:raises QueryError: the request has several statements (62), or is a GET that writes (164)."""
    if statements > 1:
        raise QueryError(62, "Syntax error: Multi-statements are not allowed.")
    if statements and not reads and not request.may_write:
        raise QueryError(164, "Cannot execute query in readonly mode: GET only reads, use POST.")


def _data(first: bytes, remaining: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from remaining


def _error_block(text: str, tag: str) -> bytes:
    """An error inside an answer, between marks. A client finds it by the tag in the headers."""
    message = text.encode()
    return b"__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n" % (
        tag.encode(),
        message,
        len(message),
        tag.encode(),
    )


def _internal_error(error: Exception) -> QueryError:
    """The answer to a full disk or a defect of the gateway. It names only the type: the error's text may have data."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return QueryError(243, "The disk of the data folder is full.")
    return QueryError(
        1001, f"The gateway failed ({type(error).__name__}). Its log has the traceback: run `trilake logs clickhouse`."
    )


def _refuse(exchange: Exchange, error: QueryError) -> None:
    log.info("query %s: error %d (%s)", exchange.query_id or "-", error.code, protocol.ERRORS.get(error.code, "engine"))
    content = f"{error}\n".encode()
    headers = {
        "Content-Type": "text/plain; charset=UTF-8",
        "Content-Length": str(len(content)),
        "X-ClickHouse-Exception-Code": str(error.code),
    }
    if exchange.query_id:
        headers["X-ClickHouse-Query-Id"] = exchange.query_id
    with contextlib.suppress(ClientGoneError):
        exchange.start(error.status, headers)
        exchange.send(content)
        exchange.end()


async def _plain(send: Send, status: int, text: str, **headers: str) -> None:
    content = text.encode()
    pairs = {"content-type": "text/plain; charset=UTF-8", "content-length": str(len(content)), **headers}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
        }
    )
    await send({"type": "http.response.body", "body": content})
