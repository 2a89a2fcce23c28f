"""``docker/host/backup``, ``restore`` and ``drill``."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from trilake_backup.backup import back_up
from trilake_backup.drill import drill
from trilake_backup.machine import BackupError, Machine
from trilake_backup.restore import restore


def main() -> int:
    parser = argparse.ArgumentParser(prog="trilake_backup", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("backup", help="bring all that is new into the repository")
    one.add_argument("--base", action="store_true", help="make base backups now, and not only once a day")
    two = verbs.add_parser("restore", help="bring a state back; no service of the platform may run")
    two.add_argument("--at", type=moment, help="a time such as 2026-11-28T10:20:00+00:00; by default the newest state")
    two.add_argument("--replace", action="store_true", help="move data that is there aside")
    verbs.add_parser("drill", help="restore the newest backup in a container without network, and compare")
    options = parser.parse_args()
    machine = Machine.from_environment()
    try:
        if options.verb == "backup":
            back_up(machine, base=options.base)
        elif options.verb == "restore":
            restore(machine, at=options.at, replace=options.replace)
        else:
            drill(machine)
    except BackupError as e:
        print(f"{options.verb}: {e}", file=sys.stderr)
        return 1
    return 0


def moment(text: str) -> datetime:
    """A time with its zone."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no time zone: write {text}+00:00 for UTC")
    return time


if __name__ == "__main__":
    sys.exit(main())
