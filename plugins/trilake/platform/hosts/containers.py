"""Finds the containers of a compose project on this machine by their labels, whichever compose file started them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from trilake.errors import ConfigurationError, TrilakeError, UnreachableError

PROJECT = "trilake"
# Making a key takes a second; a machine that is busy may take long
_SECONDS = 120


def project_name(environ: Mapping[str, str], env_file: Path) -> str:
    """Of the compose project: as the environment says, else ``.env``, else ``trilake``."""
    from trilake.platform.hosts import environment

    known = environment.read(env_file) if env_file.exists() else {}
    return environ.get("COMPOSE_PROJECT_NAME") or known.get("COMPOSE_PROJECT_NAME") or PROJECT


def find_container(project: str, service: str, *, ended: bool = False) -> str:
    """Id of a service's container.

    :param ended: one that does not run any more will do.
    :raises UnreachableError: there is none.
    """
    labels = {"project": project, "service": service}
    filters = [f"--filter=label=com.docker.compose.{label}={value}" for label, value in labels.items()]
    found = docker("ps", "--quiet", *(["--all"] if ended else []), *filters).split()
    if not found:
        raise UnreachableError(
            f"No container of service {service} runs in the compose project {project}.",
            hint=f"Start it (`docker compose up -d {service}`), or name another project by COMPOSE_PROJECT_NAME.",
        )
    return found[0]


def docker(*arguments: str, stdin: str | None = None, error: type[TrilakeError] = TrilakeError) -> str:
    """What a command of docker prints.

    :raises ConfigurationError: there is no docker here.
    :raises UnreachableError: the command does not end in time.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise ConfigurationError("There is no docker on this machine.", hint="Run this on vps_1.") from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"docker {arguments[0]} took more than {_SECONDS} s.", hint="Run this again.") from None
    if done.returncode:
        raise error(" ".join(done.stderr.split()) or f"docker {arguments[0]} failed.")
    return done.stdout
