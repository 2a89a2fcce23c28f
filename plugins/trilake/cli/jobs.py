"""``trilake jobs``: the Spark jobs' code in S3."""

from __future__ import annotations

import typer

from trilake.cli import options

app = typer.Typer(help="Manage the Spark jobs' code in S3.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """With a callback, Typer keeps `push` as a subcommand, although it is the only one."""


@app.command()
def push() -> None:
    """Upload the jobs' code to S3 and make it the current version. Runs that start later use it."""
    from trilake import s3
    from trilake.project import find_project
    from trilake.spark import versions

    print(versions.push(s3.client(options.endpoints().s3), find_project()))
