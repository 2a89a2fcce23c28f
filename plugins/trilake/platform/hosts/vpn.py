"""The VPN's profiles, which the container ``openvpn`` of this machine keeps (docker/openvpn/trilake_vpn).

This works on vps_1 and in the replica: the container is found by its project's name, with any compose file.
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
    """The VPN refused a request. The message says why."""


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
        """Every profile, revoked ones too: ``name, role, address, cn, created_at, expires_at, revoked_at, delivered,
        connected_from`` (times in ISO 8601; None: not revoked, not connected)."""
        return list(self._ask("list"))

    def add(self, name: str, role: str, file: Path, remote: str = "") -> dict[str, Any]:
        """Make a profile and write it with mode 600, completely or not at all. After a kill, call it again.

        :param role: admin, engineer or agent.
        :param remote: ``host[:port]`` of the VPN. Default: the container's setting.
        :raises VpnError: the name has a profile already or is not valid, or the file exists with other text.
        """
        undelivered = any(
            person["name"] == name and person["revoked_at"] is None and not person["delivered"]
            for person in self.people()
        )
        if file.exists() and not undelivered:
            raise VpnError(f"{file} exists. A profile is never overwritten.", hint="Choose another file with --out.")
        if not file.absolute().parent.is_dir():
            raise VpnError(
                f"{file.absolute().parent} is not a folder.", hint="Create it, or choose another with --out."
            )
        _write(file, self.profile(name, role, remote))
        return self.delivered(name)

    def profile(self, name: str, role: str, remote: str = "") -> str:
        """Make a profile and return its text. Until it is `delivered`, the same call gives the same profile."""
        return str(self._ask("add", name, role, *(["--remote", remote] if remote else []))["profile"])

    def delivered(self, name: str) -> dict[str, Any]:
        """The profile is in its file: the container keeps its private key no longer."""
        return dict(self._ask("delivered", name))

    def revoke(self, name: str) -> dict[str, Any]:
        """Revoke a profile and end its session. It cannot connect again."""
        return dict(self._ask("revoke", name))

    def renew_crl(self) -> dict[str, Any]:
        """Write a new revocation list and return ``crl_expires_at``. The container also does this itself, in time."""
        return dict(self._ask("renew-crl"))

    def _ask(self, *arguments: str) -> Any:
        container = find_container(self.project, SERVICE)
        return json.loads(docker("exec", container, "vpn", *arguments, error=VpnError))


def _write(file: Path, text: str) -> None:
    """Write the profile. A file with the same text is accepted: a killed call left it."""
    if not write_once(file, text) and file.read_text() != text:
        raise VpnError(
            f"{file} exists and is another profile. It is not overwritten.", hint="Choose another file with --out."
        )
