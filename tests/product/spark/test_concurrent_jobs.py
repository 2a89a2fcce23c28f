"""Two runs of one job over the same partitions, on real Spark, Iceberg and S3: good rows and refused ones are one's."""

from __future__ import annotations

import secrets
import signal
from typing import Any

import pytest

from support import spark_session
from support.concurrent_jobs import MONTH
from support.running_platform import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * spark_session.TIMEOUT_S)]


def held(rows: list[int], run: str, files: str) -> dict[str, Any]:
    return {"rows": rows, "refused": [[f"refused in {name}", run] for name in files]}


@pytest.fixture(scope="module")
def meetings(platform: Platform) -> dict[str, Any]:
    told, _ = spark_session.run(platform, "support.concurrent_jobs:meet")
    return dict(told)


@pytest.mark.parametrize(("lines", "rows"), [("good lines", [1, 2]), ("no good line", [])])
def test_a_run_that_pinned_its_input_earlier_cannot_replace_one_that_knew_more(
    meetings: dict[str, Any], lines: str, rows: list[int]
) -> None:
    told = meetings[lines]
    assert told["quick"] == told["again"] == "committed"
    assert "during run slow." in told["slow"]
    assert told["after the slow run"] == held(rows, "quick", "ab")
    assert told["after another run"] == held(rows, "again", "ab")
    # what was only read is not claimed
    assert told["hands while one reads"] == [[MONTH], [MONTH]]
    assert told["hands when the quick one has committed"] == [[], []]
    assert told["hands when more has come before a commit"] == [[MONTH], []]


def test_a_run_that_begins_while_another_one_commits_waits_and_leaves_both_tables_to_that_one(
    meetings: dict[str, Any],
) -> None:
    told = meetings["a turn"]
    assert told["first"] == "committed"
    assert "during run second." in told["second"]
    assert told["after both"] == held([1], "first", "a")


def test_a_run_that_was_overtaken_after_its_commit_does_not_replace_the_other_ones_rows_in_postgresql(
    meetings: dict[str, Any],
) -> None:
    told = meetings["a mart"]
    assert told["later"] == "written"
    assert "during run a." in told["earlier"]
    assert told["rows"] == [1, 2]


def test_a_file_that_is_replaced_while_a_run_commits_fails_it_and_the_next_try_replaces_what_it_committed(
    meetings: dict[str, Any],
) -> None:
    told = meetings["a new file"]
    assert told["after it"] == held([2], "first", "a"), "the new lines came in: there is nothing to find out"
    assert "a.csv changed while the job read it. Snapshot " in told["first"]
    assert "Run the window again to replace it" in told["first"]
    assert told["retry"] == "committed"
    assert told["after the retry"] == held([2], "retry", "a")


@pytest.mark.nightly
def test_what_a_run_leaves_that_is_killed_between_both_tables_is_put_right_by_the_next(platform: Platform) -> None:
    name = f"t_{secrets.token_hex(4)}"
    killed = spark_session.start(platform, "support.concurrent_jobs:die_between", name)
    said, _ = killed.communicate(timeout=spark_session.TIMEOUT_S)
    assert killed.returncode == -signal.SIGKILL, said[-4000:]
    told, _ = spark_session.run(platform, "support.concurrent_jobs:go_on", name)
    assert told["before"] == held([1], "dead", "ab")
    assert told["retry"] == "committed"
    assert told["after"] == held([1, 2, 3], "retry", "abc")
    assert told["twice"] == ["committed", "committed"]
