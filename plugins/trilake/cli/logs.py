"""``trilake logs``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trilake.errors import ConfigurationError
from trilake.platform.embedded.airflow import SET_UP
from trilake.platform.embedded.home import SERVICES, Home
from trilake.platform.embedded.processes import last_lines

# Logs that do not belong to a service: the process supervisor, and the migration of Airflow's database.
OTHER_LOGS = ("supervisord", SET_UP)
_POLL_S = 0.2


def show(home: Home, service: str, *, lines: int, follow: bool) -> None:
    """Print the log's last lines. With `follow`, also print new lines until interrupted.

    :raises ConfigurationError: there is no such service, or it has no log yet.
    """
    if service not in (*SERVICES, *OTHER_LOGS):
        raise ConfigurationError(
            f"There is no service {service!r}.", hint=f"The services are {', '.join((*SERVICES, *OTHER_LOGS))}."
        )
    path = home.log(service)
    if not path.exists():
        raise ConfigurationError(f"{service} has no log in {home.path} yet.", hint="Start it with `trilake up`.")
    position = path.stat().st_size
    for line in last_lines(path, lines):
        print(line)
    if follow:
        try:
            _follow(path, position)
        except KeyboardInterrupt:
            return


def _follow(path: Path, position: int) -> None:
    """Print what is added after `position`. After a rotation, read the old file to its end, then the new one."""
    file = open(path, errors="replace")  # noqa: SIM115  replaced when the log is rotated
    file.seek(position)
    while True:
        if text := file.read():
            print(text, end="", flush=True)
            continue
        try:
            successor = os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            successor = False
        if successor:
            file.close()
            file = open(path, errors="replace")  # noqa: SIM115
        time.sleep(_POLL_S)
