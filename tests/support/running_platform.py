"""A platform that tests use, and the command line as a user calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trilake.endpoints import Endpoints
from trilake.platform.embedded import platform as lifecycle
from trilake.platform.embedded.home import Home

PROJECT = Path(__file__).parents[2]
# Runs by itself, and would finish what tests of publications leave unfinished on purpose.
_NOT_COPIED = ("__pycache__", "publication_housekeeping.py")


@dataclass(frozen=True)
class Platform:
    """A running platform.

    :param env: what a process needs to use it: a shell's environment with ``connections.env`` in it.
    :param airflow_too: whether Airflow runs, too.
    """

    home: Home
    endpoints: Endpoints
    env: dict[str, str]
    airflow_too: bool = True

    def up(self) -> None:
        lifecycle.up(self.home, airflow_too=self.airflow_too)

    def with_airflow(self) -> Platform:
        whole = replace(self, airflow_too=True)
        whole.up()
        return whole

    def down(self) -> bool:
        return lifecycle.down(self.home)

    def trilake(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """The command line, as a user calls it: it knows the home and the project, and nothing else."""
        return run_trilake(self.home.path, *arguments, timeout=timeout, TRILAKE_PROJECT=str(self.home.project))


@contextmanager
def running_platform(
    kept: str | None,
    add: Callable[[Path], None] = lambda project: None,
    make_home: Callable[[Path, Path], Home] = Home,
    *,
    airflow_too: bool = True,
) -> Iterator[Platform]:
    """A platform in the folder `kept`, found or started there and left running; None: one that ends with the tests.

    :param add: puts more into the copied project.
    :param make_home: of the home's folder and the project.
    """
    # the services import the project's package as the tests do, installed or not
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT / "plugins"), before]))
    folder = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="trilake-test-"))
    if not kept:
        folder.chmod(0o711)
    project = copy_project(folder.resolve() / "project")
    add(project)
    home = make_home(folder.resolve() / "home", project)
    try:
        lifecycle.up(home, airflow_too=airflow_too)
        environment = home.environment()
        yield Platform(home, Endpoints.from_environment(environment), {**os.environ, **environment}, airflow_too)
    finally:
        if not kept:
            lifecycle.down(home)
            shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def copy_project(folder: Path) -> Path:
    """A copy of what data engineers write (dags/, spark_jobs/, sql/), for tests to add to; the rest is linked."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dags", "spark_jobs", "sql"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    for name in ("examples", "pyproject.toml"):
        if not (folder / name).exists():
            (folder / name).symlink_to(PROJECT / name)
    return folder


def run_trilake(home: Path, *arguments: str, timeout: float = 600, **environ: str) -> subprocess.CompletedProcess[str]:
    """``trilake ...`` in a process of its own."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "TRILAKE"))}
    environment = known | {"TRILAKE_HOME": str(home), "TRILAKE_PROJECT": str(PROJECT)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT / "plugins"), known.get("PYTHONPATH")]))
    program = "from trilake.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | environ,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd="/",
    )
