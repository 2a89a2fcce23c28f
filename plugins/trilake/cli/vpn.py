"""``trilake vpn``: who may come in."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trilake.platform.hosts import environment
from trilake.platform.hosts.containers import project_name
from trilake.platform.hosts.vpn import Vpn
from trilake.project import find_project


def here() -> Vpn:
    """The VPN of this project."""
    return Vpn(project_name(os.environ, find_project() / environment.FILE))


def init(vpn: Vpn, *, as_json: bool) -> None:
    told = vpn.init()
    state = "is made" if told["made"] else "was there"
    _tell(told, f"The certificate authority {state}: SHA-256 {told['fingerprint']}", as_json=as_json)


def add(vpn: Vpn, name: str, role: str, *, file: Path, remote: str, as_json: bool) -> None:
    person = vpn.add(name, role, file, remote)
    line = f"{file} is {name}'s profile ({role}, {person['address']}, until {person['expires_at'][:10]}). It is a key."
    _tell({**person, "file": str(file)}, line, as_json=as_json)


def revoke(vpn: Vpn, name: str, *, as_json: bool) -> None:
    person = vpn.revoke(name)
    _tell(person, f"{name} ({person['role']}, {person['address']}) is revoked since {person['revoked_at']}", as_json)


def renew_crl(vpn: Vpn, *, as_json: bool) -> None:
    told = vpn.renew_crl()
    _tell(told, f"The revocation list holds until {told['crl_expires_at']}", as_json=as_json)


def show(vpn: Vpn, *, as_json: bool) -> None:
    people = vpn.people()
    if as_json:
        print(json.dumps(people))
        return
    rows = [("name", "role", "address", "state", "connected from", "expires")]
    for one in people:
        state, until = _state(one), one["expires_at"][:10]
        rows.append((one["name"], one["role"], one["address"], state, one["connected_from"] or "", until))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _state(person: dict[str, Any]) -> str:
    if person["revoked_at"]:
        return f"revoked {person['revoked_at'][:10]}"
    if datetime.fromisoformat(person["expires_at"]) <= datetime.now(UTC):
        return "expired"
    return "valid" if person["delivered"] else "not delivered"


def _tell(told: dict[str, Any], line: str, as_json: bool) -> None:
    print(json.dumps(told) if as_json else line)
