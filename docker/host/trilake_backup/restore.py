"""Bring vps_1 back to a moment: both PostgreSQL servers at that time, and S3 as it was just after it.

Everything is unpacked and checked beside the volumes' data, and then put in its place. No service runs meanwhile, so no
port is open before identities are those of the newest backup: a restore brings no revoked identity back.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from trilake_backup.machine import FOLDERS, SERVERS, BackupError, Machine, Snapshot, run, write
from trilake_backup.recovery import check_files, counts, lay_out, recovered, tables

# `versitygw --iam-dir /data/identities posix /data/buckets`
_IDENTITIES, _BUCKETS = "identities", "buckets"


def restore(machine: Machine, *, at: datetime | None = None, replace: bool = False) -> None:
    """:raises BackupError: services run, there is data, or the backup cannot be used. The volumes are as they were."""
    with machine.locked(), machine.reporting("restore") as result:
        if running := _running(machine):
            raise BackupError(f"{', '.join(running)} runs. Stop all services first: `docker compose down`.")
        chosen, s3 = choose(machine, at)
        kept = {name: machine.volume(name, make=True) for kind, name in FOLDERS.items() if machine.snapshots(kind)}
        volumes = {name: machine.volume(name, make=True) for name in (*SERVERS, "s3", "wal")}
        for folder in (*volumes.values(), *kept.values()):
            folder.mkdir(exist_ok=True)  # an interrupted restore may have moved it aside
        # What is there is newer than any backup: a profile may have been revoked since.
        volumes |= {name: folder for name, folder in kept.items() if not any(folder.iterdir())}
        held = [name for name, folder in volumes.items() if any(folder.iterdir())]
        if held and not replace:
            raise BackupError(f"The volumes {', '.join(held)} have data. Give --replace to move it aside.")
        fresh = {name: folder.with_name("_data.restoring") for name, folder in volumes.items()}
        for folder in fresh.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        saved = machine.state / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        try:
            machine.say(f"restore: PostgreSQL of run {chosen.run}")
            machine.unpack(chosen, saved)
            machine.say(f"restore: S3 of run {s3.run}")
            machine.unpack(s3, fresh["s3"])
            _newest_identities(machine, s3, fresh["s3"])
            for kind, name in FOLDERS.items():
                if name in volumes:
                    machine.unpack(machine.newest(kind), fresh[name])
            found: dict[str, int] = {}
            named = 0
            for server in SERVERS:
                machine.say(f"restore: recovering {server}")
                lay_out(saved / server, fresh[server], at)
                with recovered(machine, server, fresh[server], saved) as container:
                    found |= counts(machine, server, container)
                    if server == "postgres":
                        named = check_files(machine, tables(machine, container), fresh["s3"] / _BUCKETS)
            lost = _lost(machine, chosen, at, found)
        finally:
            shutil.rmtree(saved, ignore_errors=True)
        write(machine.unfinished_restore, json.dumps({"run": chosen.run}))
        aside = _exchange(volumes, fresh)
        machine.unfinished_restore.unlink()
        if not machine.settings.exists():
            newest = machine.newest("settings")
            write(machine.settings, machine.restic("dump", "--no-lock", newest.id, "settings").rstrip("\n"))
        result |= {"run": chosen.run, "counts": found, "named_files": named, **lost, "aside": aside}
        machine.say(
            f"restore: PostgreSQL is at {lost['at']}; all {named} files that the catalog names are there.\n"
            f"restore: lost: {lost['minutes']} minutes, and {lost['dag_runs']} DAG runs that the newest backup had.\n"
            + (f"restore: data that was there before: {aside}\n" if aside else "")
            + "restore: next, start the services, `backup --base`, and `trilake rebuild --checksums` "
            "(docs/operations/backup.md)"
        )


def choose(machine: Machine, at: datetime | None) -> tuple[Snapshot, Snapshot]:
    """The snapshots of PostgreSQL and S3 for a moment: the first run that covers it, or the newest.

    :raises BackupError: no run covers it, or a run has no S3.
    """
    stores = {snapshot.run: snapshot for snapshot in machine.snapshots("s3")}
    # a run without S3 was interrupted
    usable = [snapshot for snapshot in machine.snapshots("postgres") if snapshot.run in stores and snapshot.until]
    if not usable:
        raise BackupError("The repository has no complete backup.")
    covering = [one for one in usable if one.until and (at is None or one.until >= at)]
    if not covering:
        raise BackupError(f"The newest backup can be restored up to {usable[-1].until}. Give an earlier --at, or none.")
    chosen = covering[0] if at else covering[-1]
    return chosen, stores[chosen.run]


def _running(machine: Machine) -> list[str]:
    names = (
        *SERVERS,
        *(f"wal-{server}" for server in SERVERS),
        "s3",
        "openvpn",
        "airflow-scheduler",
        "airflow-api-server",
    )
    return [name for name in names if machine.container(name)]


def _newest_identities(machine: Machine, s3: Snapshot, store: Path) -> None:
    newest = machine.newest("s3")
    if newest.id != s3.id:
        shutil.rmtree(store / _IDENTITIES, ignore_errors=True)
        machine.unpack(newest, store, f"--include=/{_IDENTITIES}")


def _lost(machine: Machine, chosen: Snapshot, at: datetime | None, found: dict[str, int]) -> dict[str, object]:
    newest = machine.newest("postgres")
    facts = json.loads(machine.restic("dump", "--no-lock", newest.id, "facts.json"))
    moment = at or chosen.until or datetime.now(UTC)
    minutes = round((datetime.now(UTC) - moment).total_seconds() / 60, 1)
    runs = max(0, facts["after"]["dag_runs"] - found["dag_runs"])
    return {"at": moment.isoformat(timespec="seconds"), "minutes": minutes, "dag_runs": runs}


def _exchange(volumes: dict[str, Path], fresh: dict[str, Path]) -> str:
    """Put the new folders in the place of the volumes' data. Returns where the old data is."""
    suffix = datetime.now(UTC).strftime("before-%Y-%m-%dT%H-%M-%SZ")
    run("sync")
    aside = []
    for name, folder in volumes.items():
        mode = folder.stat().st_mode & 0o777
        # A restore does not set the owner of the topmost folder. A new volume belongs to root.
        owner = os.stat(folder if any(folder.iterdir()) else next(fresh[name].iterdir(), folder))
        if any(folder.iterdir()):
            folder.rename(folder.with_name(f"_data.{suffix}"))
            aside.append(str(folder.with_name(f"_data.{suffix}")))
        else:
            folder.rmdir()
        if name not in SERVERS:
            os.chown(fresh[name], owner.st_uid, owner.st_gid)
            fresh[name].chmod(mode)
        fresh[name].rename(folder)
    return ", ".join(aside)
