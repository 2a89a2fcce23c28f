"""A copy of k8s/ for one deployment, with the hosts' addresses and its pods' connections, for ``kubectl apply -k``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from trilake.endpoints import as_environment
from trilake.errors import ConfigurationError
from trilake.platform.hosts.connections import connections, required
from trilake.platform.hosts.environment import HOSTS
from trilake.platform.private_files import create_private


def write_overlay(k8s: Path, name: str, env: Mapping[str, str], into: Path) -> Path:
    """Copy `k8s` to `into`, and write ``hosts.env``, ``jobs.env`` and ``agents.env`` of the overlay `name`.

    An old `into` is replaced when the new copy is complete. The last two hold passwords, so their mode is 600.

    :return: the overlay's folder.
    :raises ConfigurationError: there is no such overlay, or `into` is not empty and not such a copy.
    :raises EnvironmentFileError: a variable is missing.
    """
    names = sorted(folder.name for folder in (k8s / "overlays").glob("*") if folder.is_dir())
    if name not in names:
        raise ConfigurationError(f"{k8s} has no overlay {name}.", hint=f"It has {', '.join(names) or 'none'}.")
    if into.exists() and any(into.iterdir()) and not (into / "overlays").is_dir():
        raise ConfigurationError(
            f"{into} is not empty and is not a copy of k8s/.", hint="Choose a new or empty folder."
        )
    addresses = {host: required(env, f"{host.upper()}_ADDRESS") for host in HOSTS}
    pods = {
        "jobs.env": as_environment(connections(env, "spark")),
        "agents.env": as_environment(connections(env, "agents_spark")),
    }
    fresh = into.with_name(f".{into.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(k8s, fresh, ignore=shutil.ignore_patterns(*pods))
    overlay = fresh / "overlays" / name
    (overlay / "hosts.env").write_text("".join(f"{host}={address}\n" for host, address in addresses.items()))
    for file, variables in pods.items():
        create_private(overlay / file, "".join(f"{variable}={value}\n" for variable, value in variables.items()))
    if into.exists():
        shutil.rmtree(into)
    fresh.rename(into)
    return into / "overlays" / name
