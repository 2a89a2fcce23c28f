"""The sessions of the VPN's server: lists who is connected, and ends those whose profile is not valid."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trilake_vpn import pki

RUN = Path("/run/openvpn")
MANAGEMENT = RUN / "management.sock"
MANAGEMENT_SECONDS = 5


@contextmanager
def management() -> Iterator[Any]:
    """A connection to the server: a function that sends a command and returns the lines of the answer.

    The server talks to one client at a time, so there is one connection at a time.
    """
    with pki.locked(RUN / "management.lock"), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(MANAGEMENT_SECONDS)
        connection.connect(str(MANAGEMENT))
        with connection.makefile("rw", encoding="utf-8") as stream:

            def ask(command: str) -> list[str]:
                stream.write(f"{command}\n")
                stream.flush()
                lines: list[str] = []
                for line in stream:
                    if line.startswith(">"):  # a message that no command asked for
                        continue
                    lines.append(line.rstrip())
                    if lines[-1] == "END" or lines[-1].startswith(("SUCCESS:", "ERROR:")):
                        break
                return lines

            yield ask


def _sessions(ask: Any) -> dict[str, str]:
    """Real addresses by common name, without handshakes that are still in progress."""
    rows = [line.split(",") for line in ask("status 2")]
    # the last row is incomplete if the server dies while it answers
    return {row[1]: row[2] for row in rows if row[0] == "CLIENT_LIST" and len(row) > 2 and row[1] != "UNDEF"}


def connected() -> dict[str, str]:
    """The sessions, as `_sessions` returns them; none when there is no server."""
    try:
        with management() as ask:
            return _sessions(ask)
    except OSError:
        return {}


def cut() -> list[str]:
    """End every session whose profile is not valid, and return their common names."""
    try:
        with management() as ask:
            # read before the profiles: a profile that is added in between must not look invalid
            sessions = _sessions(ask)
            with pki.current() as state:
                ended = [cn for cn in sessions if cn not in state.valid]
            for cn in ended:
                ask(f"kill {cn}")
            return ended
    except (ConnectionError, FileNotFoundError):  # no server, no sessions
        return []


def people() -> list[dict[str, Any]]:
    """Every profile, revoked ones too, each with the address that it is connected from."""
    sessions = connected()
    with pki.current() as state:
        return [{**person, "connected_from": sessions.get(person["cn"])} for person in state.people]
