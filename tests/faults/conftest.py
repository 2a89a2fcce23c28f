"""``--schedules N`` and ``--seed S``: the schedules of the seeds S to S + N - 1, all on one platform."""

from __future__ import annotations

import os
from collections.abc import Iterator

import laboratory as laboratories
import pytest
import schedule
from laboratory import Laboratory, Undisturbed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--schedules", type=int, default=schedule.ROUND, help="how many faults")
    parser.addoption("--seed", type=int, default=0, help="of the first fault; each later one has the next")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "one" in metafunc.fixturenames:
        option = metafunc.config.getoption
        found = list(schedule.schedules(option("--seed"), option("--schedules")))
        metafunc.parametrize("one", found, ids=map(str, found))


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    with laboratories.laboratory(os.environ.get("TRILAKE_TEST_HOME")) as laboratory:
        yield laboratory


@pytest.fixture(scope="session")
def undisturbed(laboratory: Laboratory) -> Undisturbed:
    found = laboratory.undisturbed(kept="TRILAKE_TEST_HOME" in os.environ)
    print(f"Undisturbed, in seconds: {found.seconds}")
    return found
