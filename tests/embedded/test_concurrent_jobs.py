"""Two runs of one job over the same partitions, on real Spark, Iceberg and S3."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running_platform import PROJECT, Platform

from trilake.embedded import jars

pytestmark = pytest.mark.slow


def test_a_run_that_pinned_its_input_earlier_cannot_replace_one_that_knew_more(platform: Platform) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("concurrent_jobs.py")), str(jars.folder_of(PROJECT, "spark"))],
        env={
            **platform.env,
            "PYTHONPATH": str(PROJECT / "plugins"),
            "PYSPARK_PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert "while run slow was at work" in told["refused"]
    assert told["after the slow run"] == [1, 2]
    assert told["after another run"] == [1, 2]
    # what was only read is in nobody's hands
    assert told["when both have read"] == [["2013-01"], ["2013-01"]]
    assert told["when the quick one has committed"] == [[], []]
    assert told["when more has come before a commit"] == [["2013-01"], []]
