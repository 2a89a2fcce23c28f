"""The folder of backups. Content is stored once, by its SHA-256; a backup is a list of files.

``objects/ab/<SHA-256>``
    the content of files, never changed.
``<time>/files.jsonl``
    the files and folders of one backup: path, SHA-256, size, time, mode and attributes, one a line.
``<time>/manifest.json``
    what the backup is, the list's SHA-256, and a checksum of its own.
``unfinished-<time>/``
    a backup that is being made. It gets its name, in one step, when everything is on disk. If its process is killed,
    it is never read, and the next backup removes it and the content that only it has.

The folder may be on another file system, without owners, attributes or hard links.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError, TrilakeError
from trilake.platform.private_files import create_private, write_private

FORMAT = 1
_MARKER = "trilake-backups.json"
_LOCK = "lock"
_OBJECTS = "objects"
_LIST = "files.jsonl"
_MANIFEST = "manifest.json"
_UNFINISHED = "unfinished-"
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}Z")
_BLOCK = 1 << 20


class BackupError(TrilakeError):
    """A backup cannot be made, or cannot be used."""


@dataclass(frozen=True)
class Entry:
    """A file or folder of a backup.

    :param path: relative to the home, such as ``data/s3/lake/warehouse/...``.
    :param sha256: of the content; empty for a folder.
    :param modified: nanoseconds since 1970.
    :param attributes: the file's extended attributes, in base64.
    """

    path: str
    sha256: str = ""
    size: int = 0
    modified: int = 0
    mode: int = 0o600
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return not self.sha256


@dataclass(frozen=True)
class Backup:
    """A complete backup.

    :param at: everything that was committed before this time is in it.
    :param system: PostgreSQL's identifier of the database cluster: it tells platforms apart.
    :param files: how many, and `size` their bytes; `added` the bytes that no earlier backup had.
    :param facts: what the databases said, see `trilake.platform.embedded.backup.database.Facts`.
    """

    name: str
    at: datetime
    home: str
    version: str
    system: str
    postgres: str
    files: int
    size: int
    added: int
    list_sha256: str
    facts: Mapping[str, Any]


def open_for_backup(folder: Path, home: Path) -> Store:
    """The folder as a place for backups; it is created if it does not exist.

    :raises ConfigurationError: it has other files, is inside of the home, or cannot be written.
    """
    folder = folder.resolve()
    if folder == home or home in folder.parents:
        raise ConfigurationError(
            f"{folder} is inside of the platform's home {home}.", hint="Give a folder elsewhere, best on another disk."
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = folder / _MARKER
        if not marker.exists():
            if others := sorted(path.name for path in folder.iterdir() if not path.name.startswith(f".{_MARKER}")):
                raise ConfigurationError(
                    f"{folder} is not a folder of backups: it has other files ({', '.join(others[:3])}).",
                    hint="Give an empty folder, or one that does not exist.",
                )
            write_private(marker, json.dumps({"format": FORMAT}) + "\n")
        (folder / _OBJECTS).mkdir(mode=0o700, exist_ok=True)
    except OSError as e:
        raise ConfigurationError(f"{folder} cannot be written: {e.strerror}.", hint="Give another folder.") from None
    return open_store(folder)


def open_store(folder: Path) -> Store:
    """:raises ConfigurationError: it is not a folder of backups, or one of a newer version."""
    folder = folder.resolve()
    try:
        found = json.loads((folder / _MARKER).read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{folder} is not a folder of backups.", hint="`trilake backup FOLDER` makes one."
        ) from None
    if found != FORMAT:
        raise ConfigurationError(
            f"{folder} has backups of format {found}, and this version of Trilake reads format {FORMAT}.",
            hint="Install the version that made them.",
        )
    return Store(folder)


class Store:
    """A folder of backups."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects = folder / _OBJECTS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time uses the folder. The lock ends with the process.

        :raises BackupError: another process uses it.
        """
        with open(os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(
                    f"Another backup or restore uses {self.folder}.", hint="Wait until it has finished."
                ) from None
            yield

    def backups(self) -> list[Backup]:
        """The complete backups, oldest first.

        :raises BackupError: a manifest is damaged.
        """
        names = sorted(path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        return [self._read(name) for name in names]

    def backup(self, name: str = "") -> Backup:
        """The backup of this name, or the newest one.

        :raises BackupError: there is no such backup, or its manifest is damaged.
        """
        names = sorted(path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        if not names:
            raise BackupError(f"{self.folder} has no complete backup.", hint="Give another folder.")
        if name and name not in names:
            raise BackupError(
                f"{self.folder} has no backup {name}; it has {', '.join(names[-5:])}.", hint="Give one of these."
            )
        return self._read(name or names[-1])

    def _read(self, name: str) -> Backup:
        path = self.folder / name / _MANIFEST
        try:
            document = json.loads(path.read_text())
            if document.pop("sha256") != _document_sum(document):
                raise ValueError
            return Backup(**{**document, "at": datetime.fromisoformat(document["at"])})
        except (OSError, ValueError, KeyError, TypeError):
            raise BackupError(
                f"{path} is damaged or missing.", hint="Use another backup (`--backup NAME`), or remove this folder."
            ) from None

    def entries(self, backup: Backup) -> Iterator[Entry]:
        """The files and folders of a backup, folders before what is in them.

        :raises BackupError: the list is not the one that the backup wrote.
        """
        path = self.folder / backup.name / _LIST
        try:
            if _file_sum(path) != backup.list_sha256:
                raise ValueError
            with path.open() as file:
                for line in file:
                    yield Entry(**json.loads(line))
        except (OSError, ValueError):
            raise BackupError(
                f"{path} is damaged: its checksum is not the one of the backup.",
                hint="Use another backup (`--backup NAME`).",
            ) from None

    def object(self, sha256: str) -> Path:
        return self._objects / sha256[:2] / sha256

    def stored(self) -> dict[str, int]:
        """The contents that the folder has: SHA-256 and bytes."""
        return {
            item.name: item.stat().st_size
            for part in os.scandir(self._objects)
            if part.is_dir()
            for item in os.scandir(part.path)
        }

    def add(self, source: int, copy: bool = True) -> tuple[str, int, bool]:
        """Store the content of an open file. Returns its SHA-256, its bytes, and whether it is new.

        :param copy: False: only compute the SHA-256.
        """
        return _copy(source, self._objects) if copy else (*_sum(source), False)

    # --- a new backup

    def begin(self, name: str) -> Path:
        """The folder of a backup that is being made."""
        folder = self.folder / f"{_UNFINISHED}{name}"
        folder.mkdir(mode=0o700)
        return folder

    def write_list(self, unfinished: Path, entries: Iterable[Entry]) -> str:
        """Write the list of files. Returns its SHA-256."""
        path = unfinished / _LIST
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            for entry in entries:
                file.write(json.dumps({k: v for k, v in asdict(entry).items() if v or k in ("path", "mode")}) + "\n")
        return _file_sum(path)

    def finish(self, unfinished: Path, backup: Backup) -> None:
        """Make the backup appear. Everything it consists of is on disk before."""
        document = {**asdict(backup), "at": backup.at.isoformat()}
        text = json.dumps({**document, "sha256": _document_sum(document)}, indent=2)
        # Contents were written without waiting for the disk: one sync for all takes a fraction of the time.
        os.sync()
        create_private(unfinished / _MANIFEST, text + "\n")
        sync_folder(unfinished)
        unfinished.rename(self.folder / backup.name)
        sync_folder(self.folder)

    def remove(self, backup: Backup) -> None:
        """Remove a backup. Call `clean` afterwards."""
        # its name goes first: a backup without some of its files is never seen
        (self.folder / backup.name).rename(self.folder / f"{_UNFINISHED}{backup.name}")

    def unfinished(self) -> list[str]:
        """What interrupted backups left."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(_UNFINISHED))

    def clean(self) -> int:
        """Remove unfinished backups, and contents that no backup has. Returns the bytes that became free.

        Contents go first: if this is interrupted, the unfinished folder tells the next call to do it again.
        """
        needed = {entry.sha256 for backup in self.backups() for entry in self.entries(backup)}
        freed = 0
        for part in self._objects.iterdir():
            if part.name.startswith("."):  # a copy that was interrupted
                freed += part.stat().st_size
                part.unlink()
                continue
            for item in part.iterdir():
                if item.name not in needed:
                    freed += item.stat().st_size
                    item.unlink()
        for name in self.unfinished():
            shutil.rmtree(self.folder / name)
        return freed

    # --- a restore

    def write(self, entry: Entry, path: Path) -> None:
        """Write a file of a backup, and check its content.

        :raises BackupError: the content is missing or was changed.
        """
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                with self.object(entry.sha256).open("rb") as source:
                    found = _sum(source.fileno(), lambda block: _write_all(target, block))
            except FileNotFoundError:
                found = ("", 0)
            if found != (entry.sha256, entry.size):
                what = "was changed" if found[0] else "is missing"
                raise BackupError(
                    f"{self.object(entry.sha256)}, the content of {entry.path}, {what}. Nothing was restored.",
                    hint="Use another backup (`--backup NAME`): it may have another content of this file.",
                )
            set_attributes(target, entry.attributes)
            os.fchmod(target, entry.mode)
            os.utime(target, ns=(entry.modified, entry.modified))
        finally:
            os.close(target)


def describe(path: str, file: int, sha256: str, size: int) -> Entry:
    """The entry of an open file or folder."""
    status = os.fstat(file)
    return Entry(path, sha256, size, status.st_mtime_ns, stat.S_IMODE(status.st_mode), read_attributes(file))


def read_attributes(file: int) -> dict[str, str]:
    """The extended attributes that users set. S3Proxy keeps ETags and types in them."""
    if not hasattr(os, "listxattr"):  # as on macOS
        return {}
    names = [name for name in os.listxattr(file) if name.startswith("user.")]
    return {name: base64.b64encode(os.getxattr(file, name)).decode() for name in sorted(names)}


def set_attributes(file: int | Path, attributes: Mapping[str, str]) -> None:
    for name, value in attributes.items():
        os.setxattr(file, name, base64.b64decode(value))


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: int, objects: Path) -> tuple[str, int, bool]:
    temporary = objects / f".{os.getpid()}-{source}"
    target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        sha256, size = _sum(source, lambda block: _write_all(target, block))
    finally:
        os.close(target)
    final = objects / sha256[:2] / sha256
    final.parent.mkdir(mode=0o700, exist_ok=True)
    new = not final.exists() or final.stat().st_size != size
    if new:
        temporary.replace(final)
    else:
        temporary.unlink()
    return sha256, size, new


def _sum(source: int, also: Callable[[bytes], None] = lambda block: None) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while block := os.read(source, _BLOCK):
        digest.update(block)
        also(block)
        size += len(block)
    return digest.hexdigest(), size


def _write_all(target: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(target, rest) :]


def _file_sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document_sum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
