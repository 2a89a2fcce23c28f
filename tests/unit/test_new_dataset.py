"""A new data set's files: written once, formatted as the house does, shipped with the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from trilake.cli.declared_tasks import find_task
from trilake.cli.new import create, show
from trilake.cli.new_files import TEMPLATES
from trilake.errors import ConfigurationError
from trilake.schema.steps import read_steps

PROJECT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}


# long names need other line breaks; imports are sorted by the job's name
@pytest.mark.parametrize("grain", ["day", "month"])
@pytest.mark.parametrize("name", ["x", "orders", "y" * 28, "y" * 29, "y" * 30, "zebra_" + "z" * 34])
def test_what_is_written_is_as_lint_wants_it_and_is_known_as_a_data_set(tmp_path: Path, name: str, grain: str) -> None:
    written = create(tmp_path, name, grain)
    assert set(contents(tmp_path)) == set(written)
    assert {path.parts[0] for path in written} == {"dags", "spark_jobs", "sql", "tests"}
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)  # its rules go by folder
    (tmp_path / "plugins").symlink_to(PROJECT / "plugins")
    for check in (["check"], ["format", "--check"]):
        command = [Path(sys.executable).parent / "ruff", *check, "--no-cache", "dags", "spark_jobs", "tests"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
    assert find_task(tmp_path, f"{name}_curate").data_set.grain == grain
    assert [step.table for step in read_steps(tmp_path / "sql")] == [name]


@pytest.mark.parametrize(
    ("name", "grain", "what"),
    [
        ("Orders", "month", "is not a valid name for a data set"),
        ("1st", "month", "is not a valid name for a data set"),
        ("../orders", "month", "is not a valid name for a data set"),
        ("o" * 41, "month", "is not a valid name for a data set"),
        ("orders", "year", "not a grain"),
        ("calendar", "month", "would hide the Python module"),
        ("airflow", "month", "would hide the Python module"),
        ("flights", "month", "already declares a data set flights"),
    ],
)
def test_a_name_that_cannot_be_one_writes_nothing(tmp_path: Path, name: str, grain: str, what: str) -> None:
    shutil.copytree(PROJECT / "dags" / "nyc", tmp_path / "dags" / "nyc", ignore=shutil.ignore_patterns("__pycache__"))
    before = contents(tmp_path)
    with pytest.raises(ConfigurationError, match=what):
        create(tmp_path, name, grain)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("there", ["dags/orders.py", "tests/spark/test_orders_curate.py"])
def test_a_file_that_is_there_is_never_overwritten_and_nothing_is_written_beside_it(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).write_text("# mine\n")
    with pytest.raises(ConfigurationError, match=f"{there} already exists"):
        create(tmp_path, "orders", "month")
    assert contents(tmp_path) == {Path(there): "# mine\n"}


def test_a_disk_that_refuses_one_file_is_left_without_the_others(tmp_path: Path) -> None:
    (tmp_path / "tests").write_text("a file where a folder has to be")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        create(tmp_path, "orders", "month")
    assert set(contents(tmp_path)) == {Path("tests")}


def test_what_to_do_next_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(tmp_path, "orders", "month")
    told = capsys.readouterr().out
    assert "wrote dags/orders.py" in told
    assert "id,happened_at,amount,note" in told
    assert "trilake run orders_curate --partition 20" in told


def test_the_wheel_holds_what_is_read_at_run_time(tmp_path: Path) -> None:
    program = (
        "import sys; from hatchling.builders.wheel import WheelBuilder; "
        "print(*WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard']))"
    )
    built = subprocess.run(
        [sys.executable, "-c", program, str(PROJECT), str(tmp_path)], capture_output=True, text=True, check=True
    )
    names = set(zipfile.ZipFile(built.stdout.split()[-1]).namelist())
    package = PROJECT / "plugins" / "trilake"
    expected = [path for path in TEMPLATES.rglob("*") if path.is_file()]
    for name in ("spark/image", "platform/requirements", "platform/embedded/s3proxy", "schema/sql/postgres/arrivals"):
        expected += [path for path in (package / name).iterdir() if path.is_file()]
    for_this_repository = {
        "trilake/platform/requirements/bootstrap.txt",
        "trilake/platform/requirements/development.txt",
    }
    assert {path.relative_to(package.parent).as_posix() for path in expected} - for_this_repository <= names
    assert not names & for_this_repository
