"""The examples of the provider's classes, run by Airflow's scheduler on the platform, as an engineer would run them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseHook, BaseOperator

from support.running_platform import PROJECT, Platform
from support.secrets_left import secrets_left, task_logs
from trilake.platform.airflow_api import AirflowApi
from trilake.platform.embedded.airflow import administrator

EXAMPLES = PROJECT / "examples"
NAMES = sorted(file.stem for file in (EXAMPLES / "dags").glob("*.py"))
# Where an example's last task says what it found
FOUND = {
    "clickhouse_operator": ("report", 1000),
    "iceberg_to_clickhouse": ("report", 16),
    "s3_to_clickhouse": ("report", 560),
    # of the mart purchases and rows, rows published, warnings of the table's checks
    "spark_application": ("report", [200, 58, 200, 2]),
}
# Nobody uses these as they are: other classes of the provider do.
BASES = {"ProjectOperator", "PublishOperator", "WindowedOperator"}
RUN_TIMEOUT_S = 240


def public_classes() -> dict[str, type]:
    """Hooks, operators, sensors and transfers by their names."""
    found: dict[str, type] = {}
    for folder in ("hooks", "operators", "sensors", "transfers"):
        package = importlib.import_module(f"trilake.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"trilake.{folder}."):
            for name, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                ours = member.__module__ == module.name and not name.startswith("_")
                if ours and issubclass(member, (BaseHook, BaseOperator)):
                    found[name] = member
    return found


@pytest.mark.parametrize("name", sorted(public_classes()))
def test_every_public_class_says_what_it_is_for(name: str) -> None:
    documented = inspect.cleandoc(public_classes()[name].__doc__ or "")
    assert len(documented) > 60


@pytest.mark.parametrize("name", sorted(set(public_classes()) - BASES))
def test_every_public_class_is_used_by_a_dag_that_a_test_runs(name: str) -> None:
    texts = [file.read_text() for folder in (PROJECT / "dags", EXAMPLES / "dags") for file in folder.glob("*.py")]
    assert any(re.search(rf"\b{name}\b", text) for text in texts)


def test_the_documentation_tells_of_every_public_class() -> None:
    told = (PROJECT / "docs" / "reference" / "provider.md").read_text()
    assert not [name for name in public_classes() if f".{name}`" not in told]


def test_the_documentation_shows_the_example_job_as_it_is() -> None:
    shown = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "reference" / "jobs.md").read_text(), re.DOTALL)
    assert shown
    assert all(text in (EXAMPLES / "spark_jobs" / "purchases_curate.py").read_text() for text in shown)


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


@pytest.fixture(scope="module")
def runs(platform: Platform) -> dict[str, Any]:
    """Each example's run: all at once, as they come."""
    for folder in ("dags", "spark_jobs", "sql"):
        shutil.copytree(EXAMPLES / folder, Path(platform.home.project) / folder, dirs_exist_ok=True)
    migrated = platform.trilake("migrate")
    assert migrated.returncode == 0, migrated.stderr
    pushed = platform.trilake("jobs", "push")
    assert pushed.returncode == 0, pushed.stderr
    ended: dict[str, Any] = {}
    url, user, password = administrator(platform.home)
    with AirflowApi(url, user, password) as api:
        api.wait_for_dags(*NAMES)
        started = {name: (api.unpause(name), api.trigger(name))[1] for name in NAMES}
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while len(ended) < len(started) and time.monotonic() < deadline:
            for name in set(started) - set(ended):
                state = api.run(name, started[name])["state"]
                if state in ("success", "failed"):
                    tasks = api.tasks(name, started[name])
                    logs = {t.task_id: api.last_lines(name, started[name], t, 30) for t in tasks if t.state == "failed"}
                    task_id, _ = FOUND.get(name, (None, None))
                    found = api.xcom(name, started[name], task_id) if task_id and state == "success" else None
                    ended[name] = (state, logs, found)
            time.sleep(1)
    return ended


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(runs: dict[str, Any], name: str) -> None:
    assert name in runs, f"not at its end after {RUN_TIMEOUT_S} s"
    state, logs, found = runs[name]
    assert state == "success", logs
    assert found == FOUND.get(name, (None, None))[1]


@pytest.mark.nightly
def test_what_ran_left_no_secret_in_a_log_or_in_airflows_database(platform: Platform, runs: dict[str, Any]) -> None:
    logs = task_logs(platform.home)
    assert len([file for file in logs if "dag_id=clickhouse_operator" in str(file)]) >= 2
    assert not secrets_left(platform.home)
