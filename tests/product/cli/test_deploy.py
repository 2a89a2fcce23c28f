"""`trilake deploy`: DAGs and jobs become live together, and a run keeps both. Airflow's own Git bundle reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.airflow_task import ObjectStore, object_store
from trilake.cli.deploy import check
from trilake.errors import TrilakeError
from trilake.platform.hosts import deploy as module
from trilake.platform.hosts.deploy import DeployError, deploy
from trilake.spark import versions

PROJECT = Path(__file__).resolve().parents[3]
DAG = """
from datetime import datetime
from airflow.sdk import DAG
from trilake.operators.spark import SparkApplicationOperator
with DAG("orders", schedule=None, start_date=datetime(2024, 1, 1)):
    SparkApplicationOperator(task_id="curate", job="orders_curate")
"""

# As Airflow makes a bundle, in a process with its own home: which version is live, and what a version of it holds.
_BUNDLE = """
import sys
from pathlib import Path
from airflow.providers.git.bundles.git import GitDagBundle
from trilake.spark.versions import of_bundle
arguments = {"name": "trilake", "repo_url": sys.argv[1], "tracking_ref": "live", "subdir": "dags"}
version = sys.argv[2] if len(sys.argv) > 2 else None
bundle = GitDagBundle(**arguments, version=version)
bundle.initialize()
file = Path(bundle.path) / "orders.py"
current = version or bundle.get_current_version()
print("\\nbundle:", getattr(current, "version", current), of_bundle(str(file)), len(file.read_text()))
"""


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store("artifacts") as store:
        yield store


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, content in {
        "dags/orders.py": DAG,
        "spark_jobs/orders_curate.py": "def main(arguments):\n    pass\n",
        "sql/clickhouse/orders/table.sql": "CREATE TABLE orders (id Int64) ENGINE = MergeTree ORDER BY id",
        "dags/__pycache__/orders.cpython-311.pyc": "compiled",
        ".env": "OLTP_PASSWORD=secret",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "bundle" / "repository.git"


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "--git-dir", str(repository), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def seen_by_airflow(repository: Path, tmp_path: Path, version: str = "") -> tuple[str, str, int]:
    """The version that a bundle has, the jobs' version in it, and the length of its DAG's file."""
    done = subprocess.run(
        [sys.executable, "-c", _BUNDLE, str(repository), *([version] if version else [])],
        env={
            "PATH": "/usr/bin:/bin",
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(tmp_path / "bundles"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    _, live, jobs, length = next(line for line in done.stdout.splitlines() if line.startswith("bundle: ")).split()
    return live, jobs, int(length)


def test_what_is_live_is_the_projects_dags_jobs_and_sql_under_the_version_of_the_pushed_jobs(
    store: ObjectStore, project: Path, repository: Path
) -> None:
    version, commit, changed = deploy(store.client, project, repository)
    assert changed
    assert git(repository, "rev-parse", "live") == commit
    assert git(repository, "ls-tree", "-r", "--name-only", "live").splitlines() == [
        "JOBS_VERSION",
        "dags/orders.py",
        "spark_jobs/orders_curate.py",
        "sql/clickhouse/orders/table.sql",
    ]
    assert git(repository, "show", "live:JOBS_VERSION") == version
    assert versions.jobs(store.client, version) == ["orders_curate"]
    # again: nothing is to be done
    assert deploy(store.client, project, repository) == (version, commit, False)


def test_a_run_under_way_keeps_its_dag_and_its_jobs(
    store: ObjectStore, project: Path, repository: Path, tmp_path: Path
) -> None:
    first_jobs, first, _ = deploy(store.client, project, repository)
    assert seen_by_airflow(repository, tmp_path) == (first, first_jobs, len(DAG))
    (project / "dags" / "orders.py").write_text(f"{DAG}# changed\n")
    (project / "spark_jobs" / "orders_curate.py").write_text("def main(arguments):\n    print(arguments)\n")
    jobs, commit, _ = deploy(store.client, project, repository)
    assert (jobs != first_jobs, commit != first) == (True, True)
    assert seen_by_airflow(repository, tmp_path) == (commit, jobs, len(DAG) + len("# changed\n"))
    # as a task of the earlier run finds it, on a machine that has never seen it
    shutil.rmtree(tmp_path / "bundles")
    assert seen_by_airflow(repository, tmp_path, first) == (first, first_jobs, len(DAG))


@pytest.mark.parametrize("step", ["add", "update-index", "write-tree", "commit-tree", "update-ref"])
def test_who_dies_half_way_leaves_what_was_live(
    store: ObjectStore, project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _, first, _ = deploy(store.client, project, repository)
    (project / "dags" / "orders.py").write_text(f"{DAG}# {step}\n")
    real = module._git

    def dying(*arguments: str, **options: object) -> str:
        if arguments[0] == step:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_git", dying)
        with pytest.raises(KeyboardInterrupt):
            deploy(store.client, project, repository)
    assert git(repository, "rev-parse", "live") == first
    _, commit, changed = deploy(store.client, project, repository)
    assert changed
    assert git(repository, "rev-parse", "live", "live^") == f"{commit}\n{first}"


def test_of_two_who_deploy_at_once_one_is_refused(
    store: ObjectStore, project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = module._git, []

    def meeting(*arguments: str, **options: object) -> str:
        if arguments[0] == "update-ref":
            with pytest.raises(DeployError, match="Another deployment to") as told:
                deploy(store.client, project, repository)
            refused.append(told)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_git", meeting)
    _, commit, _ = deploy(store.client, project, repository)
    assert len(refused) == 1
    assert git(repository, "rev-parse", "live") == commit


def test_what_a_killed_git_leaves_is_in_nobodys_way(store: ObjectStore, project: Path, repository: Path) -> None:
    # half a repository, under the name that it has while it is made
    (repository.with_name(f".{repository.name}.new") / "refs").mkdir(parents=True)
    _, first, _ = deploy(store.client, project, repository)
    for lock in ("refs/heads/live.lock", "packed-refs.lock"):
        (repository / lock).touch()
    (project / "dags" / "orders.py").write_text(f"{DAG}# changed\n")
    _, commit, changed = deploy(store.client, project, repository)
    assert changed
    assert git(repository, "rev-parse", "live", "live^") == f"{commit}\n{first}"


def test_this_project_can_be_deployed(capfd: pytest.CaptureFixture[str]) -> None:
    check(PROJECT)
    assert re.search(r"[1-9]\d* DAGs, [1-9]\d* jobs and [1-9]\d* steps of sql/ are in order", capfd.readouterr().err)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("dags/orders.py", f"{DAG}import nothing_like_it", r"orders\.py: .*nothing_like_it"),
        ("dags/orders.py", DAG.replace("orders_curate", "missing"), r"orders\.curate runs the job missing"),
        *(
            # each is a process that imports Airflow
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("dags/orders.py", "DAG = 1", "no DAG"),
                ("spark_jobs/orders_curate.py", "def run():\n    pass\n", r"orders_curate\.py has no main"),
                ("spark_jobs/orders_curate.py", "def main(:\n", r"orders_curate\.py, line 1"),
                ("sql/clickhouse/orders/1_x.sql", "SELECT 1", "begins with a digit but is not named like a step"),
            )
        ),
    ],
)
def test_what_would_not_run_is_not_deployed(project: Path, file: str, content: str, told: str) -> None:
    (project / file).write_text(content)
    with pytest.raises(TrilakeError, match=told):
        check(project)
