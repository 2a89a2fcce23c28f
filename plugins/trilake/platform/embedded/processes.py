"""Services as processes: supervised by supervisord, spoken to over a unix socket, and found again when it is gone.

Every process of a platform carries `HOME_MARKER` and `SERVICE_MARKER` in its environment, and so do its descendants.
Processes that outlived their parent are found by it, whatever ended the parent.
"""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trilake.errors import TrilakeError
from trilake.platform.embedded.home import Home
from trilake.platform.private_files import write_private

if TYPE_CHECKING:
    import psutil

HOME_MARKER = "TRILAKE_HOME"
SERVICE_MARKER = "TRILAKE_SERVICE"
# What Spark's drivers carry: they outlive the server that started them, which finds them again.
DRIVER = "spark-driver"
SUPERVISOR = "supervisord"

_CONFIGURATION = "supervisord.conf"
_LOG_BYTES = "10MB"
_OLDER_LOGS = 1
_SUPERVISOR_START_S = 15
_SUPERVISOR_STOP_S = 30
# Between the request to end and the end by force. PostgreSQL writes a checkpoint, Airflow ends its tasks.
_ORPHAN_GRACE_S = 5.0
_POLL_S = 0.05
_RPC_TIMEOUT_S = 60
_NOTICE_S = 3
# What a service gets of the caller's environment. The rest is the caller's own affair: another Airflow's settings, say.
_PASSED_ON = frozenset({"HOME", "LOGNAME", "PATH", "PYTHONPATH", "TMPDIR", "USER", "XDG_CACHE_HOME"}) | frozenset(
    {"REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE"}
)


class ProcessError(TrilakeError):
    """A process could not be started or ended."""


@dataclass(frozen=True)
class Program:
    """How one service runs.

    :param user: OS user, when it is to run as another one than ours.
    :param stop_group: whether the signal to end goes to the whole process group.
    :param stop_s: seconds between the signal and the end by force.
    """

    name: str
    command: Sequence[str]
    user: str | None = None
    stop_signal: str = "TERM"
    stop_group: bool = True
    stop_s: int = 10


@dataclass(frozen=True)
class ProcessState:
    """What supervisord knows of a service.

    :param started: when it was last started, in seconds since 1970; 0 if never.
    :param exit_status: how it last ended.
    """

    name: str
    state: str
    pid: int
    started: float
    exit_status: int

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


# Nobody has started it.
NEVER_STARTED = ProcessState("", "STOPPED", 0, 0.0, 0)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_RPC_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


class Supervisor:
    """The supervisord of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._configuration = home.run / _CONFIGURATION

    def _call(self, method: str, *arguments: Any) -> Any:
        """One call over a connection of its own: a thread may make it."""
        proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_UnixTransport(self._home.socket))
        with proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    @property
    def pid(self) -> int | None:
        """Of the running supervisord; None if there is none."""
        try:
            return cast(int, self._call("getPID"))
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None

    def states(self) -> dict[str, ProcessState]:
        """By service; nothing if supervisord is not there."""
        until = time.monotonic() + _NOTICE_S
        while True:
            states = self._states()
            # for a moment supervisord takes one that was killed for alive
            if time.monotonic() > until or not any(s.running and not _is_alive(s.pid) for s in states.values()):
                return states
            time.sleep(_POLL_S)

    def _states(self) -> dict[str, ProcessState]:
        try:
            listed = self._call("getAllProcessInfo")
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return {}
        return {
            info["name"]: ProcessState(
                info["name"], info["statename"], info["pid"], float(info["start"]), info["exitstatus"]
            )
            for info in listed
        }

    def start_daemon(self, programs: Iterable[Program], environment: Mapping[str, str]) -> None:
        """Start supervisord; it starts nothing by itself.

        :param environment: what every service gets.
        :raises ProcessError: it does not come up.
        """
        write_private(self._configuration, configuration(self._home, programs))
        self._home.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)]
        done = subprocess.run(
            command, env=dict(environment), cwd=self._home.run, capture_output=True, text=True, check=False
        )
        until = time.monotonic() + _SUPERVISOR_START_S
        while done.returncode == 0 and time.monotonic() < until:
            if self.pid is not None:
                return
            time.sleep(_POLL_S)
        told = done.stderr.strip().splitlines() or last_lines(self._home.log("supervisord"), 3)
        raise ProcessError(
            f"supervisord did not start: {' '.join(told[-3:])}", hint=f"See {self._home.log('supervisord')}."
        )

    def start(self, service: str) -> None:
        """:raises ProcessError: the program cannot be run at all. Whether it stays alive is for the caller to see."""
        try:
            self._call("startProcess", service, True)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise ProcessError(f"{service} cannot be started: {fault.faultString}.") from None
        except (OSError, http.client.HTTPException):
            raise ProcessError(
                f"{service} cannot be started: supervisord is gone.", hint="Run `trilake up` again."
            ) from None

    def stop(self, services: Collection[str]) -> None:
        """End these side by side, and wait until they have ended. What does not run is left alone."""
        asked = []
        for service in services:
            try:
                self._call("stopProcess", service, False)
                asked.append(service)
            except xmlrpc.client.Fault:
                continue  # it does not run
            except (OSError, http.client.HTTPException):
                return  # supervisord is gone; the caller looks for the remaining processes
        while asked:
            states = self.states()
            if not any(states.get(service, NEVER_STARTED).pid for service in asked):
                return
            time.sleep(_POLL_S)

    def shutdown(self) -> None:
        """End supervisord with whatever still runs below it, and wait until it is gone."""
        import psutil

        pid = self.pid
        if pid is None:
            return
        try:
            process = psutil.Process(pid)
            self._call("shutdown")
            process.wait(_SUPERVISOR_STOP_S)
        except (psutil.NoSuchProcess, OSError, http.client.HTTPException):
            return
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(_SUPERVISOR_STOP_S)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def base_environment(home: Home, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every service gets. No secret is in it."""
    return {name: value for name, value in environ.items() if name in _PASSED_ON} | {
        HOME_MARKER: str(home.path),
        "TRILAKE_PROJECT": str(home.project),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
        # process titles are set over the environment otherwise, and the marker would be lost
        "SPT_NOENV": "1",
    }


def configuration(home: Home, programs: Iterable[Program]) -> str:
    """supervisord's configuration file. No secret is in it."""
    sections: dict[str, dict[str, object]] = {
        "unix_http_server": {"file": home.socket, "chmod": "0700"},
        "supervisord": {
            "logfile": home.log("supervisord"),
            "logfile_maxbytes": _LOG_BYTES,
            "logfile_backups": _OLDER_LOGS,
            "pidfile": home.run / "supervisord.pid",
            "childlogdir": home.path / "logs",
            "directory": home.run,
            "umask": "077",
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
    }
    if os.geteuid() == 0:
        sections["supervisord"]["user"] = "root"
    for program in programs:
        options: dict[str, object] = {
            "command": shlex.join(program.command),
            "environment": f'{SERVICE_MARKER}="{program.name}"',
            "directory": "/",  # another OS user may not enter ours
            "autostart": "false",
            # one that dies stays dead: `status` says so and `up` starts it, after looking what it left behind
            "autorestart": "false",
            "startsecs": 0,
            "startretries": 0,
            "stopsignal": program.stop_signal,
            "stopwaitsecs": program.stop_s,
            "stopasgroup": str(program.stop_group).lower(),
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": home.log(program.name),
            "stdout_logfile_maxbytes": _LOG_BYTES,
            "stdout_logfile_backups": _OLDER_LOGS,
        }
        if program.user:
            options["user"] = program.user
        sections[f"program:{program.name}"] = options
    lines = []
    for title, values in sections.items():
        lines.append(f"[{title}]")
        lines += [f"{name}={str(value).replace('%', '%%')}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log; nothing if there is none."""
    try:
        with open(path, errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, count)]
    except OSError:
        return []


# --- processes that nobody supervises


def find(home: Home) -> dict[psutil.Process, str]:
    """Every living process of this home's platform and the service it belongs to; supervisord is its own.

    PostgreSQL's own write their titles over their environment: they are known by the folder they work in.
    """
    import psutil

    found = {}
    data = os.path.realpath(home.data("postgres"))
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres":
                if process.cwd() == data:
                    found[process] = "postgres"
                continue
            environment = process.environ()
            if environment.get(HOME_MARKER) != str(home.path):
                continue
            service = environment.get(SERVICE_MARKER)
            if service is None and str(home.run / _CONFIGURATION) in process.cmdline():
                service = SUPERVISOR  # it may live on where nobody reaches it: its socket can be lost
            if service:
                found[process] = service
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # gone meanwhile, or another user's
    return found


def end(processes: Mapping[psutil.Process, str], grace_s: float = _ORPHAN_GRACE_S) -> None:
    """End these, and wait until they are gone: asked first, by force after `grace_s`."""
    import psutil

    def send(number: Any, to: Iterable[psutil.Process]) -> None:
        for process in to:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    postgres = [process for process, service in processes.items() if service == "postgres"]
    # to its postmaster SIGINT means: end now, cleanly; to its other processes, to give up a query
    send(signal.SIGINT, postgres)
    send(signal.SIGTERM, processes.keys() - set(postgres))
    _, alive = psutil.wait_procs(list(processes), timeout=grace_s)
    send(signal.SIGKILL, alive)
    psutil.wait_procs(alive, timeout=grace_s)
