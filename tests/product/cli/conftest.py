"""The platform with the demo's year, which the tests of several files ask."""

from __future__ import annotations

import pytest

from support.flights_source import rows_of
from support.running_platform import Platform

DEMO_TIMEOUT_S = 600


@pytest.fixture(scope="session")
def demo(whole_platform: Platform) -> str:
    """What the demo printed."""
    done = whole_platform.trilake("demo", timeout=DEMO_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def source() -> list[dict[str, str]]:
    """Every flight of the source, read by nothing of ours but the file's name."""
    return rows_of("flights.csv")
