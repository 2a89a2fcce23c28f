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
from running_platform import PROJECT, Platform, copy_project

from trilake.embedded import platform as lifecycle
from trilake.embedded.home import Home
from trilake.endpoints import Endpoints


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
    # the services import the project's package as the tests do, installed or not
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT / "plugins"), before]))
    kept = os.environ.get("TRILAKE_TEST_HOME")
    folder = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="trilake-test-"))
    if not kept:
        folder.chmod(0o711)
    home = Home(folder.resolve() / "home", copy_project(folder.resolve() / "project"))
    try:
        lifecycle.up(home)
        environment = home.environment()
        yield Platform(home, Endpoints.from_environment(environment), {**os.environ, **environment})
    finally:
        if not kept:
            lifecycle.down(home)
            shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def endpoints(platform: Platform) -> Endpoints:
    """Where the running platform's services are."""
    return platform.endpoints
