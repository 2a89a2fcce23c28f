"""Drivers as processes: started, found again, awaited and ended. A driver is known by its attempt's folder alone."""

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

# The exit code of a container that was killed from outside, and of a driver whose parent process died without a record.
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
    """One attempt to run an application, in a folder of its own."""

    folder: Path

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, log_bytes: int) -> None:
        """Start it in a session of its own, unless it was started before. The environment is written nowhere.

        :raises OSError: no process can be started.
        """
        program = [sys.executable, "-I", driver_process.__file__, str(self.folder), str(log_bytes), "--", *command]
        keeper = subprocess.Popen(
            program,
            env=dict(environment),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _children[keeper.pid] = keeper

    async def started(self) -> bool:
        """Wait until the process says who it is; False if it never does."""
        until = time.monotonic() + _START_SECONDS
        while not (self.folder / PROCESS_FILE).exists():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    @property
    def process(self) -> dict[str, Any] | None:
        """Who the process says it is, dead or alive."""
        return _read(self.folder / PROCESS_FILE)

    def alive(self) -> int | None:
        """Its process id, if it is still that process."""
        process = self.process
        if process is None:
            return None
        pid = int(process["pid"])
        return pid if pid and identity(pid) == process else None

    async def finished(self) -> DriverExit:
        """Wait until it has ended, and everything that it started with it."""
        while (pid := self.alive()) is not None:
            await _process_end(pid)
        if (written := self.exit()) is not None:
            return written
        # Its keeper was killed: what it kept goes too, and how it would have ended nobody knows.
        await self.end(grace_seconds=0, never_start=True)
        lost = DriverExit(LOST_EXIT_CODE, time.time())
        driver_process.write_atomically(
            self.folder / EXIT_FILE, {"exit_code": lost.exit_code, "finished": lost.finished}
        )
        return lost

    def exit(self) -> DriverExit | None:
        """How it ended, if it did."""
        written = _read(self.folder / EXIT_FILE)
        return DriverExit(int(written["exit_code"]), float(written["finished"])) if written else None

    async def end(self, *, grace_seconds: float, never_start: bool = False) -> None:
        """SIGTERM to every process of its session, then SIGKILL to those still there after `grace_seconds`.

        :param never_start: also prevent the start of a driver that is being started now.
        """
        if never_start:
            self._claim()
        process = self.process
        if process is None or process["pid"] == 0:
            return
        leader = int(process["pid"])
        if process["boot"] != (identity(os.getpid()) or {}).get("boot"):
            return  # the machine was restarted: the process is gone, and its id may belong to another one
        if (now := identity(leader)) is not None and now != process:
            return  # a session that still has members keeps its number from being given away
        until = time.monotonic() + grace_seconds
        asked = False
        while members := session_members(leader):
            if time.monotonic() >= until:
                _signal(members, signal.SIGKILL)
            elif not asked:
                _signal(members, signal.SIGTERM)
                asked = True
            await asyncio.sleep(_POLL_SECONDS)
            _reap()

    def _claim(self) -> None:
        """Be who the process file names, if nobody is yet: a process that comes later finds it and goes."""
        mine = self.folder / f".{PROCESS_FILE}.none"
        mine.write_text(json.dumps({"pid": 0}))
        with contextlib.suppress(FileExistsError):
            os.link(mine, self.folder / PROCESS_FILE)
        mine.unlink()


# The keepers that this server started: they must be waited for, or they stay as zombies.
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
    """Wait without polling where the kernel can tell (Linux 5.3 and later)."""
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
