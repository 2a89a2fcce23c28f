"""``trilake env``, ``overlay``, ``replica``, ``deploy`` and ``setup``: the three hosts, and their replica."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trilake.cli import options

app = typer.Typer()
setup_app = typer.Typer(help="What vps_1 runs at each start, from .env, and before a restore.", no_args_is_help=True)


@app.command()
def env(
    file: Annotated[Path, typer.Option(help="The .env file.")] = Path(".env"),
    hosts: Annotated[str, typer.Option(help="Private addresses of vps_1, vps_2 and vps_3, separated by commas.")] = "",
    subnet: Annotated[str, typer.Option(help="The replica's subnet, if --hosts is not given.")] = "10.77.0.0/24",
    check: Annotated[bool, typer.Option("--check", help="Only check whether the file is complete.")] = False,
    part: Annotated[str, typer.Option(help="Only print the settings that one host (vps_1, vps_2, vps_3) needs.")] = "",
) -> None:
    """Write a new .env with random secrets, for the hosts or their replica. An existing file is never replaced."""
    from trilake.platform.hosts import environment

    addresses = [address.strip() for address in hosts.split(",")] if hosts else []
    if addresses and len(addresses) != 3:
        raise typer.BadParameter("needs three addresses", param_hint="--hosts")
    if part not in ("", "vps_1", "vps_2", "vps_3"):
        raise typer.BadParameter("must be vps_1, vps_2 or vps_3", param_hint="--part")
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
    name: Annotated[str, typer.Argument(help="A folder of k8s/overlays.")],
    into: Annotated[Path, typer.Argument(help="The folder to write. An earlier copy in it is replaced.")],
    k8s: Annotated[Path, typer.Option(help="The folder to copy.")] = Path("k8s"),
    file: Annotated[Path | None, typer.Option(help="A .env file. Default: this process's environment.")] = None,
) -> None:
    """Copy k8s/, and add the addresses and the jobs' connections from .env. `kubectl apply -k` on vps_2 applies it."""
    from trilake.platform.hosts import environment
    from trilake.platform.hosts.overlay import write_overlay

    print(write_overlay(k8s, name, environment.read(file) if file else os.environ, into))


@app.command()
def deploy(
    check: Annotated[bool, typer.Option("--check", help="Only check whether the project can be deployed.")] = False,
) -> None:
    """Deploy the project's jobs, DAGs and SQL together, as one version. If a part fails, nothing goes live."""
    from trilake.cli import deploy
    from trilake.project import find_project

    if check:
        deploy.check(find_project())
    else:
        deploy.deploy(options.endpoints(), find_project())


@app.command()
def replica(
    down: Annotated[bool, typer.Option("--down", help="Stop the replica. Its data is kept.")] = False,
) -> None:
    """Start the replica: the three hosts in Docker. Start each part that is not running; wait until all are ready."""
    from trilake.cli import replica
    from trilake.platform.hosts.checkout import find_checkout

    (replica.down if down else replica.up)(find_checkout())


@setup_app.command("databases")
def setup_databases() -> None:
    """Create databases and users in both PostgreSQL servers: Airflow's metadata in one, oltp and lake in the other."""
    from trilake.endpoints import PostgresEndpoint
    from trilake.platform.hosts.airflow import metadata
    from trilake.platform.hosts.connections import POSTGRES_PORT, required
    from trilake.postgres.databases import make_backup_user, make_catalog_reader, make_databases

    password = required(os.environ, "POSTGRES_SUPERUSER_PASSWORD")
    own = metadata(os.environ)
    servers = [PostgresEndpoint(own.host, own.port, "postgres", "postgres", password)]
    servers.append(PostgresEndpoint("vps-1", POSTGRES_PORT, "postgres", "postgres", password))
    make_databases(servers[0], {"airflow": own.password})
    passwords = {name: required(os.environ, f"{name.upper()}_PASSWORD") for name in ("oltp", "lake")}
    make_databases(servers[1], passwords)
    make_catalog_reader(servers[1], required(os.environ, "LAKE_RO_PASSWORD"))
    for server in servers:
        make_backup_user(server, required(os.environ, "POSTGRES_BACKUP_PASSWORD"))
    print("Databases airflow, oltp and lake exist. Each belongs to the user with its name.")


@setup_app.command("s3")
def setup_s3() -> None:
    """Create S3's identities and buckets, and set each identity's rights in each bucket."""
    from trilake.platform.hosts import s3_admin

    s3_admin.set_up(os.environ)
    print(f"S3 has the identities {', '.join(s3_admin.IDENTITIES)} and the buckets {', '.join(s3_admin.RIGHTS)}.")


@setup_app.command("airflow")
def setup_airflow() -> None:
    """Migrate Airflow's database, write its roles, and set the password of its user admin."""
    from trilake.platform.airflow_roles import ADMIN
    from trilake.platform.hosts import airflow

    airflow.set_up(os.environ)
    print(f"Airflow's database is up to date. The password of user {ADMIN} is the one in .env.")


@setup_app.command("no-jobs")
def setup_no_jobs() -> None:
    """Stop all Spark jobs on vps_2, before a restore starts the stores again. Airflow's next tries run them again."""
    from trilake.platform.hosts import jobs
    from trilake.platform.hosts.connections import KUBECONFIG

    if not Path(KUBECONFIG).exists():
        print("No job can run: this host has no kubeconfig of vps_2.")
        return
    stopped = jobs.stop_all(Path(KUBECONFIG))
    print(f"Stopped on vps_2: {', '.join(stopped) or 'no job was running'}.")
