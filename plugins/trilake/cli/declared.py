"""What the DAG files say about a job: its data set, profile and arguments. The files are parsed, not run.

Importing a DAG takes seconds, because it imports Airflow. The text nearly always has all that is needed:
a call ``SparkApplicationOperator(job="...", data_set=NAME)``, and ``NAME = DataSet(...)`` in the same or another file.
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
# The other arguments that are read from the call: name, type, and the type's name for the error message.
_WRITTEN = (("arguments", list | tuple, "list"), ("profile", str, "text"), ("spark_conf", dict, "dictionary"))


def data_sets(dags: Path) -> dict[str, DataSet]:
    """All data sets that these files declare, by name."""
    return {data_set.name: data_set for path in _files(dags) for data_set in _declared(path, dags).values()}


def find_data_set(dags: Path, name: str) -> DataSet:
    """The data set that these files declare under this name.

    :raises ConfigurationError: no file declares it.
    """
    declared = data_sets(dags)
    if name not in declared:
        raise ConfigurationError(
            f"No file of dags/ declares a data set {name}.", hint=f"The data sets are {', '.join(sorted(declared))}."
        )
    return declared[name]


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
    calls = [call for path in _files(dags) for call in _calls(path, dags, name)]
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


def _files(dags: Path) -> list[Path]:
    """The DAG files and the files of the packages that they share."""
    return sorted(dags.rglob("*.py"))


def _calls(path: Path, dags: Path, job: str) -> Iterator[tuple[DataSet | None, dict[str, Any]]]:
    """The operators that run `job`: their data set, if it can be read, and their other literal arguments."""
    tree, names = _parse(path, dags), _declared(path, dags)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == _OPERATOR:
            arguments = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if "job" in arguments and _literal(arguments["job"]) == job:
                more: dict[str, Any] = {key: _literal(arguments[key]) for key, *_ in _WRITTEN if key in arguments}
                yield _data_set(arguments.get("data_set"), names), more


def _declared(path: Path, dags: Path, importing: tuple[Path, ...] = ()) -> dict[str, DataSet]:
    """The data sets that a file can name, by the expression: ``ORDERS``, ``data_sets.ORDERS``."""
    importing = (*importing, path)
    found: dict[str, DataSet] = {}

    def of(module: Path | None) -> dict[str, DataSet]:
        # Python could not run files that import each other. Such a cycle ends here.
        return {} if module is None or module in importing else _declared(module, dags, importing)

    for node in _parse(path, dags).body:
        if isinstance(node, ast.ImportFrom):
            # as in Python: relative to the folder that the dots name, else to dags/, which is on Python's path
            folder = path.parents[node.level - 1] if node.level else dags
            parts = (node.module or "").split(".") if node.module else []
            theirs = of(_module(folder, parts))
            for alias in node.names:
                name = alias.asname or alias.name
                if alias.name in theirs:
                    found[name] = theirs[alias.name]
                else:
                    found |= _prefixed(name, of(_module(folder, [*parts, alias.name])))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found |= _prefixed(alias.asname or alias.name, of(_module(dags, alias.name.split("."))))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and (made := _data_set(node.value, found)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: made for target in targets if isinstance(target, ast.Name)}
    return found


def _module(folder: Path, parts: list[str]) -> Path | None:
    """The file of a module below `folder`. None if there is none, as for an installed package."""
    base = folder.joinpath(*parts)
    candidates = (base / "__init__.py", *([base.with_name(f"{base.name}.py")] if parts else []))
    return next((file for file in candidates if file.is_file()), None)


def _prefixed(module: str, names: dict[str, DataSet]) -> dict[str, DataSet]:
    return {f"{module}.{name}": data_set for name, data_set in names.items()}


def _data_set(node: ast.expr | None, names: dict[str, DataSet]) -> DataSet | None:
    if isinstance(node, ast.Name | ast.Attribute):
        return names.get(ast.unparse(node))
    if isinstance(node, ast.Call) and _name(node.func) == "DataSet":
        positional = [_literal(argument) for argument in node.args]
        named = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
        try:
            return DataSet(*positional, **named)
        except TypeError:
            return None  # an argument is computed
    return None


def _literal(node: ast.expr) -> Any:
    """The value of a literal. None if it is computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _parse(path: Path, dags: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), path.name)
    except SyntaxError as e:
        file = path.relative_to(dags.parent)
        raise ConfigurationError(f"{file}:{e.lineno} is not valid Python: {e.msg}.") from None
