"""The task of the DAG files that runs a job: its data set, profile and arguments. The files are parsed, not run.

`trilake.lake.declared` finds the data sets.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.declared import data_set_of, declared, files, find_data_set, literal, name_of, parse
from trilake.platform.embedded.dry_run import Task

_OPERATOR = "SparkApplicationOperator"
# The other arguments that are read from the call: name, type, and the type's name for the error message.
_WRITTEN = (("arguments", list | tuple, "list"), ("profile", str, "text"), ("spark_conf", dict, "dictionary"))


def find_task(project: Path, job: str, data_set: str = "") -> Task:
    """The task that runs `job`.

    :param job: a module of ``spark_jobs/``, or the path of its file.
    :param data_set: the name of the data set that the job writes; empty: take it from the DAGs.
    :raises ConfigurationError: there is no such job or data set, or the DAGs name none or several for this job.
    """
    name = Path(job).name.removesuffix(".py")
    jobs = sorted(path.stem for path in (project / "spark_jobs").glob("*.py") if path.stem != "__init__")
    if name not in jobs:
        raise ConfigurationError(f"There is no job {name} in spark_jobs/.", hint=f"The jobs are {', '.join(jobs)}.")
    chosen = find_data_set(project / "dags", data_set) if data_set else None
    dags = project / "dags"
    calls = [call for path in files(dags) for call in _calls(path, dags, name)]
    written = {target.name: (target, call) for target, call in calls if target is not None}
    if chosen:
        return _task(name, chosen, written[data_set][1] if data_set in written else {})
    if len(written) == 1:
        ((target, call),) = written.values()
        return _task(name, target, call)
    why = (
        f"writes several data sets: {' and '.join(sorted(written))}" if written
        else "has a data set that is computed in its DAG, so it cannot be read from the file" if calls
        else f"is not run by any {_OPERATOR}(job={name!r}) of dags/"
    )  # fmt: skip
    raise ConfigurationError(f"Job {name} {why}.", hint="Name the data set: --data-set NAME.")


def _task(job: str, data_set: DataSet, call: dict[str, Any]) -> Task:
    if data_set.grain is None:
        raise ConfigurationError(
            f"Data set {data_set.name} has no grain: it is replaced as a whole, and no job writes it."
        )
    for name, kind, word in _WRITTEN:
        if not isinstance(call.get(name), kind | None):
            raise ConfigurationError(
                f"The DAG of job {job} has {name}= that is not a {word}.",
                hint=f"Write {name}= as a {word} without computed values.",
            )
    arguments = tuple(str(argument) for argument in call.get("arguments") or ())
    if templated := [argument for argument in arguments if "{{" in argument]:
        raise ConfigurationError(
            f"The DAG gives job {job} the argument {templated[0]!r}, which only Airflow can render.",
            hint="Give the job a default for this argument. Then name the data set with --data-set to run without it.",
        )
    return Task(job, data_set, arguments, call.get("profile") or "small", call.get("spark_conf") or {})


def _calls(path: Path, dags: Path, job: str) -> Iterator[tuple[DataSet | None, dict[str, Any]]]:
    """The operators that run `job`: their data set, if it can be read, and their other literal arguments."""
    tree, names = parse(path, dags), declared(path, dags)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == _OPERATOR:
            arguments = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if "job" in arguments and literal(arguments["job"]) == job:
                more: dict[str, Any] = {key: literal(arguments[key]) for key, *_ in _WRITTEN if key in arguments}
                yield data_set_of(arguments.get("data_set"), names), more
