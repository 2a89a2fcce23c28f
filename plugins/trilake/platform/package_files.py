"""Files that come with the package: locks, coordinates and checksums of jars, programs of images."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from trilake.errors import ConfigurationError

# The hint of errors about a missing package of the lock.
INSTALL = "Install the packages of the lock: `pip install -r $(python -m trilake.platform.requirements)`."


def package_file(*parts: str) -> Path:
    """The path of a file or folder of the installed package, such as ``spark/image/run_job.py``. Other programs get it.

    :raises ConfigurationError: it is missing.
    """
    path = Path(str(files("trilake").joinpath(*parts)))
    if not path.exists():
        raise ConfigurationError(
            f"The installed package trilake is incomplete: {path} is missing.", hint="Install it again."
        )
    return path
