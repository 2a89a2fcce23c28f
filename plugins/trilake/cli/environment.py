"""``trilake env``: writes ``.env`` once, looks at it, and gives a host its part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trilake.platform.hosts import environment


def write(path: Path, *, hosts: Sequence[str], subnet: str) -> None:
    """Write it with random secrets, for the replica or for hosts with these addresses."""
    environment.write(path, environment.host_settings(list(hosts)) if hosts else environment.replica_settings(subnet))
    print(f"{path} is written. Keep a copy in a safe place: whoever has it has everything, without it data is lost.")


def check(path: Path, host: str | None) -> None:
    """Look at what is there; says nothing of values."""
    environment.check(environment.read(path), host, where=str(path))
    print(f"{path} has everything{f' that {host} needs' if host else ''}.")


def show(path: Path, host: str) -> None:
    """A host's part of it, to be its ``.env``."""
    print(environment.part(environment.read(path), host), end="")
