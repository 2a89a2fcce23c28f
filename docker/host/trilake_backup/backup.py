"""One run of the backup: base backups once a day, then everything that is new into the repository."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from trilake_backup.machine import FOLDERS, SERVERS, BackupError, Machine, run, write

BASE_EVERY = timedelta(hours=24)
# The newest base backup may have been made a minute ago: the one before it serves times before that.
_BASES_KEPT = 2
_RECEIVED_S = 60
# WAL files of 16 MiB in 4 GiB
_SEGMENTS = 256
_WAL = re.compile(r"[0-9A-F]{24}(\.partial)?")
# unfinished uploads of versitygw
_NOT_OF_S3 = "--exclude=.sgwtmp"
COUNTS = {
    "metadata": ("airflow", {"dag_runs": "dag_run"}),
    "postgres": ("lake", {"publications": "publications", "tables": "iceberg_tables"}),
}


def back_up(machine: Machine, *, base: bool = False) -> None:
    """:raises BackupError: something is missing in the repository; what is there stays."""
    with machine.locked(), machine.reporting("backup") as result:
        if machine.unfinished_restore.exists():
            raise BackupError(
                "A restore was interrupted while it exchanged volumes. Stop all services, and run "
                "`restore --replace` again."
            )
        volume = machine.volume("wal")
        for server in SERVERS:
            _base_backup(machine, server, volume / server, now=base)
        run_name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
        facts = _facts(machine)
        write(volume / "facts.json", json.dumps(facts, indent=2))
        until = datetime.fromisoformat(facts["at"])
        # PostgreSQL first: the later copy of S3 has every file that its catalog names
        machine.save("postgres", run_name, volume, "--exclude=*.unfinished", until=until)
        for kind, name in FOLDERS.items():
            try:
                folder = machine.volume(name)
            except BackupError:  # a host whose VPN or Kubernetes is not set up yet
                continue
            if any(folder.iterdir()):
                live = _live(folder)
                machine.save(kind, run_name, folder)
                if _live(folder) != live:  # a deployment came in between, so the copy may lack its commit
                    machine.save(kind, run_name, folder)
        machine.save_text("settings", run_name, machine.settings.read_text())
        machine.save("s3", run_name, machine.volume("s3"), _NOT_OF_S3)
        result |= {"run": run_name, "until": facts["at"]}
        machine.say(f"backup: run {run_name} is in the repository; it can be restored up to {facts['at']}")


def _live(folder: Path) -> dict[str, str]:
    """The branches of the Git repositories in a folder."""
    return {str(ref): ref.read_text() for ref in folder.glob("*.git/refs/heads/*")}


def _base_backup(machine: Machine, server: str, folder: Path, *, now: bool) -> None:
    bases = folder / "base"
    made = sorted(path for path in bases.glob("*Z")) if bases.is_dir() else []
    newest = datetime.strptime(made[-1].name, "%Y-%m-%dT%H-%M-%SZ").replace(tzinfo=UTC) if made else None
    now |= _began_again(machine, server, folder)
    if made and not now and (missing := missing_wal(made[-1], folder / "wal")):
        machine.say(f"backup: WAL {missing} of {server} was never received: a new base backup begins behind it")
        now = True
    if newest and not now and datetime.now(UTC) - newest < BASE_EVERY:
        return
    container = machine.container(f"wal-{server}")
    if not container:
        raise BackupError(f"Service wal-{server} does not run, so WAL is not kept. Start it with `docker compose up`.")
    _await_receiver(machine, server)
    for left in bases.glob("*.unfinished") if bases.is_dir() else ():
        shutil.rmtree(left)
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    machine.say(f"backup: base backup of {server}")
    inside = f"/wal/{server}/base/{name}.unfinished"
    options = ["--wal-method=none", "--checkpoint=fast", "--manifest-checksums=SHA256", "--no-password"]
    run("docker", "exec", container, "mkdir", "-p", f"/wal/{server}/base")
    run("docker", "exec", container, "pg_basebackup", "-D", inside, *options)
    unfinished = bases / f"{name}.unfinished"
    check_manifest(unfinished)
    unfinished.rename(bases / name)
    for old in made[: 1 - _BASES_KEPT] if len(made) >= _BASES_KEPT else ():
        shutil.rmtree(old)
    _remove_old_wal(folder)


def _began_again(machine: Machine, server: str, folder: Path) -> bool:
    """If a receiver needs WAL that its server does not have any more, begin again with a new slot and an empty folder.

    pg_receivewal continues behind its newest file, and tries that for ever. The older WAL stays: the older base backup
    needs it.
    """
    container, receiver = machine.container(server), machine.container(f"wal-{server}")
    names = [path.name.removesuffix(".partial") for path in (folder / "wal").glob("*") if _WAL.fullmatch(path.name)]
    if not container or not receiver or not names:
        return False
    newest = max(names, key=lambda name: (_number(name), name))
    if machine.psql(
        container,
        server,
        "SELECT to_json(EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'backup' AND active) "
        f"OR EXISTS (SELECT FROM pg_ls_waldir() WHERE name = '{newest}'))",
    ):
        return False
    machine.say(
        f"backup: {server} has no WAL {newest} any more, which wal-{server} needs: a new base backup begins behind it"
    )
    run("docker", "stop", receiver)
    dropped = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = 'backup'"
    machine.psql(container, server, dropped)
    (folder / "wal").rename(folder / datetime.now(UTC).strftime("wal-%Y-%m-%dT%H-%M-%SZ"))
    run("docker", "start", receiver)
    return True


def _await_receiver(machine: Machine, server: str) -> None:
    """Wait until WAL is received: a base backup needs all WAL from its beginning.

    :raises BackupError: the receiver does not connect.
    """
    query = "SELECT to_json(EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'backup' AND active))"
    until = time.monotonic() + _RECEIVED_S
    while not machine.psql(machine.container(server), server, query):
        if time.monotonic() > until:
            raise _receives_nothing(server)
        time.sleep(0.2)


def _receives_nothing(server: str) -> BackupError:
    return BackupError(
        f"Service wal-{server} has not received WAL of {server} for {_RECEIVED_S} s. See its log "
        f"(`docker compose logs wal-{server}`)."
    )


def wal_folder(base: Path) -> Path | None:
    """The folder that has the WAL of a base backup; None if none has its first file."""
    first = first_wal(base)
    folders = sorted(base.parents[1].glob("wal*"))
    return next((one for one in folders if any((one / name).exists() for name in (first, f"{first}.partial"))), None)


def missing_wal(base: Path, folder: Path) -> str:
    """The first WAL file that is missing between a base backup's first one and the newest one; empty if none is."""
    first = _number(first_wal(base))
    files = (path.name for path in folder.iterdir() if _WAL.fullmatch(path.name)) if folder.is_dir() else ()
    numbers = {number for name in files if (number := _number(name)) >= first}
    expected = range(first, max(numbers, default=first - 1) + 1)
    gap = next((number for number in expected if number not in numbers), None)
    return "" if gap is None else f"{gap // _SEGMENTS:08X}{gap % _SEGMENTS:08X}"


def _number(name: str) -> int:
    """The position of a WAL file, on whatever timeline."""
    return int(name[8:16], 16) * _SEGMENTS + int(name[16:24], 16)


def check_manifest(base: Path) -> None:
    """Compare a base backup with the server's own list of its files.

    :raises BackupError: a file is missing or differs.
    """
    for file in json.loads((base / "backup_manifest").read_bytes())["Files"]:
        path = base / (file["Path"] if "Path" in file else bytes.fromhex(file["Encoded-Path"]).decode())
        try:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError:
            found = ""
        if found != file["Checksum"]:
            raise BackupError(f"The base backup {base} is damaged: {path.name} differs. Check the disk, and repeat it.")


def first_wal(base: Path) -> str:
    """The first WAL file that a base backup needs."""
    found = re.search(r"\(file ([0-9A-F]{24})\)", (base / "backup_label").read_text())
    if not found:
        raise BackupError(f"{base}/backup_label does not name a WAL file.")
    return found[1]


def _remove_old_wal(folder: Path) -> None:
    """Remove WAL that no base backup needs."""
    kept = sorted((folder / "base").glob("*Z"))
    for wal in sorted(folder.glob("wal*")):
        bases = [base for base in kept if wal_folder(base) == wal]
        if not bases and wal.name != "wal":
            shutil.rmtree(wal)
        elif bases:
            first = _number(first_wal(bases[0]))
            for path in wal.iterdir():
                if _WAL.fullmatch(path.name) and _number(path.name) < first:
                    path.unlink()


def _facts(machine: Machine) -> dict[str, Any]:
    """What both servers hold at one moment, all of it received. The drill compares a restored state with it.

    Rows may come while they are counted: so they are counted before and after the moment.
    """
    before = _counts(machine)
    at = datetime.now(UTC)
    after = _counts(machine)
    for server in SERVERS:
        container = machine.container(server)
        # A server only stops its recovery at a commit later than the moment, so there has to be one.
        machine.psql(container, server, "SELECT to_json(pg_current_xact_id()::text)")
        position = machine.psql(container, server, "SELECT to_json(pg_current_wal_lsn()::text)")
        query = f"SELECT to_json(coalesce(bool_or(flush_lsn >= '{position}'), false)) FROM pg_stat_replication"
        until = time.monotonic() + _RECEIVED_S
        while not machine.psql(container, server, query):
            if time.monotonic() > until:
                raise _receives_nothing(server)
            time.sleep(0.2)
    return {"at": at.isoformat(), "before": before, "after": after}


def _counts(machine: Machine) -> dict[str, int]:
    found: dict[str, int] = {}
    for server, (database, tables) in COUNTS.items():
        container = machine.container(server)
        if not container:
            raise BackupError(f"Service {server} does not run. Start it with `docker compose up`.")
        found |= count(machine, container, server, database, tables)
    return found


def count(
    machine: Machine, container: str, server: str, database: str, tables: dict[str, str], *, host: str = ""
) -> dict[str, int]:
    """Rows by name. A table that does not exist yet has none."""
    found = {}
    for name, table in tables.items():
        exists = f"SELECT to_json(to_regclass('public.{table}') IS NOT NULL)"
        if machine.psql(container, server, exists, database, host=host):
            found[name] = int(machine.psql(container, server, f"SELECT count(*) FROM {table}", database, host=host))
        else:
            found[name] = 0
    return found
