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
    return {found.name: found for path in _files(dags) for found in _declared(path, dags).values()}


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
    dags = project / "dags"
    calls = [call for path in _files(dags) for call in _calls(path, dags, name)]
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


def _files(dags: Path) -> list[Path]:
    """DAG files, and those of the packages that they share."""
    return sorted(dags.rglob("*.py"))


def _calls(path: Path, dags: Path, job: str) -> Iterator[tuple[DataSet | None, dict[str, Any]]]:
    """The operators that run `job`: their data set, if it can be read, and what else is written out."""
    tree, names = _parse(path, dags), _declared(path, dags)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == _OPERATOR:
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if "job" in given and _literal(given["job"]) == job:
                more: dict[str, Any] = {key: _literal(given[key]) for key, *_ in _WRITTEN if key in given}
                yield _data_set(given.get("data_set"), names), more


def _declared(path: Path, dags: Path, importing: tuple[Path, ...] = ()) -> dict[str, DataSet]:
    """The data sets that a file knows, by its expressions for them: ``ORDERS``, ``data_sets.ORDERS``."""
    importing = (*importing, path)
    found: dict[str, DataSet] = {}

    def of(module: Path | None) -> dict[str, DataSet]:
        # files that import each other are none that Python could run: what each has by itself is all there is
        return {} if module is None or module in importing else _declared(module, dags, importing)

    for node in _parse(path, dags).body:
        if isinstance(node, ast.ImportFrom):
            # as Python does: of the folder that the dots name, or of dags/, which is on its path
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
    """The file of a module below `folder`; None if it is not there (an installed package's, say)."""
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


def _parse(path: Path, dags: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), path.name)
    except SyntaxError as e:
        file = path.relative_to(dags.parent)
        raise ConfigurationError(f"{file}:{e.lineno} is not valid Python: {e.msg}.") from None
