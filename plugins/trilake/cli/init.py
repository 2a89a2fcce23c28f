"""``trilake init FOLDER``: a new project that works at once."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from trilake.cli.new_files import refuse_taken, render, write
from trilake.errors import ConfigurationError

_WORD = re.compile(r"[^a-z0-9]+")
# A package of this name would hide the project's own folders or Trilake itself.
_TAKEN = frozenset({"trilake", "dags", "spark_jobs", "sql", "tests"}) | sys.stdlib_module_names


app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder. It is made if it does not exist.")],
    package: Annotated[
        str, typer.Option(help="Name of the package below dags/ that DAGs and jobs share. Default: the folder's name.")
    ] = "",
) -> None:
    """Write a small project with tests that works at once. No file is overwritten."""
    show(folder, package)


def create(folder: Path, package: str = "") -> list[Path]:
    """Write the files of a new project: all of them, or none.

    :param folder: it is made if it does not exist. It may have other files, such as those of a repository.
    :param package: name of the package below ``dags/`` that DAGs and jobs share. Default: the folder's name.
    :return: the written files, relative to `folder`.
    :raises ConfigurationError: a file exists already, or the package's name is not valid. Nothing was written.
    """
    folder = folder.absolute()
    package = package or _WORD.sub("_", folder.name.lower()).strip("_")
    _check_package(package)
    files = _render(package.replace("_", "-"), package)
    refuse_taken(folder, files, "Choose another folder. `trilake new dataset` adds a data set to a project.")
    return write(folder, files)


def show(folder: Path, package: str) -> None:
    """Call `create`, then print the written files and the next steps."""
    for path in create(folder, package):
        print(f"wrote {folder / path}")
    print(
        f"""
Next:
  cd {folder}
  pytest                                   to run its tests
  trilake up                               to start the platform on this machine
  trilake new dataset NAME --grain day     to add a data set
README.md says how others install the project."""
    )


def _check_package(package: str) -> None:
    if not package.isidentifier() or package != package.lower():
        raise ConfigurationError(
            f"{package!r} is not a valid name for a Python package.",
            hint="Use lower-case letters, digits and underscores: `trilake init FOLDER --package NAME`.",
        )
    if package in _TAKEN or importlib.util.find_spec(package) is not None:
        raise ConfigurationError(
            f"The package dags/{package}/ would hide the Python module {package}.",
            hint="Choose another name: `trilake init FOLDER --package NAME`.",
        )


def _render(name: str, package: str) -> dict[Path, str]:
    values = {"name": name, "package": package, "version": version("trilake")}
    templates = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        ".gitignore": "gitignore.txt",
        ".github/workflows/ci.yml": "ci.yml.txt",
        "dags/.airflowignore": "dags/airflowignore.jinja",
        f"dags/{package}/__init__.py": "dags/package.py.jinja",
        "dags/agent_export.py": "dags/agent_export.py.txt",
        "dags/lake_maintenance.py": "dags/lake_maintenance.py.txt",
        "dags/publication_housekeeping.py": "dags/publication_housekeeping.py.txt",
        "spark_jobs/lake_maintenance.py": "spark_jobs/lake_maintenance.py.txt",
        "sql/README.md": "sql_README.md.txt",
        "tests/test_dags.py": "tests/test_dags.py.txt",
        "tests/spark/conftest.py": "tests/spark/conftest.py.txt",
    }
    return render("project", templates, values)
