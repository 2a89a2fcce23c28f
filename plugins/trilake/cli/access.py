"""``trilake access``: the people and agents who may use the platform, each with one identity everywhere."""

from __future__ import annotations

import json as as_text
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trilake.cli import options
from trilake.cli.options import Json, print_rows

if TYPE_CHECKING:
    from trilake.endpoints import Endpoints
    from trilake.platform.access import Access, Person
    from trilake.platform.hosts.access import Stores

app = typer.Typer(
    help="Manage who has access: on vps_1, in the replica, or on this machine's platform.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="Name of a person or agent: lower-case letters, digits and -.")]
Embedded = Annotated[
    bool, typer.Option("--embedded", help="Use this machine's platform, also if there is an .env of the hosts.")
]


@app.command()
def add(
    name: Name,
    role: Annotated[str, typer.Option(help="agent, engineer or admin. docs/operations/hosts.md lists their rights.")],
    airflow: Annotated[
        str, typer.Option(help="Role in Airflow: Viewer, User, Op or Admin. Default: User for an engineer, Admin.")
    ] = "",
    s3: Annotated[bool, typer.Option("--s3", help="Also a key of S3, for an engineer or admin.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: NAME.access in this folder.")] = None,
    remote: Annotated[str, typer.Option(help="HOST[:PORT] of the VPN in the profile, if not the usual one.")] = "",
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Give a person or an agent everything of a role, and write it to one file with mode 600.

    The secrets are stored nowhere else. If this was killed, run it again.
    """
    file = out or Path(f"{name}.access")
    access = access_here(embedded=embedded, remote=remote)
    chosen: dict[str, Any] = ({"airflow": airflow} if airflow else {}) | ({"s3": True} if s3 else {})
    person = access.add(name, role, file, chosen)
    if json:
        print(as_text.dumps({**_shown(person), "file": str(file), "missing": list(access.missing)}))
        return
    print(f"{file} has everything that {name} needs as {role}. Send it in a safe way, and delete it.")
    for line in access.missing:
        print(f"Not here: {line}")


@app.command("list")
def list_people(embedded: Embedded = False, json: Json = False) -> None:
    """Show everybody who has or had access: role, state and times."""
    people = [_shown(person) for person in access_here(embedded=embedded).people()]
    if json:
        print(as_text.dumps(people))
        return
    columns = ("name", "role", "airflow", "state", "added_at", "revoked_at")
    print_rows(columns, [[person[name] or "-" for name in columns] for person in people])


@app.command()
def revoke(name: Name, embedded: Embedded = False, json: Json = False) -> None:
    """End all access of a person or an agent at once, with open sessions. If this was killed, run it again."""
    access = access_here(embedded=embedded)
    person, cancelled = access.revoke(name)
    if json:
        print(as_text.dumps({**_shown(person), "cancelled": cancelled}))
        return
    runs = f" These runs were cancelled: {', '.join(cancelled)}." if cancelled else ""
    print(f"{name} has no access any more.{runs}")


@app.command()
def sync(json: Json = False) -> None:
    """Make the people's users, roles and quotas of ClickHouse again, on every shard: after a loss, or on a new one."""
    if (stores := _stores()) is None:
        print(as_text.dumps([]) if json else "Nothing to do: this machine's platform has no users in ClickHouse.")
        return
    names = stores.ask("sync")
    print(as_text.dumps(names) if json else f"ClickHouse has the users {', '.join(names) or '(none)'} on every shard.")


def sync_after(endpoints: Endpoints, cause: str) -> None:
    """After a command that may have found an empty shard: make people's users there, or say how.

    A service does not have the password for it; the administrator's shell has.
    """
    from trilake.platform.access import Table, users_of
    from trilake.platform.hosts.access import sync_clickhouse

    table = Table(endpoints.lake)
    if not any(users_of(table.people())):
        return
    if os.environ.get("CLICKHOUSE_ACCESS_PASSWORD"):
        names = sync_clickhouse(os.environ, table)
        print(f"People's users in ClickHouse: {', '.join(names) or '(none)'}.", file=sys.stderr)
    else:
        print(f"{cause} does not make people's users in ClickHouse: run `trilake access sync`.", file=sys.stderr)


def access_here(*, embedded: bool = False, remote: str = "") -> Access:
    """The access of this host or replica if there is an ``.env``, else of this machine's platform."""
    if not embedded and (stores := _stores()) is not None:
        from trilake.platform.hosts import access as on_hosts

        return on_hosts.access_of(stores.project, stores.env, remote=remote)
    from trilake.platform.embedded import access as here

    return here.access_of(options.home())


def _stores() -> Stores | None:
    """The stores of the hosts whose ``.env`` is here."""
    from trilake.errors import ConfigurationError
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.access import Stores
    from trilake.platform.hosts.checkout import find_checkout
    from trilake.platform.hosts.containers import project_name

    try:
        file = find_checkout() / environment.FILE
    except ConfigurationError:
        return None
    return Stores(project_name(os.environ, file), environment.read(file)) if file.exists() else None


def _shown(person: Person) -> dict[str, Any]:
    """What anybody may see of a row: no hashes."""
    return {
        "name": person.name,
        "role": person.role,
        "airflow": person.airflow_role,
        "s3": person.has_s3_key,
        "state": person.state,
        "added_at": person.added_at,
        "revoked_at": person.revoked_at,
    }
