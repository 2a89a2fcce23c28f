"""``make replica``: write `.env`, build images, start containers, wait until all are ready, and print the addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from trilake.errors import TrilakeError
from trilake.platform.hosts import environment
from trilake.platform.hosts.checkout import has_hosts_files, served_project
from trilake.platform.hosts.containers import project_name
from trilake.platform.hosts.vpn import Vpn
from trilake.project import PROJECT

READY_TIMEOUT_S = 900
PROFILE = "laptop"
_POLL_S = 2.0
_LOG_LINES = 6


class ReplicaError(TrilakeError):
    """The replica did not start."""


@dataclass(frozen=True)
class Service:
    """A container as `docker compose ps` shows it.

    :param job: the container does its work and ends (`restart: "no"`).
    """

    name: str
    state: str
    health: str
    exit_code: int
    job: bool

    @property
    def ready(self) -> bool:
        if self.job:
            return self.state == "exited" and self.exit_code == 0
        return self.state == "running" and self.health in ("", "healthy")

    @property
    def failed(self) -> bool:
        """Whether it will never be ready: a job failed. Docker restarts a service that ended."""
        return self.job and self.state == "exited" and self.exit_code != 0

    def __str__(self) -> str:
        return f"exit code {self.exit_code}" if self.state == "exited" else self.health or self.state


def read_services(text: str, jobs: Container[str]) -> dict[str, Service]:
    """Parse `docker compose ps --all --format json`: one object per line, or a list in older versions."""
    documents = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    services = (
        Service(d["Service"], d["State"], d.get("Health") or "", int(d.get("ExitCode") or 0), d["Service"] in jobs)
        for d in documents
    )
    return {service.name: service for service in services}


def up(checkout: Path) -> None:
    """Start the replica. It is safe to call at any time. Progress goes to stderr, the result to stdout.

    :param checkout: has the hosts' files and ``.env``. The project may be elsewhere: see `served_project`.
    :raises EnvironmentFileError: a setting is missing in `.env`.
    :raises ReplicaError: there is no Docker, an image cannot be built, or a service does not become ready.
    """
    if not has_hosts_files(checkout):
        raise ReplicaError(
            f"{checkout} does not have the hosts' files.",
            hint=f"Run this in a checkout of Trilake's repository. {PROJECT} names the project that the replica runs.",
        )
    file = checkout / environment.FILE
    if not file.exists():
        environment.write(file, environment.replica_settings())
        _say("wrote .env with this replica's addresses and secrets")
    values = environment.read(file)
    environment.check(values)
    project = served_project(checkout, values)
    # Compose mounts the project's folders
    os.environ[PROJECT] = str(project)
    _say(f"project: {project}")
    _docker(checkout, "version", "--format", "{{.Server.Version}}", quiet=True)
    _say("building images; the first time takes minutes")
    _docker(checkout, "compose", "build", "--quiet")
    _say("starting")
    # --wait of Compose does not fit: it treats a job that has finished as a service that failed
    done = _docker(checkout, "compose", "up", "--detach", "--remove-orphans", check=False)
    _await(checkout, started=done == 0)
    _profile(checkout)
    address = f"http://127.0.0.1:{values.get('UI_PORT', '8080')}"
    print(f"Up. Airflow: {address}  user admin, password: AIRFLOW_ADMIN_PASSWORD of .env")
    print(
        "Through the VPN: http://vps-1:8080, S3 http://vps-1:7070, PostgreSQL vps-1:5432, ClickHouse http://vps-3:8123"
    )
    print("`docker compose ps` shows what runs; `make replica-down` ends it and keeps the data.")


def _profile(checkout: Path) -> None:
    """Make one VPN profile of an administrator, unless there is or was one. Completes a call that was killed."""
    vpn = Vpn(project_name(os.environ, checkout / environment.FILE))
    file = checkout / f"{PROFILE}.ovpn"
    profiles = [person for person in vpn.people() if person["name"] == PROFILE]
    if any(person["delivered"] or person["revoked_at"] for person in profiles):
        return
    if file.exists() and not profiles:
        _say(f"{file.name} belongs to an earlier replica. Remove it; then `make replica` writes a new one")
        return
    vpn.add(PROFILE, "admin", file)
    _say(f"wrote {file.name}: a VPN profile of an administrator")


def down(checkout: Path) -> None:
    """Stop and remove every container. Volumes are kept."""
    _docker(checkout, "compose", "down", "--remove-orphans")
    print("Down; the data is kept (docker compose down --volumes removes it).")


def _await(checkout: Path, *, started: bool) -> None:
    """:raises ReplicaError: a job failed, or a service is not ready in time. The message has the end of its log."""
    until = time.monotonic() + (READY_TIMEOUT_S if started else 0)
    printed: dict[str, str] = {}
    configured = json.loads(_output(checkout, "compose", "config", "--format", "json") or "{}").get("services", {})
    jobs = {name for name, service in configured.items() if service.get("restart") == "no"}
    while True:
        services = read_services(_output(checkout, "compose", "ps", "--all", "--format", "json"), jobs)
        for service in services.values():
            if printed.get(service.name) != str(service):
                printed[service.name] = str(service)
                _say(f"{service.name:<24} {service}")
        if started and services and all(service.ready for service in services.values()):
            return
        if failed := [service for service in services.values() if service.failed]:
            raise _error(checkout, failed[0], "failed")
        if time.monotonic() > until:
            late = [service for service in services.values() if not service.ready]
            if not late:
                raise ReplicaError("`docker compose up` failed. Its output is above.")
            raise _error(checkout, late[0], f"is not ready ({late[0]})")
        time.sleep(_POLL_S)


def _error(checkout: Path, service: Service, what: str) -> ReplicaError:
    log = _output(checkout, "compose", "logs", "--no-color", "--no-log-prefix", "--tail", str(_LOG_LINES), service.name)
    return ReplicaError(
        f"{service.name} {what}. Its log ends with:\n  "
        + "\n  ".join(log.strip().splitlines() or ["(nothing)"])
        + "\n",
        hint=f"See `docker compose logs {service.name}`.",
    )


def _docker(checkout: Path, *arguments: str, quiet: bool = False, check: bool = True) -> int:
    try:
        done = subprocess.run(
            ["docker", *arguments], cwd=checkout, check=False, stdout=subprocess.DEVNULL if quiet else sys.stderr
        )
    except FileNotFoundError:
        raise ReplicaError(
            "The command docker was not found on this machine.", hint="Install Docker and Compose 2.24 or newer."
        ) from None
    if done.returncode and check:
        raise ReplicaError(f"`docker {' '.join(arguments[:2])}` failed. Its output is above.")
    return done.returncode


def _output(checkout: Path, *arguments: str) -> str:
    return subprocess.run(["docker", *arguments], cwd=checkout, check=False, capture_output=True, text=True).stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
