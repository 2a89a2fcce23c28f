"""``trilake producer``: who may put files below a data set's prefix."""

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
    help="Who may put files below a data set's prefix of s3://raw/: on vps_1 itself or in the replica.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="Small letters, digits and -.")]
OfDataSet = Annotated[str, typer.Option("--data-set", help="Whose prefix; a producer of two has two keys.")]


def producers_here() -> Producers:
    """The producers of this host or replica, with the root's secret of its ``.env``."""
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
    out: Annotated[Path | None, typer.Option(help="The file; by default DATA_SET.NAME.key here.")] = None,
    json: Json = False,
) -> None:
    """Make a key and write it to a file, mode 600. Its secret is kept nowhere else."""
    from trilake.cli.declared import find_data_set
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.checkout import find_checkout, served_project

    checkout = find_checkout()
    settings = environment.read(checkout / environment.FILE) if (checkout / environment.FILE).exists() else {}
    # a data set that no DAG declares has no reader
    find_data_set(served_project(checkout, settings) / "dags", data_set)
    file = out or Path(f"{data_set}.{name}.key")
    one = producers_here().add(name, data_set, file)
    line = f"{file} is {name}'s key: it may put files below s3://raw/{data_set}/ and nothing else."
    print(as_text.dumps({**one, "file": str(file)}) if json else line)


@app.command()
def revoke(name: Name, data_set: OfDataSet, json: Json = False) -> None:
    """End a key, at once. The files that it has put stay."""
    one = producers_here().revoke(name, data_set)
    print(as_text.dumps(one) if json else f"{name}'s key for {data_set} is revoked. The files that it has put stay.")


@app.command("list")
def list_producers(json: Json = False) -> None:
    """Show every producer and the data set that it brings."""
    found = producers_here().list()
    if json:
        print(as_text.dumps(found))
    else:
        print_rows(("name", "data set", "key"), [(one["name"], one["data_set"], one["key"]) for one in found])
