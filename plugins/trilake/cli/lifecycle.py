"""``trilake up``, ``down`` and ``status``."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict

from trilake.platform.embedded import platform
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.home import Home
from trilake.platform.embedded.status import status

_MIB = 1024**2
_PIPE_COLUMNS = 200
_COLOURS = {"running": "green", "stopped": "dim", "died": "red", "orphaned": "yellow"}


class Progress:
    """Prints one line per event, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, what: str, how: str) -> None:
        with self._lock:
            print(f"{time.monotonic() - self._began:6.1f} s  {what:<22} {how}", file=sys.stderr, flush=True)


def start(home: Home, *, airflow_too: bool = True) -> None:
    """Start the platform. Progress goes to stderr, the result to stdout."""
    began = time.monotonic()
    platform.up(home, Progress(), airflow_too=airflow_too)
    if not airflow_too:
        print(f"Up after {time.monotonic() - began:.0f} s, without Airflow. `trilake up` also starts Airflow.")
        return
    url, user, password = administrator(home)
    print(f"Up after {time.monotonic() - began:.0f} s. Airflow: {url}  user {user}, password {password}")


def stop(home: Home) -> None:
    """Stop the platform, and print whether anything was running."""
    print("Down; the data is kept." if platform.down(home) else "Nothing was running.")


def show(home: Home, *, as_json: bool) -> None:
    """Print the state of each service."""
    services = status(home)
    total = sum(service.memory for service in services)
    if as_json:
        document = {"home": str(home.path), "memory": total, "services": [asdict(service) for service in services]}
        print(json.dumps(document, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("service", "state", "address", "pid", "memory", "version", ""):
        right = title in ("pid", "memory")
        table.add_column(title, justify="right" if right else "left", no_wrap=title in ("service", "address"))
    for service in services:
        table.add_row(
            service.service,
            f"[{_COLOURS[service.state]}]{service.state}[/]",
            service.address,
            str(service.pid or ""),
            f"{service.memory / _MIB:.0f} MiB" if service.memory else "",
            service.version,
            service.detail,
        )
    console = Console()
    console.width = console.width if console.is_terminal else _PIPE_COLUMNS
    console.print(table)
    if total:
        console.print(f"{total / _MIB:.0f} MiB in all; home {home.path}", highlight=False)
