"""Recovery of a PostgreSQL server to a moment, in a container without network."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trilake_backup.backup import COUNTS, count, first_wal
from trilake_backup.machine import AIRFLOW_IMAGE, POSTGRES_IMAGE, SERVERS, BackupError, Machine, run

_RECOVERY_S = 3600
# the user `postgres` of the image
POSTGRES_USER = 999
_SETTINGS = "postgresql.auto.conf"
_SOCKET = "/tmp"  # noqa: S108  inside of the container
TABLES = (
    "SELECT coalesce(json_agg(json_build_array(table_namespace || '.' || table_name, metadata_location)), '[]') "
    "FROM iceberg_tables"
)


def lay_out(saved: Path, data: Path, at: datetime | None) -> None:
    """Put the newest base backup before a moment into an empty data folder, ready for recovery to that moment.

    :param saved: what the snapshot has of one server: ``base/`` and ``wal/``.
    :raises BackupError: there is no such base backup.
    """
    bases = sorted((saved / "base").glob("*Z")) if (saved / "base").is_dir() else []
    usable = [base for base in bases if at is None or _made(base) < at]
    if not usable:
        oldest = _made(bases[0]).isoformat() if bases else "no time"
        raise BackupError(
            f"There is no base backup of {saved.name} before {at}: the oldest is of {oldest}. Give a later --at."
        )
    base = usable[-1]
    first_wal(base)
    shutil.copytree(base, data, dirs_exist_ok=True)
    (data / "backup_manifest").unlink(missing_ok=True)
    (data / "pg_wal" / "archive_status").mkdir(mode=0o700, parents=True, exist_ok=True)
    for partial in (saved / "wal").glob("*.partial"):  # the segment that was being received
        partial.rename(partial.with_suffix(""))
    lines = [f"restore_command = 'cp /saved/{saved.name}/wal/%f \"%p\"'", "recovery_target_action = 'promote'"]
    if at:
        lines.append(f"recovery_target_time = '{at.astimezone(UTC).isoformat(sep=' ')}'")
    (data / "recovery.signal").touch()
    with (data / _SETTINGS).open("a") as file:
        file.write("".join(f"{line}  # trilake restore\n" for line in lines))
    for parent, folders, files in os.walk(data):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), POSTGRES_USER, POSTGRES_USER)
    os.chown(data, POSTGRES_USER, POSTGRES_USER)
    data.chmod(0o700)


def _made(base: Path) -> datetime:
    return datetime.strptime(base.name, "%Y-%m-%dT%H-%M-%SZ").replace(tzinfo=UTC)


@contextmanager
def recovered(machine: Machine, server: str, data: Path, saved: Path) -> Iterator[str]:
    """A container whose server has recovered the data. At the end it is stopped cleanly.

    :raises BackupError: the recovery failed. The message has the end of its log.
    """
    hba = saved / "hba.conf"
    hba.write_text("local all all trust\n")  # nobody else is in the container, and it has no network
    for path in (saved, hba):
        path.chmod(0o755 if path.is_dir() else 0o644)
    name = f"{machine.project}-recovery-{server}"
    run("docker", "rm", "--force", name, accepted=(0, 1))
    options = ["--network=none", "--user=postgres", "--memory=512m", "--cap-drop=ALL", "--entrypoint=postgres"]
    mounts = ["--volume", f"{data}:/data", "--volume", f"{saved}:/saved:ro"]
    settings = ["listen_addresses=", f"unix_socket_directories={_SOCKET}", "hba_file=/saved/hba.conf", "jit=off"]
    settings += [f"port={SERVERS[server]}", "autovacuum=off", "max_connections=100", "max_wal_senders=10"]
    arguments = [word for setting in settings for word in ("-c", setting)]
    run("docker", "run", "--detach", "--name", name, *options, *mounts, POSTGRES_IMAGE, "-D", "/data", *arguments)
    try:
        until = time.monotonic() + _RECOVERY_S
        while not _is_open(machine, name, server):
            if run("docker", "inspect", "--format", "{{.State.Running}}", name).strip() != "true":
                raise BackupError(f"The recovery of {server} failed: {_log(name)}")
            if time.monotonic() > until:
                raise BackupError(f"The recovery of {server} takes longer than {_RECOVERY_S} s: {_log(name)}")
            time.sleep(0.3)
        yield name
        run("docker", "stop", "--signal=INT", "--time=300", name, accepted=(0, 125, 1))
        run("docker", "kill", "--signal=INT", name, accepted=(0, 1))
        run("docker", "wait", name)
        _forget_recovery(data)
    finally:
        run("docker", "rm", "--force", "--volumes", name, accepted=(0, 1))


def _is_open(machine: Machine, container: str, server: str) -> bool:
    try:
        return machine.psql(container, server, "SELECT to_json(NOT pg_is_in_recovery())", host=_SOCKET) is True
    except (BackupError, ValueError):
        return False


def _log(container: str) -> str:
    lines = run("sh", "-c", 'docker logs --tail 4 "$1" 2>&1', "sh", container).splitlines()
    return " ".join(line.strip() for line in lines)


def _forget_recovery(data: Path) -> None:
    path = data / _SETTINGS
    kept = [line for line in path.read_text().splitlines() if not line.endswith("# trilake restore")]
    path.write_text("".join(f"{line}\n" for line in kept))


def counts(machine: Machine, server: str, container: str) -> dict[str, int]:
    database, tables = COUNTS[server]
    return count(machine, container, server, database, tables, host=_SOCKET)


def tables(machine: Machine, container: str) -> list[Any]:
    """Iceberg tables and where their metadata is."""
    exists = "SELECT to_json(to_regclass('public.iceberg_tables') IS NOT NULL)"
    if not machine.psql(container, "postgres", exists, "lake", host=_SOCKET):
        return []
    found: list[Any] = machine.psql(container, "postgres", TABLES, "lake", host=_SOCKET)
    return found


def check_files(machine: Machine, named: list[Any], root: Path, sizes: Path | None = None) -> int:
    """Check that every file that the tables' current snapshots name is there with its size. Returns how many they are.

    :param root: a folder of buckets.
    :param sizes: lines of ``bucket/key``, tab, bytes: of a store of which only metadata was unpacked.
    :raises BackupError: a file is missing or has another size.
    """
    work = machine.state / "check"
    work.mkdir(mode=0o755, exist_ok=True)
    (work / "tables.json").write_text(json.dumps(named))
    mounts = ["--volume", f"{root}:/buckets:ro", "--volume", f"{work}:/work:ro"]
    arguments = ["--tables", "/work/tables.json", "--root", "/buckets"]
    if sizes:
        shutil.copyfile(sizes, work / "sizes.tsv")
        arguments += ["--sizes", "/work/sizes.tsv"]
    options = ["--rm", "--network=none", "--user=root", "--cap-drop=ALL", "--cap-add=DAC_READ_SEARCH", "--read-only"]
    options += ["--entrypoint=python"]
    module = ["-m", "trilake.lake.named_files"]
    try:
        return int(run("docker", "run", *options, *mounts, AIRFLOW_IMAGE, *module, *arguments))
    finally:
        shutil.rmtree(work)
