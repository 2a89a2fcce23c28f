"""Files that come with the package: locks, coordinates and checksums of jars, programs of images."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from trilake.errors import ConfigurationError

# What to do where a package of the lock is missing.
INSTALL = "Install what the lock says: `pip install -r $(python -m trilake.platform.requirements)`."


def package_file(*parts: str) -> Path:
    """A file or folder of the installed package, such as ``spark/image/run_job.py``. Other programs are given its path.

    :raises ConfigurationError: it is not there.
    """
    path = Path(str(files("trilake").joinpath(*parts)))
    if not path.exists():
        raise ConfigurationError(
            f"The installed package trilake is not whole: {path} is missing.", hint="Install it again."
        )
    return path
