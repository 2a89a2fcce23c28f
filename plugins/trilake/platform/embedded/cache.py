"""The cache of downloads, shared by all clones of this user: ``$XDG_CACHE_HOME/trilake``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from trilake.errors import ConfigurationError


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache's folder. It may not exist yet."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trilake"


@contextmanager
def filled_atomically(folder: Path) -> Iterator[Path]:
    """A new folder to fill. It is renamed to `folder` if the block succeeds, and removed if the block raises an error.

    Two processes may fill it at once. The first to finish wins; the other's files are removed.

    :raises ConfigurationError: the cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as e:
        raise ConfigurationError(
            f"The cache {folder.parent} cannot be written: {e.strerror}.",
            hint="Make it writable, or set XDG_CACHE_HOME to a folder that you can write.",
        ) from None
    try:
        yield fresh
        fresh.chmod(0o755)
        with suppress(OSError):  # another process was faster
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
