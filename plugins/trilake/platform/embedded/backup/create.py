"""Make a backup of the embedded platform, while it works or while it is stopped.

PostgreSQL comes first and S3 second. Objects are written once, and their files appear complete, so the copy of S3 has
every file that the copied catalog names. This is checked: a server recovers the copy of PostgreSQL, and each file that
its current snapshots name must be in the copy of S3 with its size. Only then the backup gets its name.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from trilake.errors import ConfigurationError
from trilake.lake import named_files
from trilake.platform.embedded import platform, postgres, processes, s3
from trilake.platform.embedded.backup import database
from trilake.platform.embedded.backup.store import Backup, BackupError, Entry, Store, describe, open_for_backup
from trilake.platform.embedded.home import Home
from trilake.platform.embedded.provision import Progress, quiet

# What a restore needs of config/: all other files are made from these.
IDENTITIES = ("config/secrets.json", "config/ports.json")
POSTGRES, S3 = "data/postgres", "data/s3"
_STAGING = "backup.unfinished"
# Maintenance may remove files between the copies of PostgreSQL and of S3. Then both are copied again.
_TRIES = 3
_WORKERS = 4
_RESERVE = 64 << 20
_REPORT_S = 5.0
_UNFINISHED_OBJECT = re.compile(s3.UNFINISHED_KEYS, re.DOTALL)
# Parts of uploads that are not complete. Their clients start again after a restore.
_UPLOAD = re.compile(r"\.mpus-([0-9a-f-]{36})-")


@dataclass(frozen=True)
class Made:
    """A new backup.

    :param removed: the names of older backups that were removed; `cleaned` is what interrupted backups had left.
    :param seconds: by step.
    """

    backup: Backup
    removed: tuple[str, ...]
    cleaned: tuple[str, ...]
    seconds: Mapping[str, float]


def back_up(home: Home, folder: Path, *, keep: int | None = None, progress: Progress = quiet) -> Made:
    """Make a backup in the folder. Files that an earlier backup has are not copied again.

    :param keep: how many backups stay; older ones are removed. None: all.
    :raises BackupError: it failed; the message says why. Earlier backups are as they were.
    :raises ConfigurationError: there is no platform, or the folder cannot be used.
    """
    if home.unfinished_restore.exists():
        raise ConfigurationError(
            f"A restore into {home.path} is not finished.", hint="Run `trilake restore FOLDER` again: it continues."
        )
    if not (home.data("postgres") / "PG_VERSION").exists():
        raise ConfigurationError(f"There is no platform in {home.path} yet.", hint="Start it with `trilake up`.")
    store = open_for_backup(folder, home.path)
    with store.locked():
        cleaned = tuple(store.unfinished())
        if cleaned:
            progress("folder", f"removing {', '.join(cleaned)}, which was interrupted")
            store.clean()
        return _Making(home, store, progress, cleaned).run(keep)


class _Making:
    def __init__(self, home: Home, store: Store, progress: Progress, cleaned: tuple[str, ...]) -> None:
        self._home, self._store, self._progress, self._cleaned = home, store, progress, cleaned
        self._seconds: dict[str, float] = {}
        backups = store.backups()
        self._newest = backups[-1] if backups else None
        self._known = {entry.path: entry for entry in store.entries(backups[-1])} if backups else {}
        self._stored = store.stored()

    def run(self, keep: int | None) -> Made:
        home, store = self._home, self._store
        staging = home.path / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        with ExitStack() as cleanup:
            running = self._is_running()
            if not running:
                cleanup.enter_context(platform.exclusive(home))
            self._check_space(staging)
            cleanup.callback(shutil.rmtree, staging, ignore_errors=True)
            name = self._name()
            unfinished = store.begin(name)
            cleanup.push(self._clean_after)
            for attempt in range(1, _TRIES + 1):
                shutil.rmtree(staging, ignore_errors=True)
                at = datetime.now(UTC)
                facts = self._copy_postgres(staging, running=running)
                with self._timed("s3"):
                    files, added = self._copy_files(self._objects(), "s3")
                try:
                    with self._timed("check"):
                        named = named_files.check(facts.tables, self._locate(files))
                    break
                except named_files.MissingFilesError as e:
                    if attempt == _TRIES:
                        raise BackupError(
                            f"No backup was made. {e.message}",
                            hint="Everything was copied three times. If nothing removes files of the lake now, these "
                            "files were lost before: restore an older backup, or run their windows again.",
                        ) from None
                    self._progress("check", "files were removed during the copy; copying again")
            with self._timed("postgres"):
                more, more_added = self._copy_files(_postgres_files(staging), "postgres")
                identities = [(path, home.path / path) for path in IDENTITIES if (home.path / path).exists()]
                secrets, secrets_added = self._copy_files(identities, "secrets")
            entries = [*secrets, *more, *files]
            backup = Backup(
                name=name,
                at=at,
                home=str(home.path),
                version=version("trilake"),
                system=facts.system,
                postgres=database.version(staging),
                files=sum(not entry.is_folder for entry in entries),
                size=sum(entry.size for entry in entries),
                added=added + more_added + secrets_added,
                list_sha256=store.write_list(unfinished, entries),
                facts={**facts.summary(), "named_files": named},
            )
            with self._timed("disk"):
                store.finish(unfinished, backup)
        return Made(backup, self._remove_older(keep), self._cleaned, self._seconds)

    def _is_running(self) -> bool:
        """:raises BackupError: other services run without PostgreSQL."""
        services = set(processes.find(self._home).values())
        if "postgres" in services:
            return True
        if services or processes.Supervisor(self._home).pid is not None:
            raise BackupError(
                f"PostgreSQL of the platform in {self._home.path} does not run, and other services do.",
                hint="Start it with `trilake up`, or stop all with `trilake down`. Then run the backup again.",
            )
        return False

    def _name(self) -> str:
        while True:
            name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
            if not (self._store.folder / name).exists():
                return name
            time.sleep(0.1)

    def _check_space(self, staging: Path) -> None:
        """:raises BackupError: a disk has too little free space."""
        database_bytes = database.folder_bytes(self._home.path / POSTGRES)
        new = sum(path.lstat().st_size for name, path in self._objects() if not self._unchanged(name, path))
        for where, needed, what in (
            (staging.parent, database_bytes, "a copy of PostgreSQL"),
            (self._store.folder, database_bytes + new, "the backup"),
        ):
            free = shutil.disk_usage(where).free
            if free < needed + _RESERVE:
                raise BackupError(
                    f"{where} has {free >> 20} MB free, and {what} needs {(needed + _RESERVE) >> 20} MB.",
                    hint="Make room, for example with `--keep` for fewer backups, or give a folder on another disk.",
                )

    # --- PostgreSQL

    def _copy_postgres(self, staging: Path, *, running: bool) -> database.Facts:
        """:raises ConfigurationError: the folder has backups of another platform."""
        with self._timed("postgres"):
            self._progress("postgres", "copying")
            staging.mkdir(mode=0o700)
            if running:
                database.copy_running(self._home, staging, lambda how: self._progress("postgres", how))
            else:
                postgres.forget_the_dead(self._home)
                shutil.copytree(self._home.path / POSTGRES, staging, dirs_exist_ok=True)
        with self._timed("check"):
            self._progress("postgres", "recovering the copy")
            database.own(staging)
            facts = database.examine(staging, self._home.secrets())
        if self._newest and self._newest.system != facts.system:
            raise ConfigurationError(
                f"{self._store.folder} has backups of another platform ({self._newest.home}).",
                hint="Use another folder.",
            )
        return facts

    def _clean_after(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:  # what this backup has stored is useless without it; if this fails, the next backup does it
            with suppress(Exception):
                self._store.clean()

    # --- files

    def _objects(self) -> Iterator[tuple[str, Path]]:
        """The files and folders of S3, without objects that are being written."""
        root = self._home.path / S3
        for parent, folders, names in os.walk(root):
            relative = Path(parent).relative_to(self._home.path)
            uploads = set()
            if len(relative.parts) == 3:  # a bucket
                uploads = {found[1] for name in (*names, *folders) if (found := _UPLOAD.match(name))}
                folders[:] = [name for name in folders if not _UPLOAD.match(name)]
            yield str(relative), Path(parent)
            for name in names:
                if name in uploads or (uploads and _UPLOAD.match(name)):
                    continue
                path = Path(parent, name)
                if _UNFINISHED_OBJECT.fullmatch(name) and not s3.is_complete(path):
                    continue
                yield str(relative / name), path

    def _unchanged(self, name: str, path: Path) -> Entry | None:
        """The entry of the newest backup, if the file is still the same and its content is stored."""
        known = self._known.get(name)
        if known is None or known.is_folder or self._stored.get(known.sha256) != known.size:
            return None
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            return known if describe(name, file, known.sha256, os.fstat(file).st_size) == known else None
        finally:
            os.close(file)

    def _copy_files(self, found: Iterable[tuple[str, Path]], what: str) -> tuple[list[Entry], int]:
        """Store files. Returns their entries in the order of their paths, and the bytes that were not stored before."""
        listed = list(found)
        self._progress(what, f"{len(listed):,} files")
        tally = _Tally(len(listed), lambda how: self._progress(what, how))

        def one(item: tuple[str, Path]) -> Entry | None:
            name, path = item
            if known := self._unchanged(name, path):
                tally.count(0, 0)
                return known
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # removed since it was listed
                return None
            except OSError as e:
                raise BackupError(f"{path} cannot be read: {e.strerror}.") from None
            try:
                if path.is_dir():
                    return describe(name, file, "", 0)
                sha256, size, new = self._store.add(file)
                tally.count(size, size if new else 0)
                return describe(name, file, sha256, size)
            except OSError as e:
                if e.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise BackupError(f"{self._store.folder} is full.", hint="Make room, then run it again.") from None
                raise
            finally:
                os.close(file)

        with ThreadPoolExecutor(_WORKERS) as pool:
            try:
                entries = [entry for entry in pool.map(one, listed) if entry]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return sorted(entries, key=lambda entry: entry.path), tally.added

    def _locate(self, files: Iterable[Entry]) -> named_files.Locate:
        contents = {entry.path: entry.sha256 for entry in files if not entry.is_folder}

        def locate(key: str) -> Path | None:
            sha256 = contents.get(f"{S3}/{key}")
            return self._store.object(sha256) if sha256 else None

        return locate

    def _remove_older(self, keep: int | None) -> tuple[str, ...]:
        older = self._store.backups()[:-keep] if keep else []
        for backup in older:
            self._store.remove(backup)
        if older:
            self._progress("folder", f"removing {', '.join(backup.name for backup in older)}")
            self._store.clean()
        return tuple(backup.name for backup in older)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[what] = self._seconds.get(what, 0.0) + time.monotonic() - began


class _Tally:
    """Counts files and bytes, and reports from time to time."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.added = 0
        self._total, self._report = total, report
        self._files = self._bytes = 0
        self._lock = threading.Lock()
        self._next = time.monotonic() + _REPORT_S

    def count(self, read: int, added: int) -> None:
        with self._lock:
            self._files += 1
            self._bytes += read
            self.added += added
            if time.monotonic() > self._next:
                self._next = time.monotonic() + _REPORT_S
                self._report(f"{self._files:,} of {self._total:,} files, {self._bytes >> 20:,} MB")


def _postgres_files(staging: Path) -> Iterator[tuple[str, Path]]:
    for parent, _, names in os.walk(staging):
        relative = Path(POSTGRES, Path(parent).relative_to(staging))
        yield str(relative), Path(parent)
        for name in names:
            if name not in ("postmaster.pid", "postmaster.opts"):
                yield str(relative / name), Path(parent, name)
