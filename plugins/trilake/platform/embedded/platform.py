"""Starting and stopping the platform: `up` and `down`."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError, TrilakeError
from trilake.platform.embedded import airflow, connections, postgres, processes, s3
from trilake.platform.embedded.home import LOOPBACK, SERVICES, STORES, Home, port_is_free
from trilake.platform.embedded.processes import NEVER_STARTED, Program, Supervisor, last_lines
from trilake.platform.embedded.provision import Progress, provision, quiet
from trilake.platform.private_files import write_private

# A cold start takes half a minute on two cores. A service that is not ready after this time hangs.
READY_TIMEOUT_S = 180
_PROBE_TIMEOUT_S = 5
_POLL_S = 0.1
_LOG_LINES = 8
# A service is stopped before the services that it needs.
_STOP_ORDER = (
    ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"),
    ("kubernetes", "clickhouse"),
    ("s3", "postgres"),
)


class ServiceError(TrilakeError):
    """A service did not start, or did not become ready."""


class BusyError(TrilakeError):
    """Another command is starting or stopping the platform."""


@contextmanager
def exclusive(home: Home) -> Iterator[None]:
    """Lock the platform, so that only one command at a time starts or stops services.

    :raises BusyError: another command has the lock.
    """
    with open(os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"Another command (process {_read_pid(file)}) is starting or stopping the platform in {home.path}.",
                hint="Wait until it has finished.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _read_pid(file: IO[str]) -> str:
    file.seek(0)
    return file.read(20).strip() or "unknown"


def busy(home: Home) -> str:
    """The id of the process that is starting or stopping the platform; empty if there is none."""
    try:
        with open(home.lock_file, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_pid(file)
    except OSError:
        pass
    return ""


# --- up


def up(home: Home, progress: Progress = quiet, *, airflow_too: bool = True, restoring: bool = False) -> None:
    """Start the services that do not run, wait until all are ready, apply the migrations and push the jobs' code.

    It can be repeated: a service that runs with the current configuration is not restarted.

    :param airflow_too: if False, Airflow is not started. If it already runs, it is not stopped. Jobs, SQL and
        publications work without Airflow. The start then takes seconds, and the platform needs a third of the memory.
    :param restoring: the caller restores a backup. For everybody else, a home whose restore is not finished is refused.
    :raises TrilakeError: the start failed; the message says why and what to do.
    """
    home.prepare()
    with exclusive(home):
        if home.unfinished_restore.exists() and not restoring:
            raise ConfigurationError(
                f"A restore of a backup into {home.path} is not finished.",
                hint="Run `trilake restore FOLDER` again: it continues.",
            )
        _Start(home, progress, SERVICES if airflow_too else STORES).run()


class _Start:
    """One start of the platform."""

    def __init__(self, home: Home, progress: Progress, wanted: Collection[str]) -> None:
        self._home = home
        self._progress = progress
        self._wanted = set(wanted)
        self._supervisor = Supervisor(home)
        self._failed = threading.Event()

    def run(self) -> None:
        home = self._home
        postgres.check_reachable(home)
        java, spark_jars, s3_jars = provision(home, self._progress)
        self._environment = connections.write(home, java, spark_jars)
        self._ports, self._secrets = home.ports(), home.secrets()
        programs = [
            postgres.program(home, self._ports["postgres"]),
            s3.program(home, java, s3_jars),
            *(_own_server(home, name) for name in ("clickhouse", "kubernetes")),
            *airflow.programs(home),
        ]
        self._start(self._supervise(programs))

    def _supervise(self, programs: list[Program]) -> list[str]:
        """Make sure that supervisord runs with these programs. Returns the services to start.

        :raises ServiceError: another program uses the port of a service.
        """
        home, supervisor = self._home, self._supervisor
        stamp = home.run / "configuration.sha256"
        digest = _digest(home, programs)
        if supervisor.pid is not None and not (stamp.exists() and stamp.read_text() == digest):
            self._progress("configuration", "changed: restarting")
            _stop(home, supervisor, keep=processes.DRIVER)
        if supervisor.pid is None:
            # end processes that outlived a killed supervisord; not drivers, which the Kubernetes API finds again
            processes.end({p: s for p, s in processes.find(home).items() if s != processes.DRIVER})
            self._check_ports(SERVICES)
            supervisor.start_daemon(programs, processes.base_environment(home))
            write_private(stamp, digest)
            return [name for name in SERVICES if name in self._wanted]
        states = supervisor.states()
        missing = [name for name in SERVICES if not states.get(name, NEVER_STARTED).running]
        if any(name not in missing for name in airflow.COMMANDS):
            self._wanted.update(airflow.COMMANDS)  # a part of Airflow runs, so all of it is wanted
        if "postgres" in missing:
            # Airflow's services end when their database is down, but some notice it late: stop them now
            supervisor.stop(airflow.HEALTH_NAMES)
            missing = [name for name in SERVICES if name in missing or name in airflow.HEALTH_NAMES]
        missing = [name for name in missing if name in self._wanted]
        # end processes that a dead service has left
        processes.end({p: s for p, s in processes.find(home).items() if s in missing})
        self._check_ports(missing)
        return missing

    def _check_ports(self, services: Collection[str]) -> None:
        for service in services:
            port = self._ports.get(service)
            if port and not port_is_free(port):
                raise ServiceError(
                    f"Port {port} of {service} in {self._home.path} is in use by {_listener(port)}.",
                    hint=f'Stop that program, or remove "{service}" from {self._home.config("ports.json")} to get '
                    "another port. Then run `trilake up` again.",
                )

    def _start(self, services: Collection[str]) -> None:
        """Start the services in parallel. A step waits until the steps that it needs are complete."""
        # name -> (function, the steps that it needs)
        steps: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
            "postgres": (self._start_postgres, ()),
            "s3": (self._start_s3, ()),
            "clickhouse": (lambda: self._bring_up("clickhouse", lambda: self._get("clickhouse", "/ping")), ()),
            "kubernetes": (lambda: self._bring_up("kubernetes", lambda: self._get("kubernetes", "/readyz")), ()),
            "tables": (self._migrate_tables, ("postgres", "clickhouse", "s3")),
            "jobs": (self._push_jobs, ("s3",)),
        }
        if self._wanted >= set(airflow.COMMANDS):
            steps["airflow-database"] = (self._set_up_airflow, ("postgres",))
            steps["airflow"] = (self._start_airflow, ("airflow-database",))
        self._missing = set(services)
        futures: dict[str, Future[None]] = {}

        def after(needed: tuple[str, ...], work: Callable[[], None]) -> None:
            for name in needed:
                futures[name].result()
            if not self._failed.is_set():
                work()

        with ThreadPoolExecutor(len(steps)) as pool:
            for name, (work, needed) in steps.items():
                futures[name] = pool.submit(after, needed, work)
            try:
                ended, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                self._failed.set()  # after an error or an interrupt, this stops the waiting threads
            errors = [error for future in ended if (error := future.exception())]
        if errors:
            raise errors[0]

    def _start_postgres(self) -> None:
        port, secrets = self._ports["postgres"], self._secrets
        if not (self._home.data("postgres") / "PG_VERSION").exists():
            self._progress("postgres", "creating its data folder")
            postgres.initialise(self._home, secrets["postgres_superuser"])
        if "postgres" in self._missing:
            postgres.forget_the_dead(self._home)
        self._bring_up("postgres", lambda: postgres.answers(port, secrets))
        postgres.make_databases(port, secrets)

    def _start_s3(self) -> None:
        if "s3" in self._missing:
            s3.remove_unfinished(self._home)
        self._bring_up("s3", self._s3_answers)

    def _set_up_airflow(self) -> None:
        database = postgres.endpoint(self._ports["postgres"], self._secrets, "airflow")
        self._progress("airflow-database", "starting")
        airflow.set_up(self._home, self._environment, database, self._secrets["airflow_admin"])
        self._progress("airflow-database", "ready")

    def _start_airflow(self) -> None:
        names = [name for name in airflow.COMMANDS if name in self._missing]
        # Start them in the order of COMMANDS, without waiting: each imports modules for some seconds.
        for name in names:
            self._progress(name, "starting")
            self._supervisor.start(name)
        # Wait for the API server first, because it reports the health of the others. If it was killed just before the
        # check, it was still shown as running, and is not in `names`. Then `_await` starts it.
        for name in sorted(airflow.COMMANDS, key=lambda name: name != airflow.API_SERVER):
            self._await(name, lambda name=name: self._airflow_is_healthy(name))  # type: ignore[misc]

    def _airflow_is_healthy(self, service: str) -> bool:
        health = _get_json(self._ports[airflow.API_SERVER], "/api/v2/monitor/health")
        if health is None:
            return False
        if service == airflow.API_SERVER:
            return True
        part = health.get(airflow.HEALTH_NAMES[service]) or {}
        beat = str(part.get(f"latest_{airflow.HEALTH_NAMES[service]}_heartbeat") or "")
        # Airflow reports a killed process as healthy for half a minute. So the heartbeat must be newer than the last
        # start.
        started = self._supervisor.states()[service].started
        return part.get("status") == "healthy" and beat != "" and datetime.fromisoformat(beat).timestamp() >= started

    def _migrate_tables(self) -> None:
        from trilake.schema import migrations

        self._progress("tables", "starting")
        migrations.migrate(Endpoints.from_environment(self._environment), self._home.project / "sql")
        self._progress("tables", "ready")

    def _push_jobs(self) -> None:
        from trilake import s3 as store
        from trilake.spark import versions

        self._progress("jobs", "starting")
        versions.push(store.client(Endpoints.from_environment(self._environment).s3), self._home.project)
        self._progress("jobs", "ready")

    def _bring_up(self, service: str, ready: Callable[[], bool]) -> None:
        """Start a service unless it runs, and wait until it is ready."""
        if service in self._missing:
            self._progress(service, "starting")
            self._supervisor.start(service)
        self._await(service, ready)

    def _await(self, service: str, ready: Callable[[], bool]) -> None:
        """Wait until a service is ready.

        :raises ServiceError: it has ended, or is not ready in time. The message has the end of its log.
        """
        until = time.monotonic() + READY_TIMEOUT_S
        while not self._failed.is_set():
            # read the state before the answer: a service that dies after its answer is then noticed the next time
            state = self._supervisor.states().get(service, NEVER_STARTED)
            if not state.running and service not in self._missing:
                # It was running at the first check and has died since. Processes that it left may use the port, or
                # still work.
                processes.end({p: s for p, s in processes.find(self._home).items() if s == service})
                self._missing.add(service)
                self._progress(service, "starting")
                self._supervisor.start(service)
                continue
            if not state.running:
                raise self._error(service, f"ended with exit code {state.exit_status}")
            if ready():
                if service in self._missing:
                    self._progress(service, "ready")
                return
            if time.monotonic() > until:
                raise self._error(service, f"was not ready after {READY_TIMEOUT_S} s")
            time.sleep(_POLL_S)

    def _error(self, service: str, what: str) -> ServiceError:
        log_lines = [line for line in last_lines(self._home.log(service), _LOG_LINES) if line.strip()]
        return ServiceError(
            f"{service} {what}. Its log ends with:\n  " + "\n  ".join(log_lines or ["(nothing)"]) + "\n",
            hint=f"See `trilake logs {service}`.",
        )

    def _s3_answers(self) -> bool:
        return _status(self._ports["s3"], "/") is not None

    def _get(self, service: str, path: str) -> bool:
        return _status(self._ports[service], path) == 200


def _own_server(home: Home, name: str) -> Program:
    import sys

    command = [sys.executable, "-m", f"trilake.platform.embedded.{name}", "--config", str(home.config(f"{name}.json"))]
    return Program(name, command, stop_group=False)


def _digest(home: Home, programs: list[Program]) -> str:
    """The digest of all configuration that services read at their start."""
    digest = hashlib.sha256(processes.configuration(home, programs).encode())
    for path in (home.connections_file, *sorted(home.config("").iterdir())):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _status(port: int, path: str) -> int | None:
    """The HTTP status of a server's answer; None if there is no answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _get_json(port: int, path: str) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        return document if answer.status == 200 and isinstance(document, dict) else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _listener(port: int) -> str:
    """The program that listens on the port, if this user has permission to see it."""
    import psutil

    for process in psutil.process_iter(["name"]):
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return f"{process.info['name']} (process {process.pid})"
        except (psutil.Error, OSError):
            continue
    return "another program"


# --- down


def down(home: Home, progress: Progress = quiet) -> bool:
    """Stop every process of the platform; its data is kept. False if no process ran.

    :raises BusyError: another command is starting or stopping the platform.
    """
    if not home.run.is_dir():
        return False
    with exclusive(home):
        supervisor = Supervisor(home)
        running = supervisor.pid is not None or bool(processes.find(home))
        if running:
            _stop(home, supervisor, progress=progress)
        return running


def _stop(home: Home, supervisor: Supervisor, *, keep: str = "", progress: Progress = quiet) -> None:
    for services in _STOP_ORDER:
        for service in services:
            progress(service, "ending")
        supervisor.stop(services)
    supervisor.shutdown()
    processes.end({process: service for process, service in processes.find(home).items() if service != keep})
