"""Bring a backup back: PostgreSQL, S3 and the secrets from the folder, ClickHouse from the lake.

Everything is written beside the home's data and checked there. Then the folders are exchanged. A file in the home says
that a restore is not finished: `trilake up` refuses to start, so that Airflow never works on half of the data or on an
empty ClickHouse. The next `trilake restore` continues.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError, TrilakeError
from trilake.lake import named_files
from trilake.platform.embedded import platform, postgres, processes
from trilake.platform.embedded.backup import database
from trilake.platform.embedded.backup.create import POSTGRES, S3
from trilake.platform.embedded.backup.store import Backup, BackupError, Entry, Store, open_store, set_attributes
from trilake.platform.embedded.home import Home, port_is_free
from trilake.platform.embedded.provision import Progress, quiet
from trilake.platform.private_files import replace_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trilake.endpoints import Endpoints

_STAGING = "restore.unfinished"
_ASIDE = "before-restore"
# What a restore replaces. Logs and reports stay.
_PARTS = ("data", "config")
_RESERVE = 64 << 20
_REPORT_S = 5.0


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    :param aside: the folder with the data that was there before; empty if there was none.
    :param lost_minutes: between the backup and the restore.
    :param lost_dag_runs: DAG runs that were newer than the backup; None: the old database is gone or does not start.
    :param running: DAG runs that had not ended when the backup was made. Airflow continues with them.
    :param named_files: files that the catalog names; each is there with its size.
    :param rebuilt: what `rebuild_clickhouse` did.
    """

    backup: str
    at: str
    aside: str
    lost_minutes: float
    lost_dag_runs: int | None
    running: tuple[str, ...]
    named_files: int
    rebuilt: str
    seconds: Mapping[str, float]


def restore(
    home: Home,
    folder: Path,
    *,
    name: str = "",
    replace: bool = False,
    rebuild: bool = True,
    progress: Progress = quiet,
) -> Restored:
    """Restore a backup into the home, start the stores, and fill ClickHouse.

    :param name: the backup's name; the newest one by default.
    :param replace: move data that is there aside. Without it, a home with data is refused.
    :param rebuild: False: ClickHouse stays empty.
    :raises BackupError: the backup is damaged, or does not fit together. The home is as it was.
    :raises ConfigurationError: the platform runs, or the home has data.
    """
    store = open_store(folder)
    with store.locked():
        restoring = write_back(home, store, name=name, replace=replace, progress=progress)
        return restoring.finish(rebuild=rebuild)


def write_back(
    home: Home, store: Store, *, name: str = "", replace: bool = False, progress: Progress = quiet
) -> Restoring:
    """Put the files of a backup into the home. Until `Restoring.finish`, `trilake up` refuses to start."""
    home.prepare()
    with platform.exclusive(home):
        _refuse_if_running(home)
        restoring = Restoring(home, store, progress)
        if not home.unfinished_restore.exists():
            restoring.prepare(store.backup(name), replace=replace)
        elif name and name != (begun := restoring.begun()):
            raise ConfigurationError(
                f"A restore of {begun} into {home.path} is not finished.",
                hint=f"Finish it first: `trilake restore {store.folder} --backup {begun}`.",
            )
        restoring.exchange()
    return restoring


def _refuse_if_running(home: Home) -> None:
    if processes.find(home) or processes.Supervisor(home).pid is not None:
        raise ConfigurationError(f"The platform in {home.path} runs.", hint="Stop it first: `trilake down`.")


class Restoring:
    """One restore."""

    def __init__(self, home: Home, store: Store, progress: Progress) -> None:
        self._home, self._store, self._progress = home, store, progress
        self._staging = home.path / _STAGING
        self._seconds: dict[str, float] = {}

    def begun(self) -> str:
        """The backup of a restore that was interrupted."""
        return str(self._note()["backup"])

    def prepare(self, backup: Backup, *, replace: bool) -> None:
        """Write everything beside the home's data, check it, and note that the exchange begins."""
        home = self._home
        shutil.rmtree(self._staging, ignore_errors=True)
        held = [part for part in _PARTS if _has_files(home.path / part)]
        if held and not replace:
            raise ConfigurationError(
                f"{home.path} has data of a platform ({' and '.join(held)}/).",
                hint="Give --replace to move it aside, or set TRILAKE_HOME to a new folder.",
            )
        ours = postgres.binaries().parent.name.removeprefix("pginstall")
        if backup.postgres != ours:
            raise BackupError(
                f"Backup {backup.name} is of PostgreSQL {backup.postgres}, and {ours} is installed here.",
                hint=f"Install Trilake {backup.version}, which made it.",
            )
        postgres.check_reachable(home)
        free = shutil.disk_usage(home.path).free
        if free < backup.size + _RESERVE:
            raise BackupError(
                f"{home.path} has {free >> 20} MB free, and backup {backup.name} needs "
                f"{(backup.size + _RESERVE) >> 20} MB.",
                hint="Make room, or set TRILAKE_HOME to a folder on another disk.",
            )
        passage = stat.S_IMODE(home.path.stat().st_mode)
        self._staging.mkdir(mode=passage)
        (self._staging / "data").mkdir(mode=passage)
        (self._staging / "config").mkdir(mode=0o700)
        self._write_files(backup)
        named = self._check()
        self._keep_free_ports()
        aside = f"{_ASIDE}-{datetime.now(UTC).strftime('%Y-%m-%dT%H-%M-%SZ')}" if held else ""
        lost = self._lost_dag_runs(backup)
        os.sync()
        note = {"backup": backup.name, "aside": aside, "lost_dag_runs": lost, "named_files": named}
        replace_private(home.unfinished_restore, json.dumps(note))

    def _write_files(self, backup: Backup) -> None:
        done = written = 0
        next_report = time.monotonic() + _REPORT_S
        folders: list[tuple[Path, Entry]] = []
        for entry in self._store.entries(backup):
            path = self._staging / entry.path
            part = "postgres" if entry.path.startswith(POSTGRES) else "s3"
            with self._timed(part):
                if entry.is_folder:
                    path.mkdir(mode=0o700, parents=True)
                    folders.append((path, entry))
                else:
                    self._store.write(entry, path)
            done, written = done + 1, written + entry.size
            if time.monotonic() > next_report:
                next_report = time.monotonic() + _REPORT_S
                total = f"{backup.files:,} files, {written >> 20:,} of {backup.size >> 20:,} MB"
                self._progress("files", f"{done:,} of {total}")
        for path, entry in reversed(folders):
            set_attributes(path, entry.attributes)
            path.chmod(entry.mode)
        with self._timed("postgres"):
            database.own(self._staging / POSTGRES)

    def _check(self) -> int:
        self._progress("check", "starting PostgreSQL on the restored data")
        with self._timed("check"):
            secrets = json.loads((self._staging / "config" / "secrets.json").read_text())
            facts = database.examine(self._staging / POSTGRES, secrets)

            def locate(key: str) -> Path | None:
                path = self._staging / S3 / key
                return path if path.is_file() else None

            try:
                return named_files.check(facts.tables, locate)
            except named_files.MissingFilesError as e:
                raise BackupError(
                    f"Nothing was restored. {e.message}", hint="Use another backup (`--backup NAME`)."
                ) from None

    def _keep_free_ports(self) -> None:
        """Ports that another program uses are chosen again. This may be another machine."""
        path = self._staging / "config" / "ports.json"
        if path.exists():
            ports = json.loads(path.read_text())
            replace_private(path, json.dumps({name: port for name, port in ports.items() if port_is_free(port)}))

    def _lost_dag_runs(self, backup: Backup) -> int | None:
        old = self._home.data("postgres")
        if not (old / "PG_VERSION").exists():
            return None
        self._progress("check", "counting the DAG runs that are newer than the backup")
        try:
            secrets = self._home.secrets()
        except ConfigurationError:
            return None
        return database.dag_runs_after(old, secrets, int(backup.facts["last_dag_run"]))

    def exchange(self) -> None:
        """Move the old data aside and the restored data in its place. It can be repeated at every step."""
        home, note = self._home, self._note()
        aside = home.path / str(note["aside"]) if note["aside"] else None
        for part in _PARTS:
            fresh, place = self._staging / part, home.path / part
            if not fresh.exists():
                continue  # an earlier call has moved it
            if place.exists() and aside is None:
                shutil.rmtree(place)  # empty folders
            elif place.exists() and aside is not None:
                aside.mkdir(mode=stat.S_IMODE(home.path.stat().st_mode), exist_ok=True)
                place.rename(aside / part)
            fresh.rename(place)
        os.sync()
        shutil.rmtree(self._staging, ignore_errors=True)

    def finish(self, *, rebuild: bool) -> Restored:
        """Start the stores, fill ClickHouse, and allow `trilake up`."""
        from trilake.endpoints import Endpoints

        home, note = self._home, self._note()
        backup = self._store.backup(str(note["backup"]))
        with self._timed("stores"):
            platform.up(home, self._progress, airflow_too=False, restoring=True)
        rebuilt = "ClickHouse was not filled (--without-clickhouse)."
        if rebuild:
            self._progress("clickhouse", "filling it from the lake")
            with self._timed("clickhouse"):
                endpoints = Endpoints.from_environment(home.environment())
                try:
                    rebuilt = rebuild_clickhouse(endpoints, home.project, self._progress)
                except TrilakeError as e:
                    raise BackupError(
                        f"PostgreSQL and S3 are restored, and ClickHouse is not filled: {e.message}",
                        hint="Correct this and run `trilake rebuild` until it succeeds. Then run `trilake down`, and "
                        "the same restore with --without-clickhouse: it finishes what is left.",
                    ) from e
        home.unfinished_restore.unlink()
        lost = datetime.now(UTC) - backup.at
        return Restored(
            backup=backup.name,
            at=backup.at.isoformat(timespec="seconds"),
            aside=str(home.path / str(note["aside"])) if note["aside"] else "",
            lost_minutes=round(lost.total_seconds() / 60, 1),
            lost_dag_runs=note["lost_dag_runs"],
            running=tuple(backup.facts["running"]),
            named_files=note["named_files"],
            rebuilt=rebuilt,
            seconds=self._seconds,
        )

    def _note(self) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads(self._home.unfinished_restore.read_text())
            return note
        except (OSError, ValueError):
            raise BackupError(
                f"{self._home.unfinished_restore} is damaged.",
                hint=f"Remove it, and move {self._staging} away. Then run the restore again with --replace.",
            ) from None

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[what] = self._seconds.get(what, 0.0) + time.monotonic() - began


def rebuild_clickhouse(endpoints: Endpoints, project: Path, progress: Progress = quiet) -> str:
    """Fill the empty ClickHouse from the ledger's snapshots. Returns what was done, in one sentence.

    :raises TrilakeError: some publications could not be published again. The message names each.
    """
    from trilake.clickhouse.cluster import Cluster
    from trilake.clickhouse.publication.rebuild import rebuild
    from trilake.schema.migrations import migrate

    with Cluster(endpoints.clickhouse, comment={"by": "trilake restore"}) as cluster:
        report = rebuild(endpoints, cluster, progress=lambda line: progress("clickhouse", line))
    if report.rebuilt:
        migrate(endpoints, project / "sql")  # also the tables that nobody may read without their rows
    report.raise_failed()
    return f"ClickHouse is filled: {len(report.rebuilt)} publications with {report.rows:,} rows were published again."


def _has_files(folder: Path) -> bool:
    return any(names for _, _, names in os.walk(folder))
