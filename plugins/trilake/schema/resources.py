"""Files of installed packages, named ``package:resource``, such as reference data that a PostgreSQL step loads."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from trilake.errors import ConfigurationError

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"(?P<package>[A-Za-z_][A-Za-z0-9_.]*):(?P<resource>{_PART}(?:/{_PART})*)")


@contextmanager
def open_resource(name: str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file of an installed package.

    The file is in the package's folder or in its folder ``data/``, either directly or in the zip ``<resource>.zip``.
    The package is not imported, because old data packages often fail to import.

    :param name: ``package:resource``, such as ``countries:regions/europe.csv``.
    :raises ConfigurationError: the name has another form, the package is not installed, or it has no such file.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigurationError(
            f"{name!r} does not have the form package:resource.", hint="Write it like countries:europe.csv."
        )
    package, resource = match["package"], match["resource"]
    for folder in _folders(package):
        plain, zipped = folder / resource, folder / f"{resource}.zip"
        if plain.is_file():
            with plain.open("rb") as file:
                yield file
            return
        if zipped.is_file():
            with zipfile.ZipFile(zipped) as archive, archive.open(plain.name) as member:
                yield member  # type: ignore[misc]  # typeshed calls a ZipExtFile an IO[bytes]
            return
    raise ConfigurationError(
        f"The package {package} has no file {resource}.", hint="Check the name and the package's version."
    )


def _folders(package: str) -> list[Path]:
    try:
        spec = find_spec(package)
    except ImportError:
        spec = None  # the parent package is not installed
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"The package {package} is not installed.", hint="Add it to the project's dependencies, and install it."
        )
    return [Path(location, part) for location in spec.submodule_search_locations for part in ("", "data")]
