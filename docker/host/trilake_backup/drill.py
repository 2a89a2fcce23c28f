"""The restore drill: the newest backup is restored without network, and compared with its facts."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from trilake_backup.machine import SERVERS, BackupError, Machine, Snapshot
from trilake_backup.recovery import check_files, counts, lay_out, recovered, tables
from trilake_backup.restore import choose

# Each night another part of the repository is read.
_PARTS = 30
_METADATA = ("--include=*.metadata.json", "--include=*.avro")


def drill(machine: Machine) -> None:
    """:raises BackupError: the backup cannot be restored, or the restored state is not the one that was recorded."""
    with machine.locked(), machine.reporting("drill") as result:
        chosen, s3 = choose(machine, None)
        work = machine.state / "drill"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        try:
            saved = work / "saved"
            machine.unpack(chosen, saved)
            facts = json.loads((saved / "facts.json").read_text())
            at = datetime.fromisoformat(facts["at"])
            store = work / "s3"
            machine.unpack(s3, store, *_METADATA)
            (store / "buckets").mkdir(parents=True, exist_ok=True)
            sizes = _sizes(machine, s3, work / "sizes.tsv")
            found: dict[str, int] = {}
            for server in SERVERS:
                data = work / server
                data.mkdir(mode=0o700)
                lay_out(saved / server, data, at)
                with recovered(machine, server, data, saved) as container:
                    found |= counts(machine, server, container)
                    if server == "postgres":
                        result["named_files"] = check_files(
                            machine, tables(machine, container), store / "buckets", sizes
                        )
        finally:
            shutil.rmtree(work, ignore_errors=True)
        result |= {"run": chosen.run, "at": facts["at"], "counts": found}
        for name, number in found.items():
            low, high = sorted((facts["before"][name], facts["after"][name]))
            if not low <= number <= high:
                raise BackupError(
                    f"The restored state of run {chosen.run} has {number} {name}, and not {low} to {high}."
                )
        part = datetime.now(UTC).timetuple().tm_yday % _PARTS + 1
        machine.restic("check", "--no-lock", f"--read-data-subset={part}/{_PARTS}")
        result["part_read"] = f"{part}/{_PARTS}"
        machine.say(f"drill: run {chosen.run} is restored to {facts['at']}, with {found}")


def _sizes(machine: Machine, s3: Snapshot, path: Path) -> Path:
    """The bytes of each object of a snapshot."""
    with path.open("w") as file:
        for line in machine.restic("ls", "--no-lock", "--json", s3.id).splitlines():
            node = json.loads(line)
            if node.get("type") == "file" and node["path"].startswith("/buckets/"):
                file.write(f"{node['path'].removeprefix('/buckets/')}\t{node.get('size', 0)}\n")
    return path
