"""What a fault does to a running platform, and how it is lifted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from support.fault_schedule import Schedule
from support.tcp_proxy import TcpProxy
from trilake.endpoints import Endpoints
from trilake.platform.embedded import platform as lifecycle
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import LOOPBACK, Home, free_port
from trilake.platform.embedded.processes import NEVER_STARTED, Supervisor

# Services that have a proxy before them; ClickHouse reads S3 through one, too.
PROXIED = ("postgres", "s3", "clickhouse", "kubernetes")
_SCHEDULER = "airflow-scheduler"
# How long a step takes, at most, until it has its driver.
_APPEARS_S = 60
# What a client of PostgreSQL says first names its database.
_BEGINS = {name: b"database\0%s\0" % database for name, database in
           (("lake", b"lake"), ("oltp", b"oltp"), ("metadata", b"airflow"))}  # fmt: skip
# Room for every schedule of a session; a tmpfs takes what is in it.
_DISK_BYTES = 2 << 30
DISKS = ("s3", "clickhouse")


@dataclass(frozen=True)
class ProxiedHome(Home):
    """A home whose clients find its services through proxies; the services themselves know nothing of it."""

    proxies: Mapping[str, int] = field(default_factory=dict)

    def client_ports(self) -> dict[str, int]:
        return {**self.ports(), **self.proxies}


@contextmanager
def proxies(home: Home) -> Iterator[dict[str, TcpProxy]]:
    """A proxy before each of `PROXIED`, on ports that the home remembers."""
    home.prepare()
    ports = home.ports()
    fronts = home._remembered("proxies.json", PROXIED, lambda _, taken: free_port((*ports.values(), *taken.values())))
    with ExitStack() as stack:
        yield {name: stack.enter_context(TcpProxy(LOOPBACK, ports[name], port=fronts[name])) for name in PROXIED}


@contextmanager
def small_disks(home: Home, *, keep: bool) -> Iterator[str]:
    """A file system of its own below the data of each of `DISKS`. Gives why there is none, or nothing.

    :param keep: they stay when the block ends.
    """
    with ExitStack() as stack:
        for name in DISKS:
            folder = home.data(name)
            if os.path.ismount(folder):
                continue
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=700", "trilake-test", str(folder)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as e:
                yield f"no mount: {e}"
                return
            if done.returncode:
                yield f"a file system of its own cannot be mounted here: {done.stderr.strip()}"
                return
            if not keep:
                stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        yield ""


@dataclass(frozen=True)
class Scheduler:
    """Airflow's, as it was when somebody looked: its process, and the bytes of its log."""

    pid: int
    written: int


@dataclass
class Faults:
    """The faults of one platform.

    :ivar unfit: why no disk can be filled; empty if it can.
    """

    home: Home
    proxies: Mapping[str, TcpProxy]
    unfit: str = ""

    @property
    def _shards(self) -> int:
        return len(Endpoints.from_environment(self.home.environment()).clickhouse.shards)

    @contextmanager
    def lasting(self, schedule: Schedule, task_instance: str) -> Iterator[None]:
        """The fault, for the length of a `with` block."""
        self.strike(schedule, task_instance)
        try:
            yield
        finally:
            self.restore()
            if schedule.act == "lose":
                self._trilake("rebuild")  # as a user does
            elif schedule.act == "reshard":
                self._trilake("reshard", "--shards", str(self._shards))

    def strike(self, schedule: Schedule, task_instance: str) -> None:
        victim = schedule.victim
        if schedule.act == "kill":
            self._kill(victim, task_instance)
        elif schedule.act == "fill":
            self._fill(victim)
        elif schedule.act == "lose":
            self._lose(victim, task_instance)
        elif schedule.act == "reshard":
            self._trilake("reshard", "--shards", "1")
        else:
            proxy = self.proxies["postgres" if victim in _BEGINS else victim]
            getattr(proxy, schedule.act)(_BEGINS.get(victim, b""))

    def restore(self) -> None:
        """Nothing is stalled, cut or full any more, and what was killed is brought up, as a user does: `trilake up`."""
        for proxy in self.proxies.values():
            proxy.restore()
        for name in DISKS:
            if os.path.ismount(self.home.data(name)):
                _resize(self.home.data(name), _DISK_BYTES)
        lifecycle.up(self.home)

    def _trilake(self, *arguments: str) -> None:
        command = [sys.executable, "-c", "from trilake.cli import main; main()", *arguments]
        environment = {**os.environ, **self.home.environment(), "TRILAKE_HOME": str(self.home.path)}
        done = subprocess.run(
            command, cwd=self.home.project, env=environment, capture_output=True, text=True, check=False
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0, done.stderr

    def restart(self, service: str) -> None:
        """Kill it and bring it up again."""
        self._kill(service, "")
        lifecycle.up(self.home)

    def scheduler(self) -> Scheduler:
        state = Supervisor(self.home).states().get(_SCHEDULER, NEVER_STARTED)
        return Scheduler(state.pid, self.home.log(_SCHEDULER).stat().st_size)

    def last_words_of(self, scheduler: Scheduler) -> str:
        """What it has written since, if it died."""
        if self.scheduler().pid == scheduler.pid:
            return ""
        with self.home.log(_SCHEDULER).open("rb") as log:
            log.seek(scheduler.written)
            return log.read().decode(errors="replace")

    def await_victim(self, schedule: Schedule, task_instance: str) -> bool:
        """Whether who is to be killed is there: at the very start of a step it is not yet, at the end not any more."""
        until = time.monotonic() + _APPEARS_S
        while schedule.act in ("kill", "lose") and not self._processes(schedule.victim, task_instance):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _kill(self, victim: str, task_instance: str) -> None:
        struck = self._processes(victim, task_instance)
        assert struck, f"there is no process of {victim} to kill"
        for process in struck:
            with suppress(psutil.NoSuchProcess):  # of a driver, one goes with another
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(struck, timeout=10)

    def _lose(self, victim: str, task_instance: str) -> None:
        """Its disk is lost: the process ends, and all its data is gone."""
        self._kill(victim, task_instance)
        for entry in self.home.data(victim).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _processes(self, victim: str, task_instance: str) -> Sequence[psutil.Process]:
        """Of a service its main process, as the kernel would choose it when memory is short; of a driver all."""
        if victim == "driver":
            found = processes.find(self.home)
            return [process for process, service in found.items() if service == processes.DRIVER]
        if victim == "task":
            return [p for p in processes.find(self.home) if _said(p) == f"airflow worker -- {task_instance}"]
        state = Supervisor(self.home).states().get(victim, NEVER_STARTED)
        return [psutil.Process(state.pid)] if state.pid else []

    def _fill(self, name: str) -> None:
        assert not self.unfit, self.unfit
        _resize(self.home.data(name), shutil.disk_usage(self.home.data(name)).used)


def _said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).rstrip()
    except psutil.Error:
        return ""


def _resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(folder)], check=True, capture_output=True)
