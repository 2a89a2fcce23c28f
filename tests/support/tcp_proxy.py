"""A TCP proxy that fails as networks do: between a client and a server, for tests."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

_PIECE = 64 * 1024
# Of what a client says first, as much as tells who it is
_BEGINNING = 1024


@dataclass(frozen=True)
class Fault:
    """What happens to a connection from the first piece on that comes from the client and has `when` in it.

    :param cut_request_after: bytes from the client; then both sides are reset. None: never.
    :param cut_answer_after: bytes from the server; then both sides are reset. None: never.
    :param stall: the request arrives, and its answer never does.
    :param answer: sent instead of the server's; the request does not arrive.
    :param times: how many connections it is for.
    """

    when: bytes = b""
    cut_request_after: int | None = None
    cut_answer_after: int | None = None
    stall: bool = False
    answer: bytes | None = None
    times: int = 1_000


def http_error(status: int, text: str, code: int | None = None) -> bytes:
    """An HTTP answer, with ClickHouse's header for a code or without."""
    header = f"X-ClickHouse-Exception-Code: {code}\r\n" if code is not None else ""
    body = text.encode()
    return (
        f"HTTP/1.1 {status} Error\r\n{header}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    )


@dataclass
class _State:
    """What befalls connections now.

    :param stalled: those that began with this; None: none.
    :param cut: as `stalled`.
    """

    stalled: bytes | None = None
    cut: bytes | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class TcpProxy:
    """Hands on what comes to a port of its own, unless `fault` is set.

    :param port: 0: any.
    :param bind: the address that it listens on.
    :ivar hits: how many connections the faults were for.
    """

    host: str
    target: int
    fault: Fault | None = None
    hits: int = 0
    port: int = 0
    bind: str = "127.0.0.1"
    state: _State = field(default_factory=_State, repr=False)
    _connections: set[_Connection] = field(default_factory=set, repr=False)
    _server: asyncio.Server | None = field(default=None, repr=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop, repr=False)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse(self) -> None:
        """Nobody listens any more; open connections are reset."""
        self._call(self._close())

    def listen(self) -> None:
        """Again, on the same port."""
        self._call(self._listen())

    def stall(self, of: bytes = b"") -> None:
        """Nothing passes any more, either way, until `restore`: of those open and those to come.

        :param of: the connections whose client has this among the first that it says.
        """
        self._call(self._set(_State(stalled=of)))

    def cut(self, of: bytes = b"") -> None:
        """As `stall`, but all of them are reset, until `restore`."""
        self._call(self._set(_State(cut=of)))

    def restore(self) -> None:
        """What was held passes, and new connections are served."""
        self._call(self._set(_State()))

    async def _set(self, state: _State) -> None:
        before, self.state = self.state, state
        before.changed.set()
        for connection in list(self._connections):
            if state.cut is not None and state.cut in connection.said:
                connection.reset()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.bind, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server:
            self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.serve()
        except (ConnectionError, asyncio.CancelledError):
            connection.reset()
        finally:
            self._connections.discard(connection)

    def strike(self, piece: bytes) -> Fault | None:
        """The fault that this piece of a request meets."""
        fault = self.fault
        if fault is None or not fault.times or fault.when not in piece:
            return None
        self.hits += 1
        self.fault = replace(fault, times=fault.times - 1)
        return fault


class _Connection:
    def __init__(self, proxy: TcpProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._upstream: asyncio.StreamWriter | None = None
        self._fault = Fault()
        self._struck = False
        self.said = b""

    async def _pass(self) -> None:
        """When a piece may pass.

        :raises ConnectionResetError: never.
        """
        while (state := self._proxy.state).stalled is not None and state.stalled in self.said:
            self._proxy.hits += 1
            await state.changed.wait()
        if state.cut is not None and state.cut in self.said:
            self._proxy.hits += 1
            raise ConnectionResetError

    async def serve(self) -> None:
        answers, self._upstream = await asyncio.open_connection(self._proxy.host, self._proxy.target)
        pumps = {asyncio.create_task(self._requests(self._upstream)), asyncio.create_task(self._answers(answers))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for side in (self._writer, self._upstream):
                side.close()

    def reset(self) -> None:
        """Both sides see a reset, and no orderly end."""
        for side in (self._writer, self._upstream):
            if side is not None:
                with suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                side.transport.abort()

    async def _requests(self, upstream: asyncio.StreamWriter) -> None:
        sent = 0
        while piece := await self._reader.read(_PIECE):
            self.said += piece[: _BEGINNING - len(self.said)] if len(self.said) < _BEGINNING else b""
            await self._pass()
            if not self._struck and (fault := self._proxy.strike(piece)):
                self._fault, self._struck = fault, True
            if self._fault.answer is not None:
                self._writer.write(self._fault.answer)
                await self._writer.drain()
                return
            limit = self._fault.cut_request_after
            upstream.write(piece if limit is None else piece[: limit - sent])
            await upstream.drain()
            sent += len(piece) if self._struck else 0
            if limit is not None and sent >= limit:
                self.reset()
                return

    async def _answers(self, answers: asyncio.StreamReader) -> None:
        sent = 0
        while piece := await answers.read(_PIECE):
            await self._pass()
            if self._fault.stall:
                continue
            limit = self._fault.cut_answer_after
            self._writer.write(piece if limit is None else piece[: limit - sent])
            await self._writer.drain()
            sent += len(piece) if self._struck else 0
            if limit is not None and sent >= limit:
                self.reset()
                return
        if self._fault.stall:
            await asyncio.Event().wait()
