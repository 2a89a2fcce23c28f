"""Reads a driver's log for the API's ``/log``: from a time on, the last lines, with timestamps, or following it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from trilake.platform.embedded.kubernetes.driver_process import LOG_FILE, OLDER_LOG_FILE

_BLOCK = 256 * 1024
_POLL_SECONDS = 0.2
# 2013-02-01T00:00:00.123456789Z: a fixed width, so that times can be compared as strings
_TIME_BYTES = 30


@dataclass(frozen=True)
class LogQuery:
    """The parameters of a log request. `since` is a time in the log's format; None means no limit."""

    since: bytes | None = None
    tail_lines: int | None = None
    timestamps: bool = False
    limit_bytes: int | None = None


def log_time(moment: datetime) -> bytes:
    """`moment` in the log's format, for comparisons."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()


def read_log(folder: Path, query: LogQuery) -> bytes:
    """The current log as one text."""
    text = b"".join(_formatted(_records(folder, query), query.timestamps))
    return text if query.limit_bytes is None else text[: query.limit_bytes]


async def follow_log(folder: Path, query: LogQuery, ended: asyncio.Event) -> AsyncIterator[bytes]:
    """The current log, and then new lines as they come, until the driver has `ended`."""
    bytes_left = query.limit_bytes
    format_record = _RecordFormat(query.timestamps)
    position = _Position(folder)
    chunk = b"".join(format_record(record) for record in _records(folder, query, position))
    while True:
        if bytes_left is not None:
            chunk = chunk[:bytes_left]
            bytes_left -= len(chunk)
        if chunk:
            yield chunk
        if bytes_left == 0:
            return
        # check the end before reading, so that everything written before the end is read
        driver_ended = ended.is_set()
        chunk = b"".join(format_record(record) for record in position.new_records())
        if not chunk:
            if driver_ended:
                return
            await asyncio.sleep(_POLL_SECONDS)


class _Position:
    """The position up to which the log was read. It continues after a log rotation."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._file: BinaryIO | None = None
        self._unfinished = b""

    def new_records(self) -> Iterator[bytes]:
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open("rb")
                except FileNotFoundError:
                    return
            # check before reading: a rotated file does not grow, so reading it to its end is enough
            old = self._is_old(self._file)
            while block := self._file.read(_BLOCK):
                *records, self._unfinished = (self._unfinished + block).split(b"\n")
                yield from records
            if not old:
                return
            self._file.close()
            self._file = None

    def _is_old(self, file: BinaryIO) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _records(folder: Path, query: LogQuery, position: _Position | None = None) -> Iterator[bytes]:
    """The complete records of both files that the query selects. `position` is moved to their end."""
    records: list[bytes] = []
    older = folder / OLDER_LOG_FILE
    newest = position or _Position(folder)
    newer = list(newest.new_records())
    if older.exists() and (query.since is None or not newer or newer[0][:_TIME_BYTES] > query.since):
        records = older.read_bytes().split(b"\n")[:-1]
        records = [record for record in records if not newer or record[:_TIME_BYTES] < newer[0][:_TIME_BYTES]]
    records += newer
    if query.since is not None:
        records = records[_first_since(records, query.since) :]
    if query.tail_lines is not None:
        records = _tail(records, query.tail_lines)
    yield from records


def _first_since(records: list[bytes], since: bytes) -> int:
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        if records[middle][:_TIME_BYTES] < since:
            low = middle + 1
        else:
            high = middle
    return low


def _tail(records: list[bytes], lines: int) -> list[bytes]:
    """The records of the last `lines` lines; a line may have several parts."""
    start, counted = len(records), 0
    while start > 0:
        if records[start - 1][_TIME_BYTES:].startswith(b" stdout F ") or start == len(records):
            if counted == lines:
                break
            counted += 1
        start -= 1
    return records[start:]


class _RecordFormat:
    """Formats a record as the API shows it: without stream name and tag, and a time only at the start of a line."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._at_start = True

    def __call__(self, record: bytes) -> bytes:
        moment, _, content = record.partition(b" stdout ")
        part, text = content[:1], content[2:]
        prefix = moment + b" " if self._timestamps and self._at_start else b""
        self._at_start = part != b"P"
        return prefix + text + (b"\n" if self._at_start else b"")


def _formatted(records: Iterator[bytes], timestamps: bool) -> Iterator[bytes]:
    format_record = _RecordFormat(timestamps)
    for record in records:
        yield format_record(record)
