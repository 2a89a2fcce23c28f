"""The bytes of bodies: compression, forms, and answers held back until they are whole."""

from __future__ import annotations

import email.parser
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import lz4.frame  # type: ignore[import-untyped]

from trilake.platform.embedded.clickhouse.protocol import QueryError
from trilake.platform.embedded.clickhouse.statement import Head, read_head

PIECE_BYTES = 1 << 20
"""Bodies move in pieces of about this size."""

MAX_STATEMENT_BYTES = 16 << 20
"""SQL that is not an INSERT's data is held in memory as a whole. The engine's own max_query_size is far below."""

MAX_INSERT_BYTES = 1 << 18
"""An INSERT's data begins within this many bytes: the engine's own max_query_size."""

MAX_SPOOL_BYTES = 8 << 30
"""Largest answer or insert that is kept on disk until it is whole."""

_ARROW_MAGIC_BYTES = 8  # ARROW1 and padding


def decompressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The content of one LZ4 frame after the other (clickhouse-connect makes one for each block).

    :raises QueryError: the bytes are not LZ4 frames, or the last one is not whole (271).
    """
    decoder, idle = lz4.frame.LZ4FrameDecompressor(), True
    for piece in pieces:
        data = piece
        while data or not (idle or decoder.needs_input):
            try:
                content = decoder.decompress(data, max_length=PIECE_BYTES)
            except RuntimeError:
                raise QueryError(271, "The body is not in LZ4 frames although its Content-Encoding says so.") from None
            data, idle = b"", False
            if content:
                yield content
            if decoder.eof:
                data = decoder.unused_data or b""
                decoder, idle = lz4.frame.LZ4FrameDecompressor(), True
    if not idle:
        raise QueryError(271, "The body ends within an LZ4 frame.")


def joined_arrow_streams(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One Arrow stream of several with the same schema: the first one's schema, everybody's batches, one end.

    A stream is a schema message (0xFFFFFFFF, its length, the message), record batches, and an end mark of 8 bytes.
    """
    schema_seen = False
    for piece in pieces:
        yield piece[8 + int.from_bytes(piece[4:8], "little") : -8] if schema_seen else piece[:-8]
        schema_seen = True
    if schema_seen:
        yield b"\xff\xff\xff\xff\0\0\0\0"


def arrow_stream_of_file(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The stream inside an Arrow file: what is between its magic and its footer; the footer only speeds up seeking.

    The engine reads a stream while it comes, and of a file the whole first. It ignores what follows a stream's end.

    :raises QueryError: it is not an Arrow file, or not all of it (117).
    """
    magic = b"ARROW1"
    start, end = b"", b""
    for piece in pieces:
        if len(start) < _ARROW_MAGIC_BYTES:
            start += piece
            if len(start) < _ARROW_MAGIC_BYTES:
                continue
            if not start.startswith(magic):
                break
            content = start[_ARROW_MAGIC_BYTES:]
        else:
            content = piece
        end = (end + content)[-len(magic) :]
        if content:
            yield content
    if end != magic:
        raise QueryError(117, "Not an Arrow file: missing magic at its start or its end.")


def read_form(content_type: str, pieces: Iterable[bytes]) -> list[tuple[str, str]]:
    """The fields of a multipart form, which clients use for parameters that are too long for a URL.

    :raises QueryError: it holds a file (48: external tables), is not UTF-8 (36), or is too long (62).
    """
    body = read_whole(b"", pieces)
    header = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser().parsebytes(header + body)
    if not message.is_multipart():
        raise QueryError(36, "The body is not the multipart form that its Content-Type announces.")
    fields = []
    for part in message.walk():
        if part.is_multipart():
            continue
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise QueryError(36, "A part of the form has no name.")
        if part.get_filename() is not None:
            raise QueryError(48, "External tables in a form are not implemented by this gateway.")
        try:
            fields.append((name, content.decode()))
        except UnicodeDecodeError:
            raise QueryError(36, f"The form's field {name} is not UTF-8.") from None
    return fields


def spool(pieces: Iterable[bytes], path: Path) -> None:
    """Put a body into a file.

    :raises QueryError: it is larger than `MAX_SPOOL_BYTES` (396).
    """
    size = 0
    with path.open("xb") as file:
        for piece in pieces:
            size += file.write(piece)
            if size > MAX_SPOOL_BYTES:
                raise QueryError(396, f"An insert in this format may have {MAX_SPOOL_BYTES} bytes here: stream it.")


def read_whole(start: bytes, pieces: Iterable[bytes]) -> bytes:
    """A statement that is not followed by data.

    :raises QueryError: it is longer than `MAX_STATEMENT_BYTES` (62).
    """
    parts, size = [start], len(start)
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_STATEMENT_BYTES:
            raise QueryError(62, f"Max query size exceeded: a statement may have {MAX_STATEMENT_BYTES} bytes here.")
    return b"".join(parts)


def read_statement(pieces: Iterator[bytes]) -> tuple[Head, bytes]:
    """Read until it is known whether data follows; what was read comes back with the finding.

    :raises QueryError: nothing was found within `MAX_INSERT_BYTES` (62).
    """
    text, look_at = bytearray(), 0
    for piece in pieces:
        text += piece
        if len(text) < look_at:
            continue
        head = read_head(bytes(text), complete=False)
        if head is not None:
            return head, bytes(text)
        if len(text) > MAX_INSERT_BYTES:
            raise QueryError(
                62, f"Max query size exceeded: an INSERT's data begins within {MAX_INSERT_BYTES} bytes here."
            )
        look_at = 2 * len(text)  # looking starts at the beginning: not for every byte of a slow sender
    return read_head(bytes(text), complete=True) or Head(), bytes(text)


class Outlet(Protocol):
    """Where an answer goes: the client, as far as the answer knows it."""

    def start(self, status: int, headers: dict[str, str]) -> None: ...

    def send(self, data: bytes) -> None: ...

    def end(self) -> None: ...


class Answer:
    """An answer on its way: held back up to a size, so that its status can still change, then sent piece by piece.

    :param hold: bytes to hold back; None holds back all of it, on disk if need be.
    :param headers: makes the headers at the moment when the first byte is sent.
    """

    def __init__(
        self, outlet: Outlet, hold: int | None, spool: Path, lz4: bool, headers: Callable[[], dict[str, str]]
    ) -> None:
        self._outlet = outlet
        self._hold = hold
        self._headers = headers
        self._held = tempfile.SpooledTemporaryFile(max_size=PIECE_BYTES, dir=str(spool))  # noqa: SIM115  closed by close()
        self._size = 0
        self._lz4 = lz4
        self._encode: Callable[[bytes], bytes] = bytes
        self.started = False

    def write(self, data: bytes) -> None:
        """Take a piece; may wait until the client has taken earlier ones.

        :raises QueryError: the answer is to be held back as a whole and is larger than `MAX_SPOOL_BYTES` (396).
        """
        if self.started:
            self._send(data)
            return
        self._size += len(data)
        if self._hold is None and self._size > MAX_SPOOL_BYTES:
            raise QueryError(396, f"An answer with wait_end_of_query may have {MAX_SPOOL_BYTES} bytes here: stream it.")
        self._held.write(data)
        if self._hold is not None and self._size > self._hold:
            self._start({})

    def finish(self) -> None:
        """The answer is whole."""
        if not self.started:
            # a compressed answer's length is not known; chunks tell where it ends
            self._start({} if self._lz4 and self._size else {"Content-Length": str(self._size)})
        if self._encode is not bytes:
            self._outlet.send(self._encoder.flush())
        self._outlet.end()

    def break_off(self, message: bytes) -> None:
        """A last word in an answer that went wrong after its status was sent. The outlet then cuts the connection."""
        self._send(message)
        if self._encode is not bytes:
            self._outlet.send(self._encoder.flush())

    def close(self) -> None:
        """Forget what was held back."""
        self._held.close()

    def _start(self, more: dict[str, str]) -> None:
        self.started = True
        headers = {**self._headers(), **more}
        first = b""
        if self._lz4 and self._size:
            self._encoder = lz4.frame.LZ4FrameCompressor()
            first = self._encoder.begin()
            self._encode = self._encoder.compress
            headers["Content-Encoding"] = "lz4"
        self._outlet.start(200, headers)
        if first:
            self._outlet.send(first)
        self._held.seek(0)
        while piece := self._held.read(PIECE_BYTES):
            self._send(piece)
        self._held.close()

    def _send(self, data: bytes) -> None:
        encoded = self._encode(data)
        if encoded:
            self._outlet.send(encoded)
