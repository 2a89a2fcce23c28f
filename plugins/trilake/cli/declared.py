"""What the DAG files say of a job: which data set it makes, how large, with what arguments. Read, and not run.

A DAG's import costs seconds (Airflow); what is asked for here stands in it as plain text nearly always: a call of
``SparkApplicationOperator(job="...", data_set=NAME)`` and ``NAME = DataSet(...)``, in the same file or in another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.platform.embedded.dry_run import Task

_OPERATOR = "SparkApplicationOperator"
# What else of a call is asked for, and what it has to be where it is written out.
_WRITTEN = (("arguments", list | tuple, "list"), ("profile", str, "text"), ("spark_conf", dict, "dictionary"))


def data_sets(dags: Path) -> dict[str, DataSet]:
    """Every data set that is declared in these files, by its name."""
    return {found.name: found for path in sorted(dags.glob("*.py")) for found in _declared(path).values()}


def find_data_set(dags: Path, name: str) -> DataSet:
    """The one that these files declare by this name.

    :raises ConfigurationError: there is none.
    """
    known = data_sets(dags)
    if name not in known:
        raise ConfigurationError(
            f"No file of dags/ declares a data set {name}.", hint=f"There are {', '.join(sorted(known))}."
        )
    return known[name]


def find_task(project: Path, job: str, data_set: str = "") -> Task:
    """The task that runs `job`.

    :param job: a module of ``spark_jobs/``; the path of its file will do.
    :param data_set: the name of the one that it makes; empty: the DAGs say it.
    :raises ConfigurationError: no such job or data set, or the DAGs name none or several for it.
    """
    name = Path(job).name.removesuffix(".py")
    jobs = sorted(path.stem for path in (project / "spark_jobs").glob("*.py") if path.stem != "__init__")
    if name not in jobs:
        raise ConfigurationError(f"There is no job {name} in spark_jobs/.", hint=f"There are {', '.join(jobs)}.")
    asked = find_data_set(project / "dags", data_set) if data_set else None
    calls = [call for path in sorted((project / "dags").glob("*.py")) for call in _calls(path, name)]
    made = {found.name: (found, call) for found, call in calls if found is not None}
    if asked:
        return _task(name, asked, made[data_set][1] if data_set in made else {})
    if len(made) == 1:
        ((found, call),) = made.values()
        return _task(name, found, call)
    why = (
        f"makes {' and '.join(sorted(made))}" if made
        else "has a data set that cannot be read off its DAG" if calls
        else f"is run by no {_OPERATOR}(job={name!r}) of dags/"
    )  # fmt: skip
    raise ConfigurationError(f"Job {name} {why}.", hint="Say which one to make: --data-set NAME.")


def _task(job: str, data_set: DataSet, call: dict[str, Any]) -> Task:
    if data_set.grain is None:
        raise ConfigurationError(f"Data set {data_set.name} has no grain: it is written whole, without a job.")
    for name, kind, word in _WRITTEN:
        if not isinstance(call.get(name), kind | None):
            raise ConfigurationError(
                f"Job {job} is given {name} in its DAG that are no {word}.", hint="Write them as one."
            )
    arguments = tuple(str(argument) for argument in call.get("arguments") or ())
    if templated := [argument for argument in arguments if "{{" in argument]:
        raise ConfigurationError(
            f"Job {job} is given {templated[0]!r}, which Airflow renders for each run.",
            hint="Give the job a default for it, and --data-set to run it without the DAG's arguments.",
        )
    return Task(job, data_set, arguments, call.get("profile") or "small", call.get("spark_conf") or {})


def _calls(path: Path, job: str) -> Iterator[tuple[DataSet | None, dict[str, Any]]]:
    """The operators that run `job`: their data set, if it can be read, and what else is written out."""
    tree, names = _parse(path), _declared(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == _OPERATOR:
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if "job" in given and _literal(given["job"]) == job:
                more: dict[str, Any] = {key: _literal(given[key]) for key, *_ in _WRITTEN if key in given}
                yield _data_set(given.get("data_set"), names), more


def _declared(path: Path, importing: tuple[Path, ...] = ()) -> dict[str, DataSet]:
    """The data sets that a file knows, by the names of its variables."""
    importing = (*importing, path)
    found: dict[str, DataSet] = {}
    for node in _parse(path).body:
        if isinstance(node, ast.ImportFrom) and not node.level and (path.parent / f"{node.module}.py").is_file():
            other = path.parent / f"{node.module}.py"
            # files that import each other are none that Python could run: what each has by itself is all there is
            theirs = {} if other in importing else _declared(other, importing)
            found |= {alias.asname or alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and (made := _data_set(node.value, found)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: made for target in targets if isinstance(target, ast.Name)}
    return found


def _data_set(node: ast.expr | None, names: dict[str, DataSet]) -> DataSet | None:
    if isinstance(node, ast.Name | ast.Attribute):
        return names.get(_name(node))
    if isinstance(node, ast.Call) and _name(node.func) == "DataSet":
        positional = [_literal(argument) for argument in node.args]
        named = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
        try:
            return DataSet(*positional, **named)
        except TypeError:
            return None  # something in it is computed
    return None


def _literal(node: ast.expr) -> Any:
    """The value that is written there; None if it is computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), path.name)
    except SyntaxError as e:
        raise ConfigurationError(f"dags/{path.name}:{e.lineno} is no Python: {e.msg}.") from None
