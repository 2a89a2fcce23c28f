"""The services' processes. supervisord runs them and is controlled over a unix socket.

Every process of a platform has `HOME_MARKER` and `SERVICE_MARKER` in its environment, and its descendants inherit them.
With the markers, processes are found even if supervisord or another parent process has died.
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
# The `SERVICE_MARKER` of Spark's drivers. They outlive the server that started them; the next server finds them.
DRIVER = "spark-driver"
SUPERVISOR = "supervisord"

_CONFIGURATION = "supervisord.conf"
_LOG_BYTES = "10MB"
_OLDER_LOGS = 1
_SUPERVISOR_START_S = 15
_SUPERVISOR_STOP_S = 30
# Seconds between the stop signal and SIGKILL. In this time PostgreSQL writes a checkpoint and Airflow ends its tasks.
_ORPHAN_GRACE_S = 5.0
_POLL_S = 0.05
_RPC_TIMEOUT_S = 60
_NOTICE_S = 3
# Services get only these variables of the caller's environment. Others could change how they work, such as settings of
# another Airflow.
_PASSED_ON = frozenset({"HOME", "LOGNAME", "PATH", "PYTHONPATH", "TMPDIR", "USER", "XDG_CACHE_HOME"}) | frozenset(
    {"REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE"}
)


class ProcessError(TrilakeError):
    """A process could not be started or ended."""


@dataclass(frozen=True)
class Program:
    """How one service runs.

    :param user: the OS user to run as; None: the current user.
    :param stop_group: whether the stop signal goes to the whole process group.
    :param stop_s: seconds between the stop signal and SIGKILL.
    """

    name: str
    command: Sequence[str]
    user: str | None = None
    stop_signal: str = "TERM"
    stop_group: bool = True
    stop_s: int = 10


@dataclass(frozen=True)
class ProcessState:
    """The state of a service, as supervisord reports it.

    :param started: the time of the last start, in seconds since 1970; 0 if never.
    :param exit_status: the exit code of the last run.
    """

    name: str
    state: str
    pid: int
    started: float
    exit_status: int

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


# The state of a service that supervisord does not list.
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
        """Make one call over a new connection, so that any thread can use it."""
        proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_UnixTransport(self._home.socket))
        with proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    @property
    def pid(self) -> int | None:
        """The process id of the running supervisord; None if it does not run."""
        try:
            return cast(int, self._call("getPID"))
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None

    def states(self) -> dict[str, ProcessState]:
        """The state of each service; empty if supervisord does not run."""
        until = time.monotonic() + _NOTICE_S
        while True:
            states = self._states()
            # after a kill, supervisord shows the process as running for a moment
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
        """Start supervisord. It does not start any service by itself.

        :param environment: the environment of supervisord and of every service.
        :raises ProcessError: supervisord does not start.
        """
        write_private(self._configuration, configuration(self._home, programs))
        self._home.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)]
        daemon = subprocess.run(
            command, env=dict(environment), cwd=self._home.run, capture_output=True, text=True, check=False
        )
        until = time.monotonic() + _SUPERVISOR_START_S
        while daemon.returncode == 0 and time.monotonic() < until:
            if self.pid is not None:
                return
            time.sleep(_POLL_S)
        output = daemon.stderr.strip().splitlines() or last_lines(self._home.log("supervisord"), 3)
        raise ProcessError(
            f"supervisord did not start: {' '.join(output[-3:])}", hint=f"See {self._home.log('supervisord')}."
        )

    def start(self, service: str) -> None:
        """Start a service. The caller must check that it stays alive.

        :raises ProcessError: the program cannot be run.
        """
        try:
            self._call("startProcess", service, True)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise ProcessError(f"{service} cannot be started: {fault.faultString}.") from None
        except (OSError, http.client.HTTPException):
            raise ProcessError(
                f"{service} cannot be started: supervisord does not run.", hint="Run `trilake up` again."
            ) from None

    def stop(self, services: Collection[str]) -> None:
        """Stop these services at the same time, and wait until they have ended. Those that do not run are skipped."""
        stopping = []
        for service in services:
            try:
                self._call("stopProcess", service, False)
                stopping.append(service)
            except xmlrpc.client.Fault:
                continue  # the service does not run
            except (OSError, http.client.HTTPException):
                return  # supervisord has died; the caller looks for the remaining processes
        while stopping:
            states = self.states()
            if not any(states.get(service, NEVER_STARTED).pid for service in stopping):
                return
            time.sleep(_POLL_S)

    def shutdown(self) -> None:
        """Stop supervisord and all services that it runs, and wait until it has ended."""
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
    """The environment that every service gets. It has no secrets."""
    return {name: value for name, value in environ.items() if name in _PASSED_ON} | {
        HOME_MARKER: str(home.path),
        "TRILAKE_PROJECT": str(home.project),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
        # otherwise setproctitle overwrites the environment with the process title, and the marker is lost
        "SPT_NOENV": "1",
    }


def configuration(home: Home, programs: Iterable[Program]) -> str:
    """supervisord's configuration file. It has no secrets."""
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
            "directory": "/",  # a service's OS user may have no access to our folders
            "autostart": "false",
            # Do not restart a service that died: `status` shows this, and `up` first ends the processes that it left
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
    """The last lines of a log; empty if there is no log."""
    try:
        with open(path, errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, count)]
    except OSError:
        return []


# --- processes that supervisord does not know


def find(home: Home) -> dict[psutil.Process, str]:
    """The running processes of this home's platform, each with its service. For supervisord this is `SUPERVISOR`.

    PostgreSQL's processes overwrite their environment with their titles. They are found by their working directory.
    """
    import psutil

    services = {}
    data = os.path.realpath(home.data("postgres"))
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres":
                if process.cwd() == data:
                    services[process] = "postgres"
                continue
            environment = process.environ()
            if environment.get(HOME_MARKER) != str(home.path):
                continue
            service = environment.get(SERVICE_MARKER)
            if service is None and str(home.run / _CONFIGURATION) in process.cmdline():
                service = SUPERVISOR  # it may still run although its socket was removed
            if service:
                services[process] = service
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # it has ended, or belongs to another user
    return services


def end(processes: Mapping[psutil.Process, str], grace_s: float = _ORPHAN_GRACE_S) -> None:
    """Send a stop signal, and SIGKILL after `grace_s` seconds. Wait until the processes have ended."""
    import psutil

    def send(signal_number: Any, to: Iterable[psutil.Process]) -> None:
        for process in to:
            try:
                process.send_signal(signal_number)
            except psutil.NoSuchProcess:
                continue

    postgres = [process for process, service in processes.items() if service == "postgres"]
    # SIGINT makes the postmaster shut down fast and clean. The other PostgreSQL processes cancel their query.
    send(signal.SIGINT, postgres)
    send(signal.SIGTERM, processes.keys() - set(postgres))
    _, alive = psutil.wait_procs(list(processes), timeout=grace_s)
    send(signal.SIGKILL, alive)
    psutil.wait_procs(alive, timeout=grace_s)
