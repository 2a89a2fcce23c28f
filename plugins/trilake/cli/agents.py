"""``trilake connect``, ``trace`` and ``health``: an agent's way to the platform, and two of its tools."""

from __future__ import annotations

import json as as_text
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trilake.cli.options import Json, endpoints, print_rows

app = typer.Typer()


@app.command()
def connect(
    name: Annotated[str, typer.Argument(help="NAME, for NAME.access in this folder, or the path of such a file.")],
) -> None:
    """Connect an AI agent's program (over its standard input and output) to the platform's tools.

    docs/guides/agents.md says how to enter this command in Claude Code, an IDE or a script.
    """
    import anyio

    from trilake.agents.connect import Login, bridge

    file = Path(name) if name.endswith(".access") or "/" in name else Path(f"{name}.access")
    try:
        anyio.run(bridge, Login.read(file))
    except* Exception as group:
        raise _first(group) from None


@app.command()
def trace(
    table: Annotated[str, typer.Argument(help="A data set with a table in ClickHouse.")],
    partition: Annotated[str, typer.Argument(help="Such as 2013-02; all for a table without partitions.")],
    json: Json = False,
) -> None:
    """Say where a partition's rows came from: the run, the files, and how many rows were read, curated and refused."""
    from trilake.agents.trace import trace as trace_of
    from trilake.lake.declared import find_data_set
    from trilake.project import find_project

    here = endpoints()
    found = trace_of(here.lake, here.s3, find_data_set(find_project() / "dags", table), partition)
    if json:
        print(as_text.dumps(asdict(found)))
        return
    print(f"{found.table} {found.partition}: {found.rows} rows, published by {found.published_by}")
    if found.snapshot:
        gone = ", which has expired" if found.gone else f", committed by {found.committed_by}"
        print(f"Iceberg snapshot {found.snapshot}{gone}")
    if found.counts:
        print(", ".join(f"{name} {number}" for name, number in found.counts.items()))
    for reason, number in found.reasons.items():
        print(f"  refused {number}: {reason}")
    if found.number_of_files is None:
        print("Its files were not recorded: an older version of Trilake wrote it.")
    else:
        print(f"{found.number_of_files} files:")
        print_rows(
            ("file", "etag", "bytes"), [(f.key, f.etag, "" if f.bytes is None else f.bytes) for f in found.files]
        )


@app.command()
def health(json: Json = False) -> None:
    """Ask every store whether it is well, and whether publications are complete. Exit code 1 if something is not."""
    from trilake.agents.health import check_services

    services = check_services(endpoints())
    if json:
        print(as_text.dumps([asdict(service) for service in services]))
    else:
        print_rows(
            ("service", "state", "seconds", "why"),
            [(s.name, "ok" if s.ok else "NOT WELL", f"{s.seconds:.3f}", s.says) for s in services],
        )
    if not all(service.ok for service in services):
        sys.exit(1)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group: groups of one are what concurrent code makes of an error."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
