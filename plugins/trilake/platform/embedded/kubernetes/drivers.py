"""Driver processes: start, find again, wait for the end, and end. A driver is identified by its attempt's folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilake.platform.embedded.kubernetes import driver_process
from trilake.platform.embedded.kubernetes.driver_process import EXIT_FILE, PROCESS_FILE, identity, session_members

# The exit code of a container that got SIGKILL. Also used for a driver whose exit code is unknown.
LOST_EXIT_CODE = 137
_START_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class DriverExit:
    """How a driver ended. `finished` is in seconds since 1970."""

    exit_code: int
    finished: float


@dataclass(frozen=True)
class Driver:
    """One attempt to run an application. It has its own folder."""

    folder: Path

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, log_bytes: int) -> None:
        """Start the driver in a new session, unless it was started before. The environment is not written to a file.

        :raises OSError: the process cannot be started.
        """
        program = [sys.executable, "-I", driver_process.__file__, str(self.folder), str(log_bytes), "--", *command]
        watcher = subprocess.Popen(
            program,
            env=dict(environment),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _children[watcher.pid] = watcher

    async def started(self) -> bool:
        """Wait until the process file exists; False if it does not appear in time."""
        until = time.monotonic() + _START_SECONDS
        while not (self.folder / PROCESS_FILE).exists():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    @property
    def process(self) -> dict[str, Any] | None:
        """The content of the process file, also of a dead process; None if there is no file."""
        return _read(self.folder / PROCESS_FILE)

    def alive(self) -> int | None:
        """The process id, if that process is still alive; else None."""
        process = self.process
        if process is None:
            return None
        pid = int(process["pid"])
        return pid if pid and identity(pid) == process else None

    async def finished(self) -> DriverExit:
        """Wait until the driver and all processes that it started have ended."""
        while (pid := self.alive()) is not None:
            await _process_end(pid)
        if (driver_exit := self.exit()) is not None:
            return driver_exit
        # The watcher process was killed: end its driver too. The driver's exit code is unknown.
        await self.end(grace_seconds=0, never_start=True)
        lost_driver = DriverExit(LOST_EXIT_CODE, time.time())
        driver_process.write_atomically(
            self.folder / EXIT_FILE, {"exit_code": lost_driver.exit_code, "finished": lost_driver.finished}
        )
        return lost_driver

    def exit(self) -> DriverExit | None:
        """How the driver ended; None if it has not ended."""
        document = _read(self.folder / EXIT_FILE)
        return DriverExit(int(document["exit_code"]), float(document["finished"])) if document else None

    async def end(self, *, grace_seconds: float, never_start: bool = False) -> None:
        """Send SIGTERM to every process of the session, then SIGKILL to those that are alive after `grace_seconds`.

        :param never_start: also prevent the start of a driver that is being started now.
        """
        if never_start:
            self._claim()
        process = self.process
        if process is None or process["pid"] == 0:
            return
        leader = int(process["pid"])
        if process["boot"] != (identity(os.getpid()) or {}).get("boot"):
            return  # the machine was restarted: the process has ended, and its id may belong to another one
        if (current := identity(leader)) is not None and current != process:
            return  # the id was reused, so the session is empty: an id is not reused while its session has members
        until = time.monotonic() + grace_seconds
        terminated = False
        while members := session_members(leader):
            if time.monotonic() >= until:
                _signal(members, signal.SIGKILL)
            elif not terminated:
                _signal(members, signal.SIGTERM)
                terminated = True
            await asyncio.sleep(_POLL_SECONDS)
            _reap()

    def _claim(self) -> None:
        """Create a process file without a process, if there is none. A driver that starts later finds it and exits."""
        own_file = self.folder / f".{PROCESS_FILE}.none"
        own_file.write_text(json.dumps({"pid": 0}))
        with contextlib.suppress(FileExistsError):
            os.link(own_file, self.folder / PROCESS_FILE)
        own_file.unlink()


# The watcher processes that this server started. It must wait for them, or they stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


def _reap() -> None:
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def _process_end(pid: int) -> None:
    """Wait for the end of a process. On Linux 5.3 and later it does not poll."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        await asyncio.sleep(_POLL_SECONDS)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        _reap()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return document
