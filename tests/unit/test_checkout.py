"""The hosts' files are this repository's; the project that they run is the one that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.compose_rules import read
from trilake.cli.replica import ReplicaError, up
from trilake.errors import ConfigurationError
from trilake.platform.hosts.checkout import find_checkout, served_project

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def team(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("[tool.trilake]\n")
    return tmp_path


def test_the_checkout_is_found_from_where_one_is_and_not_by_the_projects_name(team: Path) -> None:
    assert find_checkout(PROJECT / "docs", {"TRILAKE_PROJECT": str(team)}) == PROJECT
    assert find_checkout(team, {"TRILAKE_PROJECT": str(PROJECT)}) == PROJECT, (
        "outside of it a project with .env will do"
    )
    (team / "inner").mkdir()
    with pytest.raises(ConfigurationError, match="is not a Trilake project"):
        find_checkout(team, {"TRILAKE_PROJECT": str(team / "inner")})


def test_a_replica_is_not_started_where_its_files_are_not(team: Path) -> None:
    with pytest.raises(ReplicaError, match=r"does not have the hosts' files\. Run this in a checkout"):
        up(team)
    assert not (team / ".env").exists()


def test_the_environment_names_the_project_before_the_file_and_the_checkout_is_the_last(team: Path) -> None:
    assert served_project(PROJECT, {}, {}) == PROJECT
    assert served_project(PROJECT, {"TRILAKE_PROJECT": str(team)}, {}) == team
    assert served_project(PROJECT, {"TRILAKE_PROJECT": "/nowhere"}, {"TRILAKE_PROJECT": str(team)}) == team
    with pytest.raises(ConfigurationError, match="TRILAKE_PROJECT names /nowhere, which is not a Trilake project"):
        served_project(PROJECT, {"TRILAKE_PROJECT": "/nowhere"}, {})


def test_every_part_of_a_project_that_a_container_sees_is_of_the_one_that_is_named() -> None:
    document = read((PROJECT / "docker" / "vps_1" / "compose.yml").read_text())
    volumes = [v for service in document["services"].values() for v in service.get("volumes", ())]
    of_project = [str(v) for v in (*volumes, *document["x-airflow"]["volumes"]) if "/opt/trilake/project/" in str(v)]
    parts = {v.removeprefix("${TRILAKE_PROJECT:-../..}/").partition(":")[0] for v in of_project}
    assert parts == {"dags", "pyproject.toml", "spark_jobs", "sql"}
