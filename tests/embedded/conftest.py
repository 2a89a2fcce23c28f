"""One platform for all embedded end-to-end tests.

``TRILAKE_TEST_HOME=DIR`` keeps it: the first run starts a platform in DIR, later ones find it running.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_platform import PROJECT, Platform, running_platform

from trilake.endpoints import Endpoints
from trilake.platform.embedded import platform as lifecycle
from trilake.platform.embedded.home import Home


@pytest.fixture
def fresh_home() -> Iterator[Home]:
    """A home that no platform was started in. Not below pytest's own folders: as root, PostgreSQL cannot get there."""
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
    with running_platform(os.environ.get("TRILAKE_TEST_HOME")) as platform:
        yield platform


@pytest.fixture(scope="session")
def endpoints(platform: Platform) -> Endpoints:
    """Where the running platform's services are."""
    return platform.endpoints
