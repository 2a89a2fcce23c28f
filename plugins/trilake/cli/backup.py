"""``trilake backup`` and ``restore``: the platform on this machine, in a folder and back."""

from __future__ import annotations

import json as as_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trilake.cli import options

app = typer.Typer()

_MB = 1_000_000


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="The folder of backups, best on another disk. It may be new.")],
    keep: Annotated[int, typer.Option(min=0, help="How many backups stay; older ones are removed. 0 keeps all.")] = 0,
    list_only: Annotated[bool, typer.Option("--list", help="Show the backups of the folder. Nothing is made.")] = False,
    json: options.Json = False,
) -> None:
    """Back up PostgreSQL, S3 and the secrets, also while the platform works. Unchanged files are stored once."""
    from trilake.cli.lifecycle import Progress
    from trilake.platform.embedded.backup.create import back_up
    from trilake.platform.embedded.backup.store import open_store

    if list_only:
        _show(folder, as_json=json)
        return
    made = back_up(options.home(), folder, keep=keep or None, progress=Progress())
    if json:
        print(as_text.dumps(asdict(made), indent=2, default=str))
        return
    done = made.backup
    print(
        f"Backup {done.name}: {done.files:,} files, {done.size / _MB:,.0f} MB, of which {done.added / _MB:,.0f} MB are "
        f"new. {done.facts['named_files']:,} files of {done.facts['tables']} Iceberg tables are in it with their sizes."
    )
    print(
        f"{len(open_store(folder).backups())} backups in {folder}. `trilake restore {folder}` brings the newest back."
    )


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder of backups.")],
    name: Annotated[str, typer.Option("--backup", help="The backup's name. Default: the newest one.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the data that is there aside. Without it, it is refused.")
    ] = False,
    without_clickhouse: Annotated[bool, typer.Option("--without-clickhouse", help="Leave ClickHouse empty.")] = False,
    json: options.Json = False,
) -> None:
    """Restore a backup of a stopped platform, start its stores, and fill ClickHouse from the lake."""
    from trilake.cli.lifecycle import Progress
    from trilake.platform.embedded.backup.restore import restore as bring_back

    done = bring_back(
        options.home(), folder, name=name, replace=replace, rebuild=not without_clickhouse, progress=Progress()
    )
    if json:
        print(as_text.dumps(asdict(done), indent=2))
        return
    runs = "unknown" if done.lost_dag_runs is None else done.lost_dag_runs
    print(
        f"Restored backup {done.backup}. {done.named_files:,} files that the catalog names are there with their sizes."
    )
    print(f"Lost: what was done after {done.at}, {done.lost_minutes:,.1f} minutes ago. DAG runs since then: {runs}.")
    if done.running:
        print(
            f"{len(done.running)} DAG runs had not ended: {', '.join(done.running[:5])}. Airflow continues with them."
        )
    print(done.rebuilt)
    if done.aside:
        print(f"The data that was there before is in {done.aside}. Remove it when you do not need it.")
    print("The stores run. `trilake up` also starts Airflow.")


def _show(folder: Path, *, as_json: bool) -> None:
    from trilake.platform.embedded.backup.store import open_store

    store = open_store(folder)
    backups = store.backups()
    if as_json:
        document = {"backups": [asdict(one) for one in backups], "unfinished": store.unfinished()}
        print(as_text.dumps(document, indent=2, default=str))
        return
    rows = [
        (
            one.name,
            f"{one.size / _MB:,.0f}",
            f"{one.added / _MB:,.0f}",
            one.facts["dag_runs"],
            one.facts["publications"],
        )
        for one in backups
    ]
    options.print_rows(("backup", "MB", "new MB", "DAG runs", "publications"), rows)
    for name in store.unfinished():
        print(f"{name} is not a backup: it was interrupted. The next backup removes it.")
