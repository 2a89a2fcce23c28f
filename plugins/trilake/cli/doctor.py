"""``trilake doctor``: what is missing on this machine, and how to fix it."""

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
    """The result of one check.

    :param what: what was checked.
    :param state: ``ok``, ``note`` (it works, but read it) or ``bad``.
    :param told: what the check found.
    :param fix: what to do; empty if nothing needs to be done.
    """

    what: str
    state: str
    told: str
    fix: str = ""


def examine(home: Home) -> list[Finding]:
    """Run every check. A check that fails is reported as a finding."""
    checks: list[Callable[[Home], Iterator[Finding]]] = [
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
    for check in checks:
        try:
            findings += list(check(home))
        except TrilakeError as e:
            findings.append(Finding(check.__name__.strip("_"), "bad", e.message, e.hint))
    return findings


def show(findings: list[Finding], *, as_json: bool) -> bool:
    """Print the findings. Returns True if none is bad."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            fix = f"\n{'':21}{finding.fix}" if finding.fix else ""
            console.print(f"{_MARKS[finding.state]}  {finding.what:<14} {escape(finding.told + fix)}")
    return all(finding.state != "bad" for finding in findings)


def _python(_home: Home) -> Iterator[Finding]:
    detail = f"Python {machine.python_version()} on {machine.system()} {machine.machine()}"
    if sys.version_info[:2] != (3, 11):
        yield Finding("python", "bad", detail, "Airflow 3.3.2 needs Python 3.11. Make the environment with it.")
    elif importlib.util.find_spec("ensurepip") is None:
        yield Finding("python", "bad", f"{detail}, without venv", "Install python3-venv.")
    else:
        yield Finding("python", "ok", detail)


def _packages(_home: Home) -> Iterator[Finding]:
    lock = package_file("platform", "requirements", "project.txt")
    locked = dict(_PINNED.findall(lock.read_text()))
    wrong = []
    for name, wanted in locked.items():
        try:
            if version(name) != wanted:
                wrong.append(f"{name} {version(name)} instead of {wanted}")
        except PackageNotFoundError:
            wrong.append(f"{name} missing")
    if wrong:
        listed = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        yield Finding("packages", "bad", f"versions differ from {lock}: {listed}", INSTALL)
    else:
        yield Finding("packages", "ok", f"{len(locked)} as locked")


def _java(home: Home) -> Iterator[Finding]:
    if found := java.find():
        yield Finding("java", "ok", f"Java {found.version} in {found.home}")
    elif found := java.cached():
        yield Finding("java", "ok", f"Java {found.version} from PyPI in {found.home}")
    else:
        yield Finding(
            "java",
            "note",
            "there is no Java 17 or 21",
            "`trilake up` downloads one (34 MB) from PyPI. It needs no root.",
        )


def _jars(home: Home) -> Iterator[Finding]:
    for name in jars.SETS:
        folder = jars.folder_of(name)
        if folder.is_dir():
            yield Finding(f"{name} jars", "ok", str(folder))
        else:
            yield Finding(
                f"{name} jars", "note", "not downloaded yet", "`trilake up` downloads them from Maven Central."
            )


def _writable(home: Home) -> Iterator[Finding]:
    existing = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        yield Finding("home", "ok", str(home.path))
    else:
        fix = "Set TRILAKE_HOME to a folder that you can write to."
        yield Finding("home", "bad", f"{home.path}: {existing} cannot be written", fix)


def _os_user(home: Home) -> Iterator[Finding]:
    if os.geteuid() == 0:
        postgres.check_reachable(home)
        yield Finding("root", "ok", f"PostgreSQL runs as the OS user {postgres.OS_USER}")


def _disk(home: Home) -> Iterator[Finding]:
    existing = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / _GIB:.1f} GiB free for {home.path}"
    if free < _WANTED_DISK:
        fix = "Free some space, or set TRILAKE_HOME to a folder on another disk."
        yield Finding("disk", "bad" if free < _LEAST_DISK else "note", detail, fix)
    else:
        yield Finding("disk", "ok", detail)


def _memory(home: Home) -> Iterator[Finding]:
    import psutil

    ours = sum(service.memory for service in status(home))
    available = psutil.virtual_memory().available + ours
    detail = f"{available / _GIB:.1f} GiB available, {os.cpu_count()} cores"
    if available < _WANTED_MEMORY:
        yield Finding("memory", "note", detail, "The demo needs up to 4 GiB. Stop another program.")
    else:
        yield Finding("memory", "ok", detail)


def _services(home: Home) -> Iterator[Finding]:
    states = {service.service: service for service in status(home, memory=False)}
    broken = [service for service in states.values() if service.state in ("died", "orphaned")]
    for service in broken:
        fix = f"`trilake logs {service.service}` shows why; `trilake up` starts it."
        yield Finding(service.service, "note", f"{service.state}: {service.detail}", fix)
    if not broken:
        running = sum(service.state == "running" for service in states.values())
        yield Finding("services", "ok", f"{running} of {len(SERVICES)} run")
    if home.config("ports.json").exists():
        for name, port in home.ports().items():
            if states[name].state in ("stopped", "died") and not port_is_free(port):
                fix = f'Stop that program, or remove "{name}" from {home.config("ports.json")} to get another port.'
                yield Finding("ports", "bad", f"port {port} of {name} is in use by another program", fix)
    if process_id := platform.busy(home):
        yield Finding(
            "lock", "note", f"process {process_id} is starting or stopping the platform", "Wait until it has finished."
        )
