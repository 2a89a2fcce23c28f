"""A project is found by its mark, from any folder inside it, or by its name in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilake.cli.demo import load
from trilake.errors import ConfigurationError
from trilake.project import find_project, is_project, sql_folder

PROJECT = Path(__file__).parents[2]


def team(folder: Path, text: str = '[project]\nname = "team"\n[tool.trilake]\n') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_a_project_is_found_from_any_folder_in_it_whatever_its_name(tmp_path: Path) -> None:
    project = team(tmp_path / "team")
    (project / "dags" / "shared").mkdir(parents=True)
    assert find_project(project / "dags" / "shared", {}) == project
    assert find_project(PROJECT / "dags", {}) == PROJECT
    assert find_project(tmp_path, {"TRILAKE_PROJECT": str(project)}) == project


def test_a_pyproject_of_another_program_in_between_is_passed(tmp_path: Path) -> None:
    project = team(tmp_path / "team")
    inner = team(project / "tools", '[project]\nname = "trilake"\n')
    assert not is_project(inner)
    assert find_project(inner, {}) == project


def test_where_there_is_no_project_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is not inside a Trilake project.*`trilake init FOLDER`"):
        find_project(tmp_path, {})
    with pytest.raises(ConfigurationError, match=r"which is not a Trilake project\. Set it to a folder whose"):
        find_project(PROJECT, {"TRILAKE_PROJECT": str(tmp_path)})


def test_a_pyproject_that_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml is not valid TOML"):
        find_project(team(tmp_path, "[tool.trilake"), {})


def test_the_sql_of_a_dag_is_that_of_its_own_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "dags" / "deep").mkdir(parents=True)
    (tmp_path / "bundle" / "sql").mkdir()
    assert sql_folder(str(tmp_path / "bundle/dags/deep/x.py")) == tmp_path / "bundle" / "sql"
    with pytest.raises(ConfigurationError, match="has a folder sql/"):
        sql_folder("/nowhere/dags/x.py")


def test_the_demo_is_the_projects_own(tmp_path: Path) -> None:
    project = team(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no demo: its pyproject\.toml names none"):
        load(project)
    team(tmp_path, '[tool.trilake]\ndemo = "show.py"\n')
    with pytest.raises(ConfigurationError, match=r"show\.py is missing"):
        load(project)
    (project / "show.py").write_text("")
    with pytest.raises(ConfigurationError, match=r"has no function run\(\)"):
        load(project)
    (project / "show.py").write_text("def run(*given):\n    return given\n")
    assert load(project)(1, 2) == (1, 2)
    assert load(PROJECT).__module__ == "trilake_demo"


def test_the_dag_processor_passes_over_the_packages_that_dags_share() -> None:
    from airflow._shared.module_loading import find_path_from_directory

    found = {Path(path).name for path in find_path_from_directory(str(PROJECT / "dags"), ".airflowignore", "glob")}
    assert {"flights.py", "lake_maintenance.py"} <= found
    assert not found & {path.name for path in (PROJECT / "dags" / "nyc").glob("*.py")}
