"""``trilake new dataset``: a data set's files as a start: DAG, job, table, check and tests, which run as they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, cast

import typer

from trilake.cli.declared import data_sets
from trilake.cli.new_files import refuse_taken, render, write
from trilake.errors import ConfigurationError
from trilake.lake import DataSet, Grain
from trilake.lake.window import partition_name

_CSV = "id bigint NOT NULL, happened_at timestamp NOT NULL, amount double, note string"
_SCHEDULES: Mapping[Grain, str] = {"day": "@daily", "month": "@monthly"}
# ClickHouse's functions whose value, as a text, is the partition's id that `DataSet.partition_id` gives
_PARTITION_BY: Mapping[Grain, str] = {"day": "toYYYYMMDD", "month": "toYYYYMM"}


app = typer.Typer(help="Files to start from.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `dataset` a command of its own."""


@app.command()
def dataset(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and underscores.")],
    grain: Annotated[str, typer.Option(help="What is recomputed and replaced as a whole: month or day.")] = "month",
) -> None:
    """Write a data set's DAG, job, table, check and tests, which run as they are. Nothing is overwritten."""
    from trilake.project import find_project

    show(find_project(), name, grain)


def create(project: Path, name: str, grain: str) -> list[Path]:
    """Write the files of a new data set; all or none.

    :return: what was written, below `project`.
    :raises ConfigurationError: no name or grain for a data set, or one that is taken. Nothing was written.
    """
    data_set = DataSet(name, grain=cast("Grain", grain), date="happened_on", shard_by="id")
    files = _render(data_set)
    if name in data_sets(project / "dags"):
        raise ConfigurationError(f"A file of dags/ declares a data set {name} already.", hint="Choose another name.")
    # a package of this name would be imported in its place
    refuse_taken(project, [*files, Path("dags", name)], "Choose another name, or move it away.")
    # dags/ is a folder that Python imports from: a file there can hide a package
    if name.isidentifier() and importlib.util.find_spec(name) is not None:
        raise ConfigurationError(f"dags/{name}.py would hide the Python module {name}.", hint="Choose another name.")
    return write(project, files)


def show(project: Path, name: str, grain: str) -> None:
    """`create`, and say what was written and what comes next."""
    for path in create(project, name, grain):
        print(f"wrote {path}")
    example = _example(cast("Grain", grain))
    print(
        f"""
Next:
  Make them yours: the columns stand in the job, in table.sql and in its test. Then
  python -m pytest tests/spark/test_{name}_curate.py
  trilake put {name} {example} FILE.csv    to put a file into s3://raw/, whose header is
      {_header()}
  trilake run {name}_curate --partition {example}    to see what it would commit, without committing
  trilake up    to apply the table and to ship the job
  and in Airflow unpause the DAG {name}, and trigger it with {{"start": "{example}"}}."""
    )


def _render(data_set: DataSet) -> dict[Path, str]:
    name, grain = data_set.name, cast("Grain", data_set.grain)
    values = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "constant": name.upper(),
        "job": f"{name}_curate",
        "grain": grain,
        "schedule": _SCHEDULES[grain],
        "partition_by": _PARTITION_BY[grain],
        "example": _example(grain),
        "year": _today().year,
        "csv": _CSV,
    }
    templates = {
        f"dags/{name}.py": "dag.py.jinja",
        f"spark_jobs/{name}_curate.py": "job.py.jinja",
        f"sql/clickhouse/{name}/table.sql": "table.sql.jinja",
        f"sql/clickhouse/{name}/checks/one_row_an_id.sql": "check.sql.jinja",
        f"tests/spark/test_{name}_curate.py": "test.py.jinja",
    }
    return render("dataset", templates, values)


def _header() -> str:
    return ",".join(column.split()[0] for column in _CSV.split(", "))


def _example(grain: Grain) -> str:
    return partition_name(grain, _today())


def _today() -> date:
    return datetime.now(UTC).date()
