"""``trilake producer``: who may put files below a data set's prefix."""

from __future__ import annotations

import json
import os
from pathlib import Path

from trilake.cli.declared import find_data_set
from trilake.platform.hosts import environment
from trilake.platform.hosts.containers import project_name
from trilake.platform.hosts.producers import Producers
from trilake.platform.hosts.s3_admin import ROOT, secret
from trilake.project import find_project


def here() -> Producers:
    """The producers of this project, with the root's secret of its ``.env``."""
    file = find_project() / environment.FILE
    return Producers(project_name(os.environ, file), secret(environment.read(file), ROOT))


def add(producers: Producers, name: str, data_set: str, *, file: Path, as_json: bool) -> None:
    """:raises ConfigurationError: no DAG declares this data set: its files would be nobody's."""
    find_data_set(find_project() / "dags", data_set)
    one = producers.add(name, data_set, file)
    line = f"{file} is {name}'s key: it may put files below s3://raw/{data_set}/ and nothing else."
    print(json.dumps({**one, "file": str(file)}) if as_json else line)


def revoke(producers: Producers, name: str, data_set: str, *, as_json: bool) -> None:
    one = producers.revoke(name, data_set)
    print(json.dumps(one) if as_json else f"{name}'s key for {data_set} is revoked. What it has put is still there.")


def show(producers: Producers, *, as_json: bool) -> None:
    found = producers.list()
    if as_json:
        print(json.dumps(found))
        return
    rows = [("name", "data set", "key"), *((one["name"], one["data_set"], one["key"]) for one in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
