"""The VPN's people, as the container ``openvpn`` of this machine keeps them (docker/openvpn/vpn.py).

On vps_1 and in the replica alike: the container is found by its project's name, whichever compose file started it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError, TrilakeError, UnreachableError

SERVICE = "openvpn"
PROJECT = "trilake"
# Making a key takes a second; a machine that is busy may take long
_SECONDS = 120


class VpnError(TrilakeError):
    """The VPN refused, and says why."""


def project_name(environ: Mapping[str, str], env_file: Path) -> str:
    """Of the compose project: as the environment says, else ``.env``, else ``trilake``."""
    from trilake.hosts import environment

    known = environment.read(env_file) if env_file.exists() else {}
    return environ.get("COMPOSE_PROJECT_NAME") or known.get("COMPOSE_PROJECT_NAME") or PROJECT


class Vpn:
    """The VPN of a compose project on this machine.

    :param project: the compose project's name.
    """

    def __init__(self, project: str) -> None:
        self.project = project

    def init(self) -> dict[str, Any]:
        """Make keys and certificates, if there are none: ``made``, ``fingerprint`` (SHA-256), ``crl_expires_at``."""
        return dict(self._ask("init"))

    def people(self) -> list[dict[str, Any]]:
        """Every profile there was: ``name, role, address, cn, created_at, expires_at, revoked_at, delivered,
        connected_from`` (times in ISO 8601; None: not revoked, not connected)."""
        return list(self._ask("list"))

    def add(self, name: str, role: str, file: Path, remote: str = "") -> dict[str, Any]:
        """Make a profile and write it, mode 600, whole or not at all. Who was killed on the way calls again.

        :param role: admin, engineer or agent.
        :param remote: ``host[:port]`` where the VPN is reached; by default what the container was told.
        :raises VpnError: the name has a profile already, or makes no sense; or the file is there and is another one.
        """
        waiting = any(
            one["name"] == name and one["revoked_at"] is None and not one["delivered"] for one in self.people()
        )
        if file.exists() and not waiting:
            raise VpnError(f"{file} is there, and a profile is never written over.", hint="Name another one by --out.")
        if not file.absolute().parent.is_dir():
            raise VpnError(f"{file.absolute().parent} is no folder.", hint="Make it, or name another one by --out.")
        person = dict(self._ask("add", name, role, *(["--remote", remote] if remote else [])))
        _write(file, person.pop("profile"))
        return dict(self._ask("delivered", name))

    def revoke(self, name: str) -> dict[str, Any]:
        """End a profile and its session: from here on it does not get in."""
        return dict(self._ask("revoke", name))

    def renew_crl(self) -> dict[str, Any]:
        """A new list of what is revoked; the container does so by itself in time: ``crl_expires_at``."""
        return dict(self._ask("renew-crl"))

    def _container(self) -> str:
        labels = {"project": self.project, "service": SERVICE}
        filters = [f"--filter=label=com.docker.compose.{label}={value}" for label, value in labels.items()]
        found = _docker("ps", "--quiet", *filters).split()
        if not found:
            raise UnreachableError(
                f"No container of service {SERVICE} runs in the compose project {self.project}.",
                hint="Start it (`docker compose up -d openvpn`), or name another project by COMPOSE_PROJECT_NAME.",
            )
        return found[0]

    def _ask(self, *arguments: str) -> Any:
        return json.loads(_docker("exec", self._container(), "vpn", *arguments))


def _docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise ConfigurationError("There is no docker on this machine.", hint="Call this on vps_1.") from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"docker {arguments[0]} took more than {_SECONDS} s.", hint="Call again.") from None
    if done.returncode:
        raise VpnError(" ".join(done.stderr.split()) or f"docker {arguments[0]} failed.")
    return done.stdout


def _write(file: Path, text: str) -> None:
    """A hard link appears whole, and only where nothing is; the same text is what a killed call has left."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(fresh, file)
    except FileExistsError:
        if file.read_text() != text:
            raise VpnError(
                f"{file} is there and is another profile, it is not written over.", hint="Name another one by --out."
            ) from None
    finally:
        fresh.unlink()
