"""A team's own repository: the wheel in a fresh environment, `trilake init`, a data set, from a file to ClickHouse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
LOCK = PROJECT / "plugins/trilake/platform/requirements/project.txt"
DAY = "2026-02-01"
# Two rows, one of them twice, and a line that is refused.
CSV = """id,happened_at,amount,note
1,2026-02-01T00:00:00Z,1.5,first
2,2026-02-01T23:59:59Z,,
2,2026-02-01T23:59:59Z,,
x,2026-02-01T00:00:00Z,1,no number
"""
# the whole test, installation and start of a platform included, on a machine that is busy
TIMEOUT_S = 3600
RUN_TIMEOUT_S = 1500
_BUILD = (
    "import sys; from hatchling.builders.wheel import WheelBuilder; "
    "print(*WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard']))"
)
# As a team would ask it: the DAG's run and its end, through the environment's own Airflow client.
_RUN = """
import sys, time
from trilake.platform.airflow_api import AirflowApi
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.home import Home
url, user, password = administrator(Home.locate())
with AirflowApi(url, user, password) as api:
    api.wait_for_dags("orders")
    api.unpause("orders")
    run = api.trigger("orders", {"start": sys.argv[1]})
    until = time.monotonic() + float(sys.argv[2])
    while (state := api.run("orders", run)["state"]) not in ("success", "failed"):
        assert time.monotonic() < until, api.tasks("orders", run)
        time.sleep(1)
    if state == "failed":
        failed = [task for task in api.tasks("orders", run) if task.state == "failed"]
        sys.exit("\\n".join(line for task in failed for line in api.last_lines("orders", run, task)))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


@dataclass(frozen=True)
class Team:
    """An environment and a project that know nothing of this repository."""

    environment: Path
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """No variable of the tests' own process, such as PYTHONPATH, nor of another Airflow is passed on."""
        passed_on = ("HOME", "XDG_CACHE_HOME", "LANG", "SSL_CERT_FILE", "JAVA_HOME", "UV_CACHE_DIR")
        variables = {name: os.environ[name] for name in passed_on if name in os.environ}
        variables["PATH"] = f"{self.environment / 'bin'}:{os.environ['PATH']}"
        variables["AIRFLOW_HOME"] = str(self.folder.parent / "airflow")  # of `airflow` and of the project's tests
        return variables

    def run(self, *command: str, fails: bool = False) -> str:
        """A command as a member of the team types it. Gives what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    # not below pytest's own folders: as root, PostgreSQL's OS user cannot get there
    scratch = Path(tempfile.mkdtemp(prefix="trilake-team-"))
    scratch.chmod(0o711)
    team = Team(scratch / "environment", scratch / "shop")
    try:
        built = subprocess.run(
            [sys.executable, "-c", _BUILD, str(PROJECT), str(scratch)], capture_output=True, text=True, check=True
        )
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(team.environment)], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", str(team.environment / "bin/python")]
        subprocess.run([*install, "--no-deps", built.stdout.split()[-1]], check=True)
        bare = subprocess.run(
            [team.environment / "bin/trilake"], env=team.variables, capture_output=True, text=True, check=False
        )
        assert (bare.returncode, bare.stderr.count("\n")) == (1, 1), bare.stderr
        assert "pip install 'trilake[airflow]'" in bare.stderr
        # the lock that the wheel itself names, and its packages as links to uv's cache where the disk is the same
        named = subprocess.run(
            [team.environment / "bin/python", "-m", "trilake.platform.requirements"],
            env=team.variables,
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        lock = Path(named.stdout.strip())
        assert lock.is_relative_to(team.environment)
        assert lock.read_bytes() == LOCK.read_bytes()
        subprocess.run([*install, "--require-hashes", "--requirements", str(lock)], check=True)
        team.folder.mkdir()
        team.run("trilake", "init", ".")
        yield team
        if (team.folder / ".trilake").exists():
            team.run("trilake", "down")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def test_the_environment_is_that_of_the_lock_and_airflow_knows_the_provider(team: Team) -> None:
    found = {one["what"]: one for one in json.loads(team.run("trilake", "doctor", "--json"))}
    assert found["packages"]["state"] == "ok", found["packages"]
    provider = json.loads(team.run("airflow", "providers", "get", "trilake", "--output", "json"))
    assert provider == [{"Provider": "trilake", "Version": version("trilake")}]


def test_a_data_set_of_a_team_goes_from_a_file_to_clickhouse(team: Team, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(CSV)
    team.run("trilake", "new", "dataset", "orders", "--grain", "day")
    team.run("python", "-m", "pytest", "--quiet")
    team.run("trilake", "deploy", "--check")
    assert "has no demo" in team.run("trilake", "demo", fails=True)
    team.run("trilake", "up")
    team.run("trilake", "put", "orders", DAY, str(tmp_path / "orders.csv"))
    # a dry run counts without committing
    counted = json.loads(team.run("trilake", "run", "orders_curate", "--partition", DAY, "--json"))
    assert counted["counts"][DAY] == {"rows_in": 4, "curated": 2, "quarantined": 1, "duplicates": 1}
    assert team.run("trilake", "jobs", "push") == team.run("trilake", "jobs", "push"), "the same files, another version"
    # Trilake's own tables come first, and nothing is left to apply
    steps = json.loads(team.run("trilake", "migrate", "--plan", "--json"))
    assert {step["state"] for step in steps} == {"applied"}
    assert steps[0]["step"].startswith("trilake/schema/sql/postgres/")
    began = time.monotonic()
    team.run("python", "-c", _RUN, DAY, str(RUN_TIMEOUT_S))
    print(f"the DAG's run took {time.monotonic() - began:.0f} s")
    rows = json.loads(team.run("trilake", "sql", "--json", "SELECT id, amount FROM orders ORDER BY id"))
    assert [(int(row["id"]), row["amount"]) for row in rows] == [(1, 1.5), (2, None)]
