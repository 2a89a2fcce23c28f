"""The bytes of request and answer bodies: compression, forms, and answers that are buffered until they are complete."""

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
"""Bodies are read and sent in pieces of about this size."""

MAX_STATEMENT_BYTES = 16 << 20
"""The limit for SQL without INSERT data, which is kept in memory. The engine's max_query_size is much lower."""

MAX_INSERT_BYTES = 1 << 18
"""The data of an INSERT must begin within this many bytes, which is also the engine's max_query_size."""

MAX_SPOOL_BYTES = 8 << 30
"""The largest answer or insert that is kept on disk until it is complete."""

_ARROW_MAGIC_BYTES = 8  # ARROW1 and padding


def decompressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The content of a sequence of LZ4 frames (clickhouse-connect makes one for each block).

    :raises QueryError: the bytes are not LZ4 frames, or the last frame is incomplete (271).
    """
    decoder, idle = lz4.frame.LZ4FrameDecompressor(), True
    for piece in pieces:
        data = piece
        while data or not (idle or decoder.needs_input):
            try:
                content = decoder.decompress(data, max_length=PIECE_BYTES)
            except RuntimeError:
                raise QueryError(271, "The Content-Encoding is lz4, but the body is not LZ4 frames.") from None
            data, idle = b"", False
            if content:
                yield content
            if decoder.eof:
                data = decoder.unused_data or b""
                decoder, idle = lz4.frame.LZ4FrameDecompressor(), True
    if not idle:
        raise QueryError(271, "The body ends inside an LZ4 frame.")


def joined_arrow_streams(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join several Arrow streams with the same schema: the schema of the first, the batches of all, one end mark.

    A stream is a schema message (0xFFFFFFFF, its length, the message), record batches, and an end mark of 8 bytes.
    """
    schema_seen = False
    for piece in pieces:
        yield piece[8 + int.from_bytes(piece[4:8], "little") : -8] if schema_seen else piece[:-8]
        schema_seen = True
    if schema_seen:
        yield b"\xff\xff\xff\xff\0\0\0\0"


def arrow_stream_of_file(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The stream inside an Arrow file. It is between the magic bytes and the footer, which is only needed for seeking.

    The engine parses a stream while it arrives, but reads a file completely before it parses it. It ignores bytes after
    the end of a stream.

    :raises QueryError: the bytes are not a complete Arrow file (117).
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
        raise QueryError(117, "Not a complete Arrow file: the magic bytes at its start or its end are missing.")


def read_form(content_type: str, pieces: Iterable[bytes]) -> list[tuple[str, str]]:
    """The fields of a multipart form. Clients use forms for parameters that are too long for a URL.

    :raises QueryError: it has a file (48: external tables), is not UTF-8 (36), or is too long (62).
    """
    body = read_whole(b"", pieces)
    header = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser().parsebytes(header + body)
    if not message.is_multipart():
        raise QueryError(36, "The Content-Type is multipart/form-data, but the body is not a multipart form.")
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
    """Write a body to a file.

    :raises QueryError: it is larger than `MAX_SPOOL_BYTES` (396).
    """
    size = 0
    with path.open("xb") as file:
        for piece in pieces:
            size += file.write(piece)
            if size > MAX_SPOOL_BYTES:
                raise QueryError(
                    396, f"An insert in this format can have at most {MAX_SPOOL_BYTES} bytes: use CSV or Native."
                )


def read_whole(start: bytes, pieces: Iterable[bytes]) -> bytes:
    """Read a statement that has no data after it.

    :raises QueryError: it is longer than `MAX_STATEMENT_BYTES` (62).
    """
    parts, size = [start], len(start)
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_STATEMENT_BYTES:
            raise QueryError(62, f"Max query size exceeded: a statement can have at most {MAX_STATEMENT_BYTES} bytes.")
    return b"".join(parts)


def read_statement(pieces: Iterator[bytes]) -> tuple[Head, bytes]:
    """Read until it is clear whether data follows. Returns the result and all bytes that were read.

    :raises QueryError: it is not clear after `MAX_INSERT_BYTES` (62).
    """
    text, next_look = bytearray(), 0
    for piece in pieces:
        text += piece
        if len(text) < next_look:
            continue
        head = read_head(bytes(text), complete=False)
        if head is not None:
            return head, bytes(text)
        if len(text) > MAX_INSERT_BYTES:
            raise QueryError(
                62, f"Max query size exceeded: an INSERT's data must begin within {MAX_INSERT_BYTES} bytes."
            )
        next_look = 2 * len(text)  # parsing starts at the beginning each time, so do it only when the text has doubled
    return read_head(bytes(text), complete=True) or Head(), bytes(text)


class Outlet(Protocol):
    """The interface by which an answer is sent to the client."""

    def start(self, status: int, headers: dict[str, str]) -> None: ...

    def send(self, data: bytes) -> None: ...

    def end(self) -> None: ...


class Answer:
    """An answer. It is buffered up to a size, so that its status can still change, and then sent in pieces.

    :param hold: bytes to buffer; None means the complete answer, on disk if it is large.
    :param headers: called for the headers when the first byte is sent.
    """

    def __init__(
        self, outlet: Outlet, hold: int | None, spool: Path, lz4: bool, headers: Callable[[], dict[str, str]]
    ) -> None:
        self._outlet = outlet
        self._hold = hold
        self._headers = headers
        self._buffer = tempfile.SpooledTemporaryFile(max_size=PIECE_BYTES, dir=str(spool))  # noqa: SIM115  closed by close()
        self._size = 0
        self._lz4 = lz4
        self._encode: Callable[[bytes], bytes] = bytes
        self.started = False

    def write(self, data: bytes) -> None:
        """Add a piece. It may wait until the client has read earlier pieces.

        :raises QueryError: the complete answer must be buffered and is larger than `MAX_SPOOL_BYTES` (396).
        """
        if self.started:
            self._send(data)
            return
        self._size += len(data)
        if self._hold is None and self._size > MAX_SPOOL_BYTES:
            raise QueryError(396, f"An answer with wait_end_of_query can have at most {MAX_SPOOL_BYTES} bytes.")
        self._buffer.write(data)
        if self._hold is not None and self._size > self._hold:
            self._start({})

    def finish(self) -> None:
        """Send the buffered bytes and the end of the answer."""
        if not self.started:
            # the length of a compressed answer is unknown, so it is sent in chunks
            self._start({} if self._lz4 and self._size else {"Content-Length": str(self._size)})
        if self._encode is not bytes:
            self._outlet.send(self._encoder.flush())
        self._outlet.end()

    def break_off(self, message: bytes) -> None:
        """Send an error message after the status was sent. Then the connection is closed without the answer's end."""
        self._send(message)
        if self._encode is not bytes:
            self._outlet.send(self._encoder.flush())

    def close(self) -> None:
        """Discard the buffered bytes."""
        self._buffer.close()

    def _start(self, extra_headers: dict[str, str]) -> None:
        self.started = True
        headers = {**self._headers(), **extra_headers}
        lz4_header = b""
        if self._lz4 and self._size:
            self._encoder = lz4.frame.LZ4FrameCompressor()
            lz4_header = self._encoder.begin()
            self._encode = self._encoder.compress
            headers["Content-Encoding"] = "lz4"
        self._outlet.start(200, headers)
        if lz4_header:
            self._outlet.send(lz4_header)
        self._buffer.seek(0)
        while piece := self._buffer.read(PIECE_BYTES):
            self._send(piece)
        self._buffer.close()

    def _send(self, data: bytes) -> None:
        encoded = self._encode(data)
        if encoded:
            self._outlet.send(encoded)
