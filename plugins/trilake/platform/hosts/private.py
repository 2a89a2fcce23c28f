"""Files of secrets: whole or not at all, for their owner alone, never written over."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def write_once(file: Path, text: str) -> bool:
    """Write it with mode 600; False: it is there already, and stays as it is."""
    # a hard link appears whole, and only where nothing is
    for left in file.parent.glob(f".{glob.escape(file.name)}.*"):
        if left.suffix[1:].isdecimal() and not Path("/proc", left.suffix[1:]).exists():
            left.unlink()  # by one that was killed
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(fresh, file)
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    return True
