"""The process between the server and a driver: ``driver_process.py FOLDER LOG_BYTES -- COMMAND...``.

It is started in a session of its own and lives as long as the driver, whether or not the server does. It writes who it
is (``process.json``), what the driver prints (``driver.log``, with times, bounded) and how it ended (``exit.json``).
Standard library alone, and little of it: it is there once for every application.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PROCESS_FILE = "process.json"
EXIT_FILE = "exit.json"
LOG_FILE = "driver.log"
OLDER_LOG_FILE = "driver.log.1"

# A line longer than this is cut into parts, as the kubelet's log format does.
_LINE_BYTES = 16 * 1024
# What a driver's children may still print after it has ended.
_DRAIN_SECONDS = 2.0
_PR_SET_CHILD_SUBREAPER = 36


def identity(pid: int) -> dict[str, Any] | None:
    """What tells a process from a later one of the same number; None if there is none, or only its remains."""
    try:
        # after the name, which is in parentheses and may hold anything
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    if parts[0] in ("Z", "X"):
        return None
    return {"pid": pid, "started": int(parts[19]), "boot": boot}


def session_members(leader: int) -> list[int]:
    """Every living process of `leader`'s session, itself included, whatever process groups Spark makes in it."""
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == leader and identity(int(name)):
                    members.append(int(name))
            except OSError:
                continue  # it has ended meanwhile
    return members


def write_atomically(path: Path, document: Any) -> None:
    """Replace a JSON file as a whole, mode 600, also across a power failure.

    As `trilake.platform.private_files.replace_private`, which this program cannot import: it runs without the package.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class TimedLog:
    """Lines with the time they came, in the kubelet's format (``TIME stdout F|P text``), in at most two files."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._path, self._older = folder / LOG_FILE, folder / OLDER_LOG_FILE
        self._limit = limit
        self._file = self._open()
        self._size = self._file.tell()
        self._rest = b""
        self._last = 0

    def _open(self) -> Any:
        return open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)

    def _time(self) -> bytes:
        # never the same twice: a reader that knows the last line's time knows which lines it has seen
        self._last = max(time.time_ns(), self._last + 1)
        seconds, nanoseconds = divmod(self._last, 1_000_000_000)
        return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanoseconds)

    def write(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        out = []
        for line in lines:
            parts = [line[i : i + _LINE_BYTES] for i in range(0, len(line), _LINE_BYTES)] or [b""]
            for part in parts[:-1]:
                out.append(b"%s stdout P %s\n" % (self._time(), part))
            out.append(b"%s stdout F %s\n" % (self._time(), parts[-1]))
        while len(self._rest) >= _LINE_BYTES:
            out.append(b"%s stdout P %s\n" % (self._time(), self._rest[:_LINE_BYTES]))
            self._rest = self._rest[_LINE_BYTES:]
        self._append(b"".join(out))

    def _append(self, text: bytes) -> None:
        if not text:
            return
        try:
            if self._size and self._size + len(text) > self._limit:
                self._file.close()
                self._path.replace(self._older)
                self._file = self._open()
                self._size = 0
            self._file.write(text)
            self._size += len(text)
        except OSError:
            return  # a full disk costs log lines; it must not block the driver at its pipe

    def close(self) -> None:
        if self._rest:
            self._append(b"%s stdout F %s\n" % (self._time(), self._rest))
        self._file.close()


def main(arguments: list[str]) -> int:
    folder, limit, command = Path(arguments[0]), int(arguments[1]), arguments[3:]
    me = folder / f".{PROCESS_FILE}.{os.getpid()}"
    me.write_text(json.dumps(identity(os.getpid())))
    try:
        # a link is made only if there is none: of two that were started for one attempt, one runs
        os.link(me, folder / PROCESS_FILE)
    except FileExistsError:
        return 0
    finally:
        me.unlink()
    # Orphans below come to us and not to init, so that the session is whole until we say that it ended.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The whole session is signalled at its end; this process must outlive the driver to write how it went.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    log = TimedLog(folder, limit)
    try:
        driver = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder
        )
    except OSError as e:
        log.write(f"{command[0]}: {e.strerror}\n".encode())
        log.close()
        write_atomically(folder / EXIT_FILE, {"exit_code": 127, "finished": time.time()})
        return 0
    if driver.stdout is None:
        raise AssertionError("the driver was started with a pipe")
    output = driver.stdout.fileno()

    def pump() -> None:
        while chunk := os.read(output, 65_536):
            log.write(chunk)

    pumping = threading.Thread(target=pump, daemon=True)
    pumping.start()
    status = driver.wait()
    pumping.join(_DRAIN_SECONDS)
    # A container ends with its first process, and so does everything that the driver started.
    while others := [pid for pid in session_members(os.getpid()) if pid != os.getpid()]:
        for pid in others:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
        _reap()
    pumping.join(_DRAIN_SECONDS)
    log.close()
    write_atomically(
        folder / EXIT_FILE, {"exit_code": status if status >= 0 else 128 - status, "finished": time.time()}
    )
    return 0


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
