"""The VPN's people, as the container ``openvpn`` of this machine keeps them (docker/openvpn/trilake_vpn).

On vps_1 and in the replica alike: the container is found by its project's name, whichever compose file started it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trilake.errors import TrilakeError
from trilake.platform.hosts.containers import docker, find_container
from trilake.platform.private_files import write_once

SERVICE = "openvpn"


class VpnError(TrilakeError):
    """The VPN refused, and says why."""


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

    def _ask(self, *arguments: str) -> Any:
        container = find_container(self.project, SERVICE)
        return json.loads(docker("exec", container, "vpn", *arguments, error=VpnError))


def _write(file: Path, text: str) -> None:
    """The same text is what a killed call has left."""
    if not write_once(file, text) and file.read_text() != text:
        raise VpnError(
            f"{file} is there and is another profile, it is not written over.", hint="Name another one by --out."
        )
