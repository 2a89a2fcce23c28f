"""Which tests run beside which, when there is more than one worker; a platform for each; and no test has a deadline.

``TRILAKE_TEST_HOME=DIR`` keeps the platform: the first run starts it in DIR, later ones find it running.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.running_platform import Platform
    from trilake.endpoints import Endpoints
    from trilake.platform.embedded.home import Home

# An example may take its time on a machine that has other work: hypothesis would call 200 ms a failure.
settings.register_profile("quick", deadline=None, max_examples=30)
settings.register_profile("nightly", deadline=None, max_examples=300)
settings.load_profile("quick")
# Nor has the import of a DAG file in a test's own process.
os.environ["AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT"] = "600"

_CHOSEN = pytest.StashKey[str]()
# One session of Spark, one platform with the demo's year for all of them: a second one would cost more than it saves.
_TOGETHER = ("tests/spark/", "tests/product/cli/test_demo")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay on one worker, for their fixtures' sake. Files go out in the order of `testpaths`: those that
    take long first, so that both workers have work until the end.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", maxsplit=1)[0]
            return next((folder for folder in _TOGETHER if file.startswith(folder)), file)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", help="k/n: of n parts of the files the one of turn k; HEAD/n: the commit is the turn")


def _part(asked: str) -> tuple[int, int]:
    """Which part, from 0 on, and of how many."""
    which, _, parts = asked.partition("/")
    if which == "HEAD":
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout
        which = str(int(commit[:7], 16) % 1000)
    return int(which) % int(parts), int(parts)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Airflow comes last: those before it find a platform without it. With ``--part`` others are left out."""
    items.sort(key=lambda item: "whole_platform" in getattr(item, "fixturenames", ()))
    if not config.option.part:
        return
    part, parts = _part(config.option.part)
    files = sorted({item.path for item in items})
    chosen = set(files[part::parts])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in chosen])
    items[:] = [item for item in items if item.path in chosen]
    names = ", ".join(str(file.relative_to(config.rootpath)) for file in sorted(chosen))
    config.stash[_CHOSEN] = f"part {part + 1} of {parts}: {names}"


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    return config.stash.get(_CHOSEN, "")


@pytest.fixture
def fresh_home() -> Iterator[Home]:
    """A home that no platform was started in. Not below pytest's own folders: as root, PostgreSQL cannot get there."""
    from support.running_platform import PROJECT
    from trilake.platform.embedded import platform as lifecycle
    from trilake.platform.embedded.home import Home

    folder = Path(tempfile.mkdtemp(prefix="trilake-test-"))
    folder.chmod(0o711)
    home = Home((folder / "home").resolve(), PROJECT)
    try:
        yield home
    finally:
        lifecycle.down(home)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stores() -> Iterator[Platform]:
    """A running platform without Airflow, kept for the session, or for ever where ``TRILAKE_TEST_HOME`` says so.

    Each worker has its own: a test may end a service of it, if it brings it up again.
    """
    from support.running_platform import running_platform

    with running_platform(os.environ.get("TRILAKE_TEST_HOME"), airflow_too=False) as platform:
        yield platform


@pytest.fixture(scope="session")
def whole_platform(stores: Platform) -> Platform:
    """The same platform with Airflow, from here on."""
    return stores.with_airflow()


@pytest.fixture(scope="session")
def platform(stores: Platform) -> Platform:
    """What most tests need. One of Airflow's own has `platform` be the whole platform."""
    return stores


@pytest.fixture(scope="session")
def endpoints(stores: Platform) -> Endpoints:
    """Where the running platform's services are."""
    return stores.endpoints
