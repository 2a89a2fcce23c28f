"""The command ``vpn`` of the image. `trilake vpn` calls it; it answers in JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from trilake_vpn import pki, server, sessions


def revoke(name: str) -> dict[str, Any]:
    """End a profile, and its session if it has one."""
    person = pki.revoke(name)
    # This also runs if the profile was revoked before: that process may have been killed before it ended the session.
    sessions.cut()
    return person


def main() -> int:
    parser = argparse.ArgumentParser(prog="vpn")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("serve", "check", "init", "list"):
        commands.add_parser(command)
    adding = commands.add_parser("add")
    adding.add_argument("name")
    adding.add_argument("role")
    adding.add_argument("--remote", default="")
    for command in ("delivered", "revoke"):
        commands.add_parser(command).add_argument("name")
    commands.add_parser("renew-crl").add_argument("--days", type=int, default=pki.CRL_DAYS)
    options = parser.parse_args()
    os.umask(0o077)
    remote = f"{os.environ.get('VPN_PUBLIC_ADDRESS') or '127.0.0.1'}:{os.environ.get('VPN_PUBLIC_PORT') or 1194}"
    try:
        match options.command:
            case "serve":
                return server.serve()
            case "add":
                answer: Any = pki.add(options.name, options.role, options.remote or remote)
            case "renew-crl":
                answer = pki.renew_crl(options.days)
            case "delivered" | "revoke":
                answer = {"delivered": pki.delivered, "revoke": revoke}[options.command](options.name)
            case command:
                answer = {"check": server.check, "init": pki.init, "list": sessions.people}[command]()
    except (pki.VpnError, OSError) as e:
        print(e, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
