"""A new project: whole, never over what is there, and like this repository's own where both have the same file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from trilake.cli.init import create, show
from trilake.errors import ConfigurationError
from trilake.project import find_project
from trilake.schema.steps import read_steps
from trilake.spark import versions

PROJECT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_new_project_is_whole_and_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "Our Shop"
    written = create(folder)
    assert set(contents(folder)) == set(written)
    assert find_project(folder / "dags" / "our_shop", {}) == folder
    document = tomllib.loads((folder / "pyproject.toml").read_text())
    assert document["project"]["name"] == "our-shop"
    assert document["project"]["dependencies"] == [f"trilake[airflow,spark,embedded]=={version('trilake')}"]
    assert versions.shared_packages(folder) == [folder / "dags" / "our_shop"]
    assert (folder / "dags" / ".airflowignore").read_text().splitlines()[-1] == "our_shop/"
    assert "lake_maintenance.py" in versions.build(folder)[0]
    assert read_steps(folder / "sql") == []
    assert len((folder / "README.md").read_text().splitlines()) <= 20
    assert "test" in yaml.safe_load((folder / ".github/workflows/ci.yml").read_text())["jobs"]


@pytest.mark.parametrize(
    "file",
    [
        "dags/agent_export.py",
        "dags/lake_maintenance.py",
        "dags/publication_housekeeping.py",
        "spark_jobs/lake_maintenance.py",
        "tests/spark/conftest.py",
    ],
)
def test_what_every_project_needs_is_the_same_here(tmp_path: Path, file: str) -> None:
    create(tmp_path / "shop")
    template = f"plugins/trilake/cli/templates/project/{file}.txt"
    assert (tmp_path / "shop" / file).read_text() == (PROJECT / file).read_text(), f"copy {file} to {template}"


def test_its_code_is_as_lint_wants_it(tmp_path: Path) -> None:
    create(tmp_path / "shop")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path / "shop")  # its rules go by folder
    (tmp_path / "shop" / "plugins").symlink_to(PROJECT / "plugins")
    for check in (["check"], ["format", "--check"]):
        command = [Path(sys.executable).parent / "ruff", *check, "--no-cache", "dags", "spark_jobs", "tests"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path / "shop")
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("there", ["README.md", ".gitignore", "dags/lake_maintenance.py"])
def test_a_file_that_is_there_stays_and_nothing_is_written_beside_it(tmp_path: Path, there: str) -> None:
    (tmp_path / "shop" / there).parent.mkdir(parents=True)
    (tmp_path / "shop" / there).write_text("mine\n")
    with pytest.raises(ConfigurationError, match=f"{there} already exists"):
        create(tmp_path / "shop")
    assert contents(tmp_path / "shop") == {Path(there): "mine\n"}


@pytest.mark.parametrize(
    ("name", "package", "what"),
    [
        ("calendar", "", "would hide the Python module calendar"),
        ("airflow", "", "would hide the Python module airflow"),
        ("shop", "sql", "would hide the Python module sql"),
        ("1st", "", "'1st' is not a valid name for a Python package"),
        ("shop", "a-b", "'a-b' is not a valid name for a Python package"),
        ("shop", "../up", "is not a valid name for a Python package"),
    ],
)
def test_a_package_that_cannot_be_one_writes_nothing(tmp_path: Path, name: str, package: str, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        create(tmp_path / name, package)
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(tmp_path / "calendar", "our_calendar")
    told = capsys.readouterr().out
    assert f"wrote {tmp_path / 'calendar/dags/our_calendar/__init__.py'}" in told
    assert "trilake new dataset NAME" in told
