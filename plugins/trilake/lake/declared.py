"""The data sets that a project's files declare. The files are parsed, not run.

Importing a DAG takes seconds, because it imports Airflow. The text nearly always has all that is needed:
``NAME = DataSet(...)``, in the same or another file.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.lake.data_set import DataSet


def data_sets(dags: Path) -> dict[str, DataSet]:
    """All data sets that these files declare, by name."""
    return {data_set.name: data_set for path in files(dags) for data_set in declared(path, dags).values()}


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


def files(dags: Path) -> list[Path]:
    """The DAG files and the files of the packages that they share."""
    return sorted(dags.rglob("*.py"))


def declared(path: Path, dags: Path, importing: tuple[Path, ...] = ()) -> dict[str, DataSet]:
    """The data sets that a file can name, by the expression: ``ORDERS``, ``data_sets.ORDERS``."""
    importing = (*importing, path)
    found: dict[str, DataSet] = {}

    def of(module: Path | None) -> dict[str, DataSet]:
        # Python could not run files that import each other. Such a cycle ends here.
        return {} if module is None or module in importing else declared(module, dags, importing)

    for node in parse(path, dags).body:
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
        elif isinstance(node, ast.Assign | ast.AnnAssign) and (made := data_set_of(node.value, found)):
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


def data_set_of(node: ast.expr | None, names: dict[str, DataSet]) -> DataSet | None:
    if isinstance(node, ast.Name | ast.Attribute):
        return names.get(ast.unparse(node))
    if isinstance(node, ast.Call) and name_of(node.func) == "DataSet":
        positional = [literal(argument) for argument in node.args]
        named = {keyword.arg: literal(keyword.value) for keyword in node.keywords if keyword.arg}
        try:
            return DataSet(*positional, **named)
        except TypeError:
            return None  # an argument is computed
    return None


def literal(node: ast.expr) -> Any:
    """The value of a literal. None if it is computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def parse(path: Path, dags: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), path.name)
    except SyntaxError as e:
        file = path.relative_to(dags.parent)
        raise ConfigurationError(f"{file}:{e.lineno} is not valid Python: {e.msg}.") from None
