"""Files with secrets. Only their owner can ever read them, and a file either is complete or does not exist."""

from __future__ import annotations

import glob
import os
import stat
from pathlib import Path


def create_private(path: Path, content: str | bytes) -> None:
    """Make a new file with mode 600, written to disk.

    :raises FileExistsError: the file exists.
    """
    data = content.encode() if isinstance(content, str) else content
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_private(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole, mode 600. A reader sees the old file or the new one, also after a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    create_private(temporary, content)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_private(path: Path, text: str) -> bool:
    """Call `replace_private`, unless the file already has this text and mode. False: the file was not changed."""
    try:
        if path.read_text() == text and stat.S_IMODE(path.stat().st_mode) == 0o600:
            return False
    except OSError:
        pass
    replace_private(path, text)
    return True


def write_once(path: Path, text: str) -> bool:
    """Write a file with mode 600, unless it exists. False: it existed and was not changed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):  # left by a process that was killed
        if leftover.suffix[1:].isdecimal() and not Path("/proc", leftover.suffix[1:]).exists():
            leftover.unlink()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    create_private(fresh, text)
    try:
        os.link(fresh, path)  # a hard link appears complete, and fails if the name is taken
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    return True
