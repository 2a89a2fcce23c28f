"""Shared by the commands: options, the platform's home and endpoints, and printing rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trilake.endpoints import Endpoints
    from trilake.platform.embedded.home import Home

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def home() -> Home:
    """The embedded platform of this project."""
    from trilake.platform.embedded.home import Home

    return Home.locate()


def endpoints() -> Endpoints:
    """Endpoints of the environment if it has connections (on a host, in a container), else of the local platform."""
    from trilake.endpoints import S3_CONNECTION, Endpoints

    if f"AIRFLOW_CONN_{S3_CONNECTION.upper()}" in os.environ:
        return Endpoints.from_environment()
    return Endpoints.from_environment(home().environment())


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print these columns of rows, as a table or as a JSON list of objects."""
    if as_json:
        print(json.dumps([{name: row[name] for name in columns} for row in rows], default=str))
    else:
        print_rows(columns, [[row[name] for name in columns] for row in rows])


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a heading and the rows below it. Each column is as wide as its widest text."""
    cells = [tuple(columns), *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
