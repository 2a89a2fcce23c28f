"""``trilake vpn``: the profiles of people and agents who may connect."""

from __future__ import annotations

import json as as_text
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trilake.cli.options import Json, print_rows

if TYPE_CHECKING:
    from trilake.platform.hosts.vpn import Vpn

app = typer.Typer(help="Manage the VPN of vps_1, on the host itself or in the replica.", no_args_is_help=True)


def _vpn() -> Vpn:
    """The VPN of this host or replica."""
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.checkout import find_checkout
    from trilake.platform.hosts.containers import project_name
    from trilake.platform.hosts.vpn import Vpn

    return Vpn(project_name(os.environ, find_checkout() / environment.FILE))


@app.command()
def init(json: Json = False) -> None:
    """Make the VPN's keys and certificates, if there are none. The container does this at its first start."""
    answer = _vpn().init()
    state = "was created" if answer["made"] else "exists already"
    _print(answer, f"The certificate authority {state}: SHA-256 {answer['fingerprint']}", as_json=json)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of a person or agent: lower-case letters, digits and -.")],
    role: Annotated[str, typer.Option(help="admin, engineer or agent. docs/operations/network.md lists their rights.")],
    out: Annotated[
        Path | None, typer.Option(help="The profile's file. Default: NAME.ovpn in this folder. It is never replaced.")
    ] = None,
    remote: Annotated[str, typer.Option(help="HOST[:PORT] of the VPN. Default: the one in .env.")] = "",
    json: Json = False,
) -> None:
    """Make a profile: one file with everything that OpenVPN needs, mode 600. Its private key is stored nowhere else."""
    file = out or Path(f"{name}.ovpn")
    person = _vpn().add(name, role, file, remote)
    what = f"{role}, {person['address']}, until {person['expires_at'][:10]}"
    line = f"{file} is {name}'s profile ({what}). Keep it secret: it is a key."
    _print({**person, "file": str(file)}, line, as_json=json)


@app.command()
def revoke(name: str, json: Json = False) -> None:
    """Revoke a profile and end its session at once."""
    person = _vpn().revoke(name)
    line = f"{name} ({person['role']}, {person['address']}) was revoked at {person['revoked_at']}"
    _print(person, line, as_json=json)


@app.command("list")
def list_profiles(json: Json = False) -> None:
    """Show every profile: role, address, whether it is valid, whether it is connected."""
    people = _vpn().people()
    if json:
        print(as_text.dumps(people))
        return
    rows = [
        (
            person["name"],
            person["role"],
            person["address"],
            _state(person),
            person["connected_from"] or "",
            person["expires_at"][:10],
        )
        for person in people
    ]
    print_rows(("name", "role", "address", "state", "connected from", "expires"), rows)


@app.command()
def renew_crl(json: Json = False) -> None:
    """Write a new revocation list. The container does this itself, long before the old list expires."""
    answer = _vpn().renew_crl()
    _print(answer, f"The revocation list is valid until {answer['crl_expires_at']}", as_json=json)


def _state(person: dict[str, Any]) -> str:
    if person["revoked_at"]:
        return f"revoked {person['revoked_at'][:10]}"
    if datetime.fromisoformat(person["expires_at"]) <= datetime.now(UTC):
        return "expired"
    return "valid" if person["delivered"] else "not delivered"


def _print(answer: dict[str, Any], line: str, *, as_json: bool) -> None:
    print(as_text.dumps(answer) if as_json else line)
