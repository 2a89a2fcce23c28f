"""Bad input is refused with the object named, or quarantined with reason and text; all rows are accounted for.

Without a commit it is refused alike, and what would be quarantined does not pass unnoticed either.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from support import corpus_cases, spark_session
from support.corpus_cases import Case
from support.running_platform import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(spark_session.TIMEOUT_S)]
CASES = dict(corpus_cases.cases())
# 10,000 are read alike, in minutes
FLOOD = int(os.environ.get("TRILAKE_FLOOD", "1000"))


# Each case is some Spark jobs, 4 s in all: with each push every sixth one runs.
NAMES = [pytest.param(name, marks=() if number % 6 == 0 else pytest.mark.nightly) for number, name in enumerate(CASES)]


@pytest.fixture(scope="module")
def outcomes(platform: Platform, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of the cases that were selected, all run in one session."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    wanted = [item.callspec.params["name"] for item in items if item.originalname == "test_a_case_of_the_corpus"]
    answer, _ = spark_session.run(platform, "support.corpus_work:run_cases", *wanted)
    return dict(answer)


@pytest.mark.parametrize("name", NAMES)
def test_a_case_of_the_corpus(outcomes: dict[str, Any], name: str) -> None:
    hold(CASES[name], outcomes[name])


def test_a_job_that_loses_or_makes_rows_commits_nothing(platform: Platform) -> None:
    told, _ = spark_session.run(platform, "support.corpus_work:run_careless")
    said = {how: message for how, (message, _, _) in told.items()}
    assert "4 rows were read, but 2 curated + 1 quarantined + 0 exact duplicates = 3." in said["drops a row"]
    assert "4 rows were read, but 4 curated + 1 quarantined + 0 exact duplicates = 5." in said["doubles a row"]
    assert "outside of its window 2013-01" in said["moves a row to another month"]
    for how, (_, kept, refused) in told.items():
        assert (kept, refused) == ([-2, -1], ["bad", "bad"]), f"it {how}: what an earlier run has committed"


@pytest.mark.nightly
def test_a_flood_of_tiny_files_is_read_whole(platform: Platform) -> None:
    told, _ = spark_session.run(platform, "support.corpus_work:run_flood", str(FLOOD))
    hold(corpus_cases.flood(FLOOD), told)


def hold(case: Case, told: Any) -> None:
    assert told["next month"] == ([[-2], ["bad"]] if case.held else [[], []])
    if case.refused:
        assert case.refused in (told["refused"] or "nothing was refused")
        assert (told["curated"], told["reasons"]) == (([-1], {"field count": 1}) if case.held else ([], {}))
        # what `read` itself has not refused
        if written := told.get("written"):
            assert case.refused in (written["refused"] or "nothing was refused")
            assert written["rows"] == []
        return
    assert told["refused"] is None
    assert told["counts"] == {
        "rows_in": case.rows,
        "curated": len(case.curated),
        "quarantined": sum(case.quarantined.values()),
        "duplicates": case.duplicates,
    }
    assert (told["curated"], told["reasons"]) == (sorted(case.curated), dict(case.quarantined))
    everything = {"refused": None, "rows": sorted(case.curated)}
    if case.quarantined:
        assert told["written"]["rows"] == []
        assert "are not in quarantine yet" in told["written"]["refused"]
        assert all(f"{reason} ({rows})" in told["written"]["refused"] for reason, rows in case.quarantined.items())
    else:
        assert told["written"] == everything
    assert told["written after"] == everything
    for file, raw in told["kept"]:
        content = case.objects[file].decode("utf-8", errors="replace").replace("\r\n", "\n")
        assert raw in content.split("\n"), file
