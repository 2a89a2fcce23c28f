"""A fault in the middle of a run, its remedy, the DAG's own retries; and then all is as if nothing had been."""

from __future__ import annotations

import time

import pytest
from laboratory import Laboratory, Undisturbed

from support.fault_blame import says
from support.fault_schedule import Schedule

WORKING = ("running", "deferred")
# A task's process outlives its success by the time that it takes to send its log.
ENDING_S = 20


def test_a_fault_changes_nothing_but_the_time(one: Schedule, laboratory: Laboratory, undisturbed: Undisturbed) -> None:
    faults, runs, holdings = laboratory.faults, laboratory.runs, laboratory.holdings
    if one.act == "fill" and faults.unfit:
        pytest.skip(f"no disk can be filled: {faults.unfit}")
    faults.restore()
    runs.await_quiet()
    laboratory.restore(undisturbed)
    before = holdings.left()
    moment = one.moment * undisturbed.seconds[one.dag][one.task]
    while True:
        runs.await_quiet()
        run_id = laboratory.start(one.dag)
        instance, state = runs.await_moment(one.dag, run_id, one.task, moment)
        if state in WORKING and faults.await_victim(one, instance):
            break
        moment /= 2  # the machine has become quicker, and the step, or its driver, was over
    print(f"{run_id}: after {moment:.1f} s the step is {state}, and is struck")
    scheduler = faults.scheduler()
    with faults.lasting(one, instance):
        time.sleep(one.seconds)
    ended = runs.await_end(one.dag, run_id)
    runs.await_quiet()
    if one.act == "fill":
        faults.restart(one.victim)  # a file that was written in part is met when it is read again

    tries = runs.failed_tries(one.dag, run_id)
    for failed in tries:
        print(f"--- {failed.task}, try {failed.number} ({failed.state})\n{failed.log}")
    assert ended == "success"
    assert holdings.held() == undisturbed.held
    until = time.monotonic() + ENDING_S
    while (left := holdings.left(since=before)) and time.monotonic() < until:
        time.sleep(0.5)
    assert left == {}
    schedulers = faults.last_words_of(scheduler)
    for failed in tries:
        assert says(one, failed.log, schedulers), f"the log of {failed.task}, try {failed.number}, does not say why"
