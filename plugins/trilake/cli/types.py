"""``trilake types``: what becomes of the values of each type on each path."""

from __future__ import annotations

from json import dumps
from typing import Annotated

import typer

from trilake.cli import type_table
from trilake.cli.options import Json
from trilake.errors import ConfigurationError

app = typer.Typer()


@app.command()
def types(
    path: Annotated[str, typer.Argument(help="One path, such as csv-job. Default: all paths.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Write docs/reference/types.md.")] = False,
    json: Json = False,
) -> None:
    """Show what becomes of the values of each type on each path: exact, converted or refused."""
    found = type_table.find(path)
    if path and found is None:
        names = ", ".join(known.name for known in type_table.PATHS)
        raise ConfigurationError(f"There is no path {path!r}.", hint=f"The paths are {names}.")
    paths = (found,) if found else type_table.PATHS
    if markdown:
        print(type_table.markdown(paths), end="")
    elif json:
        rules = [(known.name, rule) for known in paths for rule in known.rules]
        print(
            dumps([{"path": n, "from": r.source, "to": r.target, "outcome": r.outcome, "how": r.how} for n, r in rules])
        )
    else:
        _print(paths)


def _print(paths: tuple[type_table.Path, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    for path in paths:
        table = Table("from", "to", "outcome", "", title=f"{path.title} ({path.name})", box=box.SIMPLE_HEAD)
        for rule in path.rules:
            table.add_row(rule.source, rule.target, rule.outcome, rule.how)
        console.print(table)
