"""The folder with the hosts' files: Compose files, images, ``.env``. The project that they run may be elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trilake.project import PROJECT, find_project

_MARK = Path("docker", "vps_1", "compose.yml")


def has_hosts_files(folder: Path) -> bool:
    """Whether the folder is a checkout of Trilake's repository."""
    return (folder / _MARK).is_file()


def find_checkout(start: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The nearest folder with the hosts' files, from `start` upward. If there is none: the project's folder.

    :raises ConfigurationError: there is no such folder and no project.
    """
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if has_hosts_files(folder):
            return folder
    return find_project(start, environ)


def served_project(checkout: Path, settings: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Path:
    """The project whose DAGs, jobs and SQL the hosts run: ``TRILAKE_PROJECT`` of the environment, else of ``.env``.

    If neither sets it, this is the checkout's own project.

    :param settings: the variables of ``.env``.
    :raises ConfigurationError: the named folder is not a project.
    """
    folder = environ.get(PROJECT) or settings.get(PROJECT)
    return find_project(checkout, {PROJECT: str(checkout / folder)} if folder else {})
