"""``trilake env``, ``overlay``, ``replica``, ``deploy`` and ``setup``: the three hosts, and their replica."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trilake.cli import options

app = typer.Typer()
setup_app = typer.Typer(help="What vps_1 sets up from its own .env each time it comes up.", no_args_is_help=True)


@app.command()
def env(
    file: Annotated[Path, typer.Option(help="Where it is.")] = Path(".env"),
    hosts: Annotated[str, typer.Option(help="Private addresses of vps_1, vps_2 and vps_3, with commas.")] = "",
    subnet: Annotated[str, typer.Option(help="Of the replica, if there are no hosts.")] = "10.77.0.0/24",
    check: Annotated[bool, typer.Option("--check", help="Write nothing: tell whether the file is complete.")] = False,
    part: Annotated[str, typer.Option(help="Write nothing: print what a host (vps_1, vps_2, vps_3) needs.")] = "",
) -> None:
    """Write .env for the hosts or their replica, once, with random secrets. An existing file is never replaced."""
    from trilake.platform.hosts import environment

    addresses = [address.strip() for address in hosts.split(",")] if hosts else []
    if addresses and len(addresses) != 3:
        raise typer.BadParameter("takes three addresses", param_hint="--hosts")
    if part not in ("", "vps_1", "vps_2", "vps_3"):
        raise typer.BadParameter("is one of vps_1, vps_2, vps_3", param_hint="--part")
    if check:
        environment.check(environment.read(file), part or None, where=str(file))
        print(f"{file} has everything{f' that {part} needs' if part else ''}.")
    elif part:
        print(environment.part(environment.read(file), part), end="")
    else:
        settings = environment.host_settings(addresses) if addresses else environment.replica_settings(subnet)
        environment.write(file, settings)
        print(
            f"{file} is written. Keep a copy in a safe place. "
            "Anyone who has it has all access. Without it the data is lost."
        )


@app.command()
def overlay(
    name: Annotated[str, typer.Argument(help="Of k8s/overlays.")],
    into: Annotated[Path, typer.Argument(help="The folder to make. If it exists, it is replaced.")],
    k8s: Annotated[Path, typer.Option(help="What it is made from.")] = Path("k8s"),
    file: Annotated[Path | None, typer.Option(help="A .env; by default this process' environment.")] = None,
) -> None:
    """Write k8s/ with the hosts' addresses and the jobs' connections of .env, for `kubectl apply -k` on vps_2."""
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.overlay import write_overlay

    print(write_overlay(k8s, name, environment.read(file) if file else os.environ, into))


@app.command()
def deploy(
    check: Annotated[bool, typer.Option("--check", help="Deploy nothing: tell whether it could be.")] = False,
) -> None:
    """Push the jobs' code and make the project's DAGs and SQL live under the same version. All or nothing."""
    from trilake.cli import deploy
    from trilake.project import find_project

    if check:
        deploy.check(find_project())
    else:
        deploy.deploy(options.endpoints(), find_project())


@app.command()
def replica(
    down: Annotated[bool, typer.Option("--down", help="Stop it; its data is kept.")] = False,
) -> None:
    """Start each part of the three hosts' replica in Docker that does not run, and wait until all is well."""
    from trilake.cli import replica
    from trilake.platform.hosts.checkout import find_checkout

    (replica.down if down else replica.up)(find_checkout())


@setup_app.command("databases")
def setup_databases() -> None:
    """Databases and users of both PostgreSQL servers: Airflow's metadata on one, oltp and lake on the other."""
    from trilake.endpoints import PostgresEndpoint
    from trilake.platform.hosts.airflow import metadata
    from trilake.platform.hosts.connections import POSTGRES_PORT, required
    from trilake.postgres.databases import make_databases

    password = required(os.environ, "POSTGRES_SUPERUSER_PASSWORD")
    own = metadata(os.environ)
    make_databases(PostgresEndpoint(own.host, own.port, "postgres", "postgres", password), {"airflow": own.password})
    passwords = {name: required(os.environ, f"{name.upper()}_PASSWORD") for name in ("oltp", "lake")}
    make_databases(PostgresEndpoint("vps-1", POSTGRES_PORT, "postgres", "postgres", password), passwords)
    print("Databases airflow, oltp and lake exist, each for the user of its name.")


@setup_app.command("s3")
def setup_s3() -> None:
    """S3's identities, buckets, and who may do what in which bucket."""
    from trilake.platform.hosts import s3_admin

    s3_admin.set_up(os.environ)
    print(f"S3 knows {', '.join(s3_admin.IDENTITIES)}, and the buckets {', '.join(s3_admin.RIGHTS)}.")


@setup_app.command("airflow")
def setup_airflow() -> None:
    """Airflow's database, and the password of its user admin."""
    from trilake.platform.hosts import airflow

    airflow.set_up(os.environ)
    print(f"Airflow's database is up to date. The password of user {airflow.ADMIN} is the one of .env.")
