"""The watcher process between the server and a driver: ``driver_process.py FOLDER LOG_BYTES -- COMMAND...``.

It has its own session and runs as long as the driver, even if the server ends before. It writes its identity
(``process.json``), the driver's output (``driver.log``, with times and a size limit) and the exit code (``exit.json``).
It uses little of the standard library and nothing else, to save memory: one runs for every application.
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

# A longer line is split into parts, as in the kubelet's log format.
_LINE_BYTES = 16 * 1024
# How long to read output of the driver's child processes after the driver has ended.
_DRAIN_SECONDS = 2.0
_PR_SET_CHILD_SUBREAPER = 36


def identity(pid: int) -> dict[str, Any] | None:
    """Data that distinguishes a process from a later one with the same id; None if it has ended or is a zombie."""
    try:
        # skip the name: it is in parentheses and may contain any character
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    if parts[0] in ("Z", "X"):
        return None
    return {"pid": pid, "started": int(parts[19]), "boot": boot}


def session_members(leader: int) -> list[int]:
    """Every living process of `leader`'s session, with `leader`, whatever their process groups."""
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == leader and identity(int(name)):
                    members.append(int(name))
            except OSError:
                continue  # it has just ended
    return members


def write_atomically(path: Path, document: Any) -> None:
    """Replace a JSON file atomically, mode 600. After a power failure it has the old or the new content.

    It is the same as `trilake.platform.private_files.replace_private`. This program runs without the package and cannot
    import it.
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
    """A log of lines with their time, in the kubelet's format (``TIME stdout F|P text``), in at most two files."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._path, self._older = folder / LOG_FILE, folder / OLDER_LOG_FILE
        self._limit = limit
        self._file = self._open()
        self._size = self._file.tell()
        self._unfinished = b""
        self._last = 0

    def _open(self) -> Any:
        return open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)

    def _time(self) -> bytes:
        # every time is unique, so that a reader can continue after the time of the last line that it has read
        self._last = max(time.time_ns(), self._last + 1)
        seconds, nanoseconds = divmod(self._last, 1_000_000_000)
        return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanoseconds)

    def write(self, chunk: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        formatted = []
        for line in lines:
            parts = [line[i : i + _LINE_BYTES] for i in range(0, len(line), _LINE_BYTES)] or [b""]
            for part in parts[:-1]:
                formatted.append(b"%s stdout P %s\n" % (self._time(), part))
            formatted.append(b"%s stdout F %s\n" % (self._time(), parts[-1]))
        while len(self._unfinished) >= _LINE_BYTES:
            formatted.append(b"%s stdout P %s\n" % (self._time(), self._unfinished[:_LINE_BYTES]))
            self._unfinished = self._unfinished[_LINE_BYTES:]
        self._append(b"".join(formatted))

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
            return  # with a full disk, log lines are lost; otherwise the full pipe would block the driver

    def close(self) -> None:
        if self._unfinished:
            self._append(b"%s stdout F %s\n" % (self._time(), self._unfinished))
        self._file.close()


def main(arguments: list[str]) -> int:
    folder, limit, command = Path(arguments[0]), int(arguments[1]), arguments[3:]
    own_file = folder / f".{PROCESS_FILE}.{os.getpid()}"
    own_file.write_text(json.dumps(identity(os.getpid())))
    try:
        # the link fails if the file exists: if two processes are started for one attempt, only one runs
        os.link(own_file, folder / PROCESS_FILE)
    except FileExistsError:
        return 0
    finally:
        own_file.unlink()
    # Orphaned descendants become our children and not init's, so that we can end all of them before the exit file.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Signals go to the whole session, but this process must outlive the driver to write the exit file.
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

    pump_thread = threading.Thread(target=pump, daemon=True)
    pump_thread.start()
    status = driver.wait()
    pump_thread.join(_DRAIN_SECONDS)
    # As in a container, all processes that the driver started are ended after it.
    while remaining := [pid for pid in session_members(os.getpid()) if pid != os.getpid()]:
        for pid in remaining:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
        _reap()
    pump_thread.join(_DRAIN_SECONDS)
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
