"""Finds a team's project: the folder with ``dags/``, ``spark_jobs/`` and ``sql/``.

A folder is a project if its ``pyproject.toml`` has a table ``[tool.trilake]``. A deployed bundle of DAGs has no such
file. There ``sql/`` is found from the path of the DAG's file: it is beside ``dags/``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError

# The environment variable that names a project.
PROJECT = "TRILAKE_PROJECT"
_FILE = "pyproject.toml"
_TABLE = "[tool.trilake]"


def find_project(start: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The project's folder: ``TRILAKE_PROJECT``, or else the nearest project in `start` or above it.

    :raises ConfigurationError: there is no project.
    """
    if named := environ.get(PROJECT):
        folder = Path(named).absolute()
        if not is_project(folder):
            raise ConfigurationError(
                f"{PROJECT} names {folder}, which is not a Trilake project.",
                hint=f"Set it to a folder whose {_FILE} has a table {_TABLE}.",
            )
        return folder
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if is_project(folder):
            return folder
    raise ConfigurationError(
        f"{here} is not inside a Trilake project: no {_FILE} in it or above it has a table {_TABLE}.",
        hint=f"Change to the project's folder, set {PROJECT} to it, or make a project with `trilake init FOLDER`.",
    )


def is_project(folder: Path) -> bool:
    """Whether the folder has a ``pyproject.toml`` with a table ``[tool.trilake]``.

    :raises ConfigurationError: the file exists, but cannot be read.
    """
    return _table(folder) is not None


def settings(project: Path) -> dict[str, Any]:
    """The settings in a project's ``[tool.trilake]``.

    :raises ConfigurationError: its ``pyproject.toml`` cannot be read.
    """
    return _table(project) or {}


def _table(folder: Path) -> dict[str, Any] | None:
    try:
        with open(folder / _FILE, "rb") as file:
            document = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise ConfigurationError(f"{folder / _FILE} cannot be read: {e.strerror}.") from None
    except ValueError as e:
        raise ConfigurationError(f"{folder / _FILE} is not valid TOML: {e}.", hint="Correct the file.") from None
    tools = document.get("tool")
    table = tools.get("trilake") if isinstance(tools, dict) else None
    return table if isinstance(table, dict) else None


def sql_folder(dag_file: str) -> Path:
    """The ``sql/`` of the project that a DAG's file belongs to, in the bundle version of the run.

    :raises ConfigurationError: no folder above the file has a ``sql/``.
    """
    for folder in Path(dag_file).resolve().parents:
        if (folder / "sql").is_dir():
            return folder / "sql"
    raise ConfigurationError(
        f"No folder above {dag_file} has a folder sql/.", hint="Put the DAG into the dags/ of a project that has sql/."
    )
