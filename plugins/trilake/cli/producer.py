"""``trilake producer``: the keys that may put files below a data set's prefix."""

from __future__ import annotations

import json as as_text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trilake.cli.options import Json, print_rows

if TYPE_CHECKING:
    from trilake.platform.hosts.producers import Producers

app = typer.Typer(
    help="Manage the keys that may put files below a data set's prefix of s3://raw/, on vps_1 or in the replica.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="Lower-case letters, digits and -.")]
OfDataSet = Annotated[str, typer.Option("--data-set", help="The data set. A producer of two data sets needs two keys.")]


def producers_here() -> Producers:
    """The producers of this host or replica. Uses the root secret in its ``.env``."""
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.checkout import find_checkout
    from trilake.platform.hosts.containers import project_name
    from trilake.platform.hosts.producers import Producers
    from trilake.platform.hosts.s3_admin import ROOT, secret

    file = find_checkout() / environment.FILE
    return Producers(project_name(os.environ, file), secret(environment.read(file), ROOT))


@app.command()
def add(
    name: Name,
    data_set: OfDataSet,
    out: Annotated[Path | None, typer.Option(help="The key's file. Default: DATA_SET.NAME.key in this folder.")] = None,
    json: Json = False,
) -> None:
    """Make a key and write it to a file with mode 600. The secret is stored nowhere else."""
    from trilake.lake.declared import find_data_set
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.checkout import find_checkout, served_project

    checkout = find_checkout()
    settings = environment.read(checkout / environment.FILE) if (checkout / environment.FILE).exists() else {}
    # No DAG would read files of a data set that is not declared.
    find_data_set(served_project(checkout, settings) / "dags", data_set)
    file = out or Path(f"{data_set}.{name}.key")
    producer = producers_here().add(name, data_set, file)
    line = f"{file} is {name}'s key: it may put files below s3://raw/{data_set}/ and nothing else."
    print(as_text.dumps({**producer, "file": str(file)}) if json else line)


@app.command()
def revoke(name: Name, data_set: OfDataSet, json: Json = False) -> None:
    """Revoke a key at once. The files that it uploaded are kept."""
    producer = producers_here().revoke(name, data_set)
    line = f"{name}'s key for {data_set} is revoked. The files that it uploaded are kept."
    print(as_text.dumps(producer) if json else line)


@app.command("list")
def list_producers(json: Json = False) -> None:
    """Show every producer, its data set and its key."""
    producers = producers_here().list()
    if json:
        print(as_text.dumps(producers))
    else:
        rows = [(producer["name"], producer["data_set"], producer["key"]) for producer in producers]
        print_rows(("name", "data set", "key"), rows)
