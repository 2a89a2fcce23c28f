"""One platform behind proxies for all schedules, with what a run of each DAG makes there that nothing disturbs.

``--schedules N`` and ``--seed S``: the schedules of the seeds S to S + N - 1.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schedule
from faults import Faults, ProxiedHome, proxies, small_disks
from running_platform import PROJECT, running_platform
from runs import Runs
from state import MONTH, Holdings

from trilake.endpoints import Endpoints

CONF = {"flights": {"start": MONTH}}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--schedules", type=int, default=schedule.ROUND, help="how many")
    parser.addoption("--seed", type=int, default=0, help="of the first; each later one has the next")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "one" in metafunc.fixturenames:
        option = metafunc.config.getoption
        found = list(schedule.schedules(option("--seed"), option("--schedules")))
        metafunc.parametrize("one", found, ids=map(str, found))


@dataclass(frozen=True)
class Undisturbed:
    """What runs that nothing disturbed made, and how long they took.

    :param seconds: by DAG and task.
    """

    held: dict[str, Any]
    seconds: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Laboratory:
    """The platform, what may befall it, and how it is seen."""

    faults: Faults
    runs: Runs
    holdings: Holdings


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    with ExitStack() as stack:

        def home(path: Path, project: Path) -> ProxiedHome:
            bare = ProxiedHome(path, project)
            made = stack.enter_context(proxies(bare))
            unfit.append(stack.enter_context(small_disks(bare)))
            fronts.update(made)
            return ProxiedHome(path, project, {name: proxy.port for name, proxy in made.items()})

        def add(project: Path) -> None:
            shutil.copy(PROJECT / "dags/publication_housekeeping.py", project / "dags")

        unfit: list[str] = []
        fronts: dict[str, Any] = {}
        platform = stack.enter_context(running_platform(os.environ.get("TRILAKE_TEST_HOME"), add, home))
        # the tests' own readings take the direct way
        direct = Endpoints.from_environment(_direct(platform.home))
        yield Laboratory(
            Faults(platform.home, fronts, unfit[0]), Runs(platform.home), Holdings(platform.home, direct)
        )


def _direct(home: ProxiedHome) -> dict[str, str]:
    from trilake.embedded.connections import connections
    from trilake.endpoints import as_environment

    return as_environment(connections(home.ports(), home.secrets()))


@pytest.fixture(scope="session")
def undisturbed(laboratory: Laboratory) -> Undisturbed:
    """Each DAG once, one after the other, with nothing that is at fault."""
    seconds: dict[str, dict[str, float]] = {}
    for dag in ("reference_snapshot", "flights", "flights_report", "publication_housekeeping", "lake_maintenance"):
        # what is emptied has to be there; the second run of a kept platform has it
        if dag == "publication_housekeeping":
            laboratory.holdings.empty(dag)
        run_id = laboratory.runs.trigger(dag, CONF.get(dag))
        assert laboratory.runs.await_end(dag, run_id) == "success", f"{dag} failed without a fault"
        laboratory.runs.await_quiet()
        seconds[dag] = laboratory.runs.seconds(dag, run_id)
    assert laboratory.holdings.left() == {}, "a run that nothing disturbed leaves something"
    print(f"Undisturbed, in seconds: {seconds}")
    return Undisturbed(laboratory.holdings.held(), seconds)
