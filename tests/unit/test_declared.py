"""What a job makes is read off the DAG files, which are not run for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilake.cli.declared_tasks import find_task
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.declared import data_sets

PROJECT = Path(__file__).parents[2]
SHARED = (
    'from trilake.lake import DataSet\nA = DataSet("a", grain="day", date="d", shard_by="k")\nDIM = DataSet("dim")\n'
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dags", "spark_jobs"):
        (tmp_path / name).mkdir()
    (tmp_path / "dags" / "data_sets.py").write_text(SHARED)
    (tmp_path / "dags" / "shop").mkdir()
    (tmp_path / "dags" / "shop" / "data_sets.py").write_text(SHARED)
    (tmp_path / "dags" / "shop" / "__init__.py").write_text("from .data_sets import A\n")
    (tmp_path / "spark_jobs" / "j.py").write_text("")
    return tmp_path


def dag(project: Path, text: str, name: str = "one") -> None:
    (project / "dags" / f"{name}.py").write_text(f"raise RuntimeError('a DAG file was run')\n{text}")


A = DataSet("a", grain="day", date="d", shard_by="k")


@pytest.mark.parametrize(
    "text",
    [
        'from data_sets import A\nSparkApplicationOperator(task_id="x", job="j", data_set=A)',
        'from data_sets import A as OTHER\nwith DAG():\n    c = SparkApplicationOperator(job="j", data_set=OTHER)',
        'import data_sets\nspark.SparkApplicationOperator(job="j", data_set=data_sets.A)',
        'import data_sets as ds\nSparkApplicationOperator(job="j", data_set=ds.A)',
        'from shop.data_sets import A\nSparkApplicationOperator(job="j", data_set=A)',
        'from shop import data_sets\nSparkApplicationOperator(job="j", data_set=data_sets.A)',
        'from shop import data_sets as known\nSparkApplicationOperator(job="j", data_set=known.A)',
        'from shop import A\nSparkApplicationOperator(job="j", data_set=A)',
        'import shop.data_sets\nSparkApplicationOperator(job="j", data_set=shop.data_sets.A)',
        'import shop.data_sets as known\nSparkApplicationOperator(job="j", data_set=known.A)',
        'A: DataSet = DataSet("a", "day", "d", shard_by="k")\nSparkApplicationOperator(job="j", data_set=A)',
        'SparkApplicationOperator(job="j", data_set=DataSet("a", grain="day", date="d", shard_by="k"))',
    ],
)
def test_a_data_set_is_found_however_the_dag_names_it(project: Path, text: str) -> None:
    dag(project, text)
    assert find_task(project, "j").data_set == A
    assert find_task(project, "spark_jobs/j.py").data_set == A


def test_arguments_profile_and_settings_of_the_dag_are_kept(project: Path) -> None:
    dag(
        project,
        'from data_sets import A\nSparkApplicationOperator(job="j", data_set=A, profile="large", '
        'arguments=["--x", "1"], spark_conf={"spark.sql.ansi.enabled": "false"})',
    )
    task = find_task(project, "j")
    assert (task.profile, task.arguments, task.spark_conf) == (
        "large",
        ("--x", "1"),
        {"spark.sql.ansi.enabled": "false"},
    )


@pytest.mark.parametrize(
    ("text", "data_set", "what"),
    [
        ("", "", "is not run by any SparkApplicationOperator"),
        ("", "nowhere", "No file of dags/ declares a data set nowhere. The data sets are a, dim"),
        ("", "dim", "has no grain"),
        ('SparkApplicationOperator(job="j", data_set=make())', "", "cannot be read from the file"),
        ('A = DataSet("a", "day", "d", "k")\nSparkApplicationOperator(job="j", data_set=A, arguments=["{{ ds }}"])', "",
         "only Airflow can render"),
        (
            'from data_sets import A\nB = DataSet("b", grain="day", date="d", shard_by="k")\n'
            'SparkApplicationOperator(job="j", data_set=A)\nSparkApplicationOperator(job="j", data_set=B)',
            "", "writes several data sets: a and b. Name the data set: --data-set NAME",
        ),
        ("def", "", "dags/one.py:2 is not valid Python"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_an_error_that_names_the_way_out(
    project: Path, text: str, data_set: str, what: str
) -> None:
    dag(project, text)
    with pytest.raises(ConfigurationError, match=what.replace("(", r"\(").replace("{", r"\{")):
        find_task(project, "j", data_set)


def test_the_option_settles_what_the_dags_leave_open(project: Path) -> None:
    dag(project, "")
    assert find_task(project, "j", "a").data_set == A


def test_an_unknown_job_names_those_that_there_are(project: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no job k in spark_jobs/. The jobs are j\."):
        find_task(project, "k")


def test_every_job_of_the_project_is_found() -> None:
    assert find_task(PROJECT, "flights_curate").data_set.name == "flights"
    assert {"flights", "weather", "airlines"} <= set(data_sets(PROJECT / "dags"))


def test_a_call_in_a_shared_package_is_found_and_its_imports_are_relative_to_it(project: Path) -> None:
    (project / "dags" / "shop" / "chain.py").write_text(
        'from .data_sets import A\nfrom . import data_sets\nSparkApplicationOperator(job="j", data_set=A)\n'
        'SparkApplicationOperator(job="k", data_set=data_sets.A)\n'
    )
    (project / "spark_jobs" / "k.py").write_text("")
    assert [find_task(project, job).data_set for job in "jk"] == [A, A]


def test_an_attribute_of_something_else_is_not_taken_for_a_data_set(project: Path) -> None:
    dag(project, 'from data_sets import A\nSparkApplicationOperator(job="j", data_set=other.A)')
    with pytest.raises(ConfigurationError, match="cannot be read from the file"):
        find_task(project, "j")
