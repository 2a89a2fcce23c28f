"""``--schedules N`` and ``--seed S``: the schedules of the seeds S to S + N - 1, all on one platform."""

from __future__ import annotations

import os
from collections.abc import Iterator

import laboratory as laboratories
import pytest
from laboratory import Laboratory, Undisturbed

from support import fault_schedule


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--schedules", type=int, default=fault_schedule.ROUND, help="how many faults")
    parser.addoption("--seed", type=int, default=0, help="of the first fault; each later one has the next")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "one" in metafunc.fixturenames:
        found = _asked_for(metafunc.config)
        metafunc.parametrize("one", found, ids=map(str, found))


def _asked_for(config: pytest.Config) -> list[fault_schedule.Schedule]:
    return list(fault_schedule.schedules(config.getoption("--seed"), config.getoption("--schedules")))


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    with laboratories.laboratory(os.environ.get("TRILAKE_TEST_HOME")) as laboratory:
        yield laboratory


@pytest.fixture(scope="session")
def undisturbed(laboratory: Laboratory, pytestconfig: pytest.Config) -> Undisturbed:
    found = laboratory.undisturbed({one.dag for one in _asked_for(pytestconfig)})
    print(f"Undisturbed, in seconds: {found.seconds}")
    return found
