"""The seeds of tests/faults: the same seed is the same schedule, and forty of them leave nothing out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from support import fault_schedule
from trilake.platform.embedded.home import SERVICES

ROUNDS = st.integers(0, 500).map(lambda number: number * fault_schedule.ROUND)


@settings(max_examples=30, deadline=None)
@given(ROUNDS)
def test_a_round_strikes_every_step_with_every_kind_of_fault_that_fits(first: int) -> None:
    found = list(fault_schedule.schedules(first, fault_schedule.ROUND))
    assert {(one.dag, one.task) for one in found} == set(fault_schedule.STEPS)
    assert {(one.act, one.victim) for one in found} == set(fault_schedule.KINDS)
    assert all(fault_schedule.fits((one.dag, one.task), one.act, one.victim) for one in found)


@settings(max_examples=30, deadline=None)
@given(ROUNDS)
def test_the_first_eight_of_a_round_are_eight_kinds_of_fault_of_every_act(first: int) -> None:
    found = list(fault_schedule.schedules(first, fault_schedule.FIRST))
    assert len({(one.act, one.victim) for one in found}) == fault_schedule.FIRST
    assert {one.act for one in found} == {"kill", "stall", "cut", "fill", "lose", "reshard"}


@given(st.integers(0, 20_000))
def test_a_fault_lasts_half_a_minute_at_the_most_and_strikes_within_its_step(seed: int) -> None:
    one = fault_schedule.schedule(seed)
    assert 0 <= one.moment < 1
    assert 0 <= one.seconds <= 30
    assert fault_schedule.schedule(seed) == one


def test_a_seed_says_the_same_in_another_process() -> None:
    program = "from support import fault_schedule; print(*fault_schedule.schedules(0, 40), sep='\\n')"
    folder = Path(fault_schedule.__file__).parents[1]
    said = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [str(one) for one in fault_schedule.schedules(0, 40)]


def test_every_service_is_killed_and_every_task_of_a_dag_that_moves_rows_is_a_step() -> None:
    from airflow.dag_processing.dagbag import DagBag

    assert {victim for act, victim in fault_schedule.KINDS if act == "kill"} == {*SERVICES, "driver", "task"}
    bag = DagBag(Path(__file__).parents[2] / "dags")
    # for Spark it is a step like flights.curate, and it writes only an agent's own files
    others = [dag for dag in bag.dags.values() if dag.dag_id != "agent_spark_sql"]
    assert {(dag.dag_id, task_id) for dag in others for task_id in dag.task_ids} == set(fault_schedule.STEPS)
