"""``trilake jobs``: the Spark jobs' code in S3."""

from __future__ import annotations

import typer

from trilake.cli import options

app = typer.Typer(help="The Spark jobs' code in S3.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `push` a command of its own."""


@app.command()
def push() -> None:
    """Put the jobs' code into S3 and make it the current version, for runs that start from now on."""
    from trilake import s3
    from trilake.project import find_project
    from trilake.spark import versions

    print(versions.push(s3.client(options.endpoints().s3), find_project()))
