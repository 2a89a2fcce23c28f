"""``trilake new dataset``: writes a data set's DAG, job, table, check and tests. They run without changes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, cast

import typer

from trilake.cli.new_files import refuse_taken, render, write
from trilake.errors import ConfigurationError
from trilake.lake import DataSet, Grain
from trilake.lake.declared import data_sets
from trilake.lake.window import partition_name

_CSV = "id bigint NOT NULL, happened_at timestamp NOT NULL, amount double, note string"
_SCHEDULES: Mapping[Grain, str] = {"day": "@daily", "month": "@monthly"}
# ClickHouse functions. Their value as a string equals the partition id of `DataSet.partition_id`.
_PARTITION_BY: Mapping[Grain, str] = {"day": "toYYYYMMDD", "month": "toYYYYMM"}


app = typer.Typer(help="Write files to start from.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """With a callback, Typer keeps `dataset` as a subcommand, although it is the only one."""


@app.command()
def dataset(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and underscores.")],
    grain: Annotated[
        str, typer.Option(help="The partition that is recomputed and replaced as a whole: month or day.")
    ] = "month",
) -> None:
    """Write a data set's DAG, job, table, check and tests. They run without changes. No file is overwritten."""
    from trilake.project import find_project

    show(find_project(), name, grain)


def create(project: Path, name: str, grain: str) -> list[Path]:
    """Write the files of a new data set: all of them, or none.

    :return: the written files, relative to `project`.
    :raises ConfigurationError: the name or grain is not valid, or the name is taken. Nothing was written.
    """
    data_set = DataSet(name, grain=cast("Grain", grain), date="happened_on", shard_by="id")
    files = _render(data_set)
    if name in data_sets(project / "dags"):
        raise ConfigurationError(f"A file of dags/ already declares a data set {name}.", hint="Choose another name.")
    # Python would import a package dags/NAME/ instead of the file dags/NAME.py.
    refuse_taken(project, [*files, Path("dags", name)], "Choose another name, or move the existing file.")
    # dags/ is on Python's path, so a file there can hide an installed package.
    if name.isidentifier() and importlib.util.find_spec(name) is not None:
        raise ConfigurationError(f"dags/{name}.py would hide the Python module {name}.", hint="Choose another name.")
    return write(project, files)


def show(project: Path, name: str, grain: str) -> None:
    """Call `create`, then print the written files and the next steps."""
    for path in create(project, name, grain):
        print(f"wrote {path}")
    example = _example(cast("Grain", grain))
    print(
        f"""
Next:
  Change the columns to yours: in the job, in table.sql and in the job's test. Then
  python -m pytest tests/spark/test_{name}_curate.py
  trilake put {name} {example} FILE.csv    to upload a file to s3://raw/; its header must be
      {_header()}
  trilake run {name}_curate --partition {example}    to see what the job would commit (a dry run)
  trilake up    to apply the table and to upload the job
  Then unpause the DAG {name} in Airflow, and trigger it with {{"start": "{example}"}}."""
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
