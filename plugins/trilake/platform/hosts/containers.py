"""Finds the containers of a compose project on this machine by their labels, with any compose file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from trilake.errors import ConfigurationError, TrilakeError, UnreachableError

PROJECT = "trilake"
# The longest time for one docker command. Making a key takes a second, but a busy machine can need much longer.
_TIMEOUT_SECONDS = 120


def project_name(environ: Mapping[str, str], env_file: Path) -> str:
    """The name of the compose project: from the environment, else from ``.env``, else ``trilake``."""
    from trilake.platform.hosts import environment

    variables = environment.read(env_file) if env_file.exists() else {}
    return environ.get("COMPOSE_PROJECT_NAME") or variables.get("COMPOSE_PROJECT_NAME") or PROJECT


def find_container(project: str, service: str, *, ended: bool = False) -> str:
    """The id of a service's container.

    :param ended: accept a container that has stopped, too.
    :raises UnreachableError: there is no such container.
    """
    labels = {"project": project, "service": service}
    filters = [f"--filter=label=com.docker.compose.{label}={value}" for label, value in labels.items()]
    ids = docker("ps", "--quiet", *(["--all"] if ended else []), *filters).split()
    if not ids:
        raise UnreachableError(
            f"No container of service {service} runs in the compose project {project}.",
            hint=f"Start it (`docker compose up -d {service}`), or set COMPOSE_PROJECT_NAME to another project.",
        )
    return ids[0]


def run_in_network_of_vps_1(project: str, module: str, request: str, *, error: type[TrilakeError]) -> str:
    """Run a module of this package in a container of Airflow's image, and return what it prints.

    The container has the gateway's network, where vps_1's loopback and address are. It is removed afterwards.

    :param project: the compose project's name.
    :param request: goes to its standard input: it may have secrets.
    :raises UnreachableError: the gateway does not run here.
    """
    network = json.loads(docker("inspect", find_container(project, "s3"), error=error))[0]["HostConfig"]["NetworkMode"]
    image = json.loads(docker("inspect", _container_of_airflow_image(project), error=error))[0]["Image"]
    limits = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--log-driver=none")
    command = ("--entrypoint=python", image, "-m", module)
    return docker("run", "--rm", "-i", f"--network={network}", *limits, *command, stdin=request, error=error)


def _container_of_airflow_image(project: str) -> str:
    """A container of Airflow's image. That of setup-s3 has stopped, and a prune may have removed it."""
    try:
        return find_container(project, "setup-s3", ended=True)
    except UnreachableError:
        return find_container(project, "airflow-api-server", ended=True)


def docker(*arguments: str, stdin: str | None = None, error: type[TrilakeError] = TrilakeError) -> str:
    """Run a docker command and return what it prints.

    :raises ConfigurationError: this machine has no docker.
    :raises UnreachableError: the command does not end in time.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise ConfigurationError("There is no docker on this machine.", hint="Run this on vps_1.") from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(
            f"docker {arguments[0]} took more than {_TIMEOUT_SECONDS} s.", hint="Run this again."
        ) from None
    if done.returncode:
        raise error(" ".join(done.stderr.split()) or f"docker {arguments[0]} failed.")
    return done.stdout
