"""Which tests run beside which, when there is more than one worker; one platform for all; and no test has a deadline.

``TRILAKE_TEST_HOME=DIR`` keeps the platform: the first run starts it in DIR, later ones find it running.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.running_platform import Platform
    from trilake.endpoints import Endpoints
    from trilake.platform.embedded.home import Home

# An example may take its time on a machine that has other work: hypothesis would call 200 ms a failure.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")

_PROJECT = Path(__file__).parents[1]
# How a test asks for the whole platform
_PLATFORM = re.compile(r"\b(platform: Platform|endpoints: Endpoints)\b")
# Ends its services over and over, while others would wait: it has a platform of its own, if not one is kept for all.
_ENDS_IT = "tests/embedded/test_platform.py"


@cache
def _group(file: str) -> str:
    alone = file == _ENDS_IT and not os.environ.get("TRILAKE_TEST_HOME")
    shares = not alone and _PLATFORM.search((_PROJECT / file).read_text(encoding="utf-8"))
    return "the whole platform" if shares else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay on one worker, for their fixtures' sake; all tests of the whole platform share one.

    By file, and not by xdist's own marks: it writes those into the test's id, where this pytest does not look for them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.split("::", maxsplit=1)[0])

    return ByFile(config, log)


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
def platform() -> Iterator[Platform]:
    """A running platform, kept for the session, or for ever where ``TRILAKE_TEST_HOME`` says so."""
    from support.running_platform import running_platform

    with running_platform(os.environ.get("TRILAKE_TEST_HOME")) as platform:
        yield platform


@pytest.fixture(scope="session")
def endpoints(platform: Platform) -> Endpoints:
    """Where the running platform's services are."""
    return platform.endpoints
