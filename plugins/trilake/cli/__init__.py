"""``trilake``: the platform's command line.

Every command imports what it needs when it is called: ``trilake --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trilake.errors import TrilakeError

if TYPE_CHECKING:
    from trilake.endpoints import Endpoints
    from trilake.platform.embedded.home import Home

DEBUG = "--debug"

app = typer.Typer(
    help="A data platform on three hosts, or in one folder of this machine.",
    epilog="An error is one line that says what to do; --debug, anywhere, shows where it came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
jobs_app = typer.Typer(help="The Spark jobs' code in S3.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
new_app = typer.Typer(help="Files to start from.", no_args_is_help=True)
app.add_typer(new_app, name="new")
vpn_app = typer.Typer(
    help="Who may come in: the VPN of vps_1, on the host itself or in the replica.", no_args_is_help=True
)
app.add_typer(vpn_app, name="vpn")

producer_app = typer.Typer(
    help="Who may put files below a data set's prefix of s3://raw/: on vps_1 itself or in the replica.",
    no_args_is_help=True,
)
app.add_typer(producer_app, name="producer")

setup_app = typer.Typer(help="What vps_1 sets up of its own .env, whenever it comes up.", no_args_is_help=True)
app.add_typer(setup_app, name="setup")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """The command `trilake`. Exit codes: 0 done, 1 an error (one line on stderr), 2 a wrong command line."""
    debug = DEBUG in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    _spare_proxies_this_machine()
    try:
        app(args=arguments, prog_name="trilake")
    except Exception as e:
        if debug:
            raise
        print(f"trilake: {_one_line(e)}", file=sys.stderr)
        sys.exit(1)


def _spare_proxies_this_machine() -> None:
    """What runs here is no proxy's to ask: boto3 and clickhouse-connect would go through the one of the environment."""
    known = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    spared = ",".join(filter(None, [*known, "127.0.0.1", "localhost"]))
    os.environ.update(no_proxy=spared, NO_PROXY=spared)


def _one_line(error: Exception) -> str:
    if isinstance(error, TrilakeError):
        return str(error)
    if type(error).__module__ == "botocore.exceptions":  # not imported for this: it costs as much as all else here
        return f"S3: {error}"
    return f"{type(error).__name__}: {error}. This was not foreseen: see it whole with {DEBUG}."


def _home() -> Home:
    from trilake.platform.embedded.home import Home

    return Home.locate()


def _endpoints() -> Endpoints:
    """Of the environment, if it names connections (on a host, in a container), else of the platform here."""
    from trilake.endpoints import S3_CONNECTION, Endpoints

    if f"AIRFLOW_CONN_{S3_CONNECTION.upper()}" in os.environ:
        return Endpoints.from_environment()
    return Endpoints.from_environment(_home().environment())


@app.command()
def up(
    without_airflow: Annotated[
        bool,
        typer.Option("--without-airflow", help="The stores and Spark only: enough for jobs and SQL."),
    ] = False,
) -> None:
    """Start what does not run, and wait until all of it is ready."""
    from trilake.cli.lifecycle import start

    start(_home(), airflow_too=not without_airflow)


@app.command()
def down() -> None:
    """End every process of the platform. Its data is kept."""
    from trilake.cli.lifecycle import stop

    stop(_home())


@app.command()
def status(json: Json = False) -> None:
    """Show each service: its state, address, process, memory and version."""
    from trilake.cli.lifecycle import show

    show(_home(), as_json=json)


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="As `trilake status` names it.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is still to come.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the last lines.")] = 50,
) -> None:
    """Show a service's log."""
    from trilake.cli.logs import show

    show(_home(), service, lines=lines, follow=follow)


@app.command()
def sql(query: Annotated[str, typer.Argument(help="In ClickHouse's SQL.")], json: Json = False) -> None:
    """Ask ClickHouse. A table on a terminal, tab-separated values in a pipe."""
    from trilake.cli.query import clickhouse

    clickhouse(_endpoints().clickhouse, query, as_json=json)


@app.command()
def psql(
    query: Annotated[str, typer.Argument(help="In PostgreSQL's SQL.")],
    json: Json = False,
    lake: Annotated[bool, typer.Option("--lake", help="The lake's database (catalog, publications).")] = False,
) -> None:
    """Ask PostgreSQL (OLTP). A table on a terminal, tab-separated values in a pipe."""
    from trilake.cli.query import postgres

    endpoints = _endpoints()
    postgres(endpoints.lake if lake else endpoints.oltp, query, as_json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is missing on this machine and how to mend it. Exit code 1 if something is."""
    from trilake.cli.doctor import examine, show

    healthy = show(examine(_home()), as_json=json)
    raise typer.Exit(0 if healthy else 1)


@app.command()
def demo() -> None:
    """Start the platform, and run the project's demo (here: the flights of 2013 through all DAGs)."""
    from rich.console import Console

    from trilake.cli.airflow_api import AirflowApi
    from trilake.cli.demo import load
    from trilake.cli.lifecycle import administrator, start
    from trilake.endpoints import Endpoints

    home = _home()
    run = load(home.project)
    start(home)
    url, user, password = administrator(home)
    with AirflowApi(url, user, password) as api:
        run(api, Endpoints.from_environment(home.environment()), Console(), home.path / "reports")
    print(f"\nAirflow: {url}  user {user}, password {password}")


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="A module of spark_jobs/.")],
    partition: Annotated[str, typer.Option(help="The first partition, such as 2013-02 or 2013-02-28.")],
    end: Annotated[str, typer.Option(help="The last partition; by default the first.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Read so many lines of each partition; 0: all.")] = 0,
    data_set: Annotated[str, typer.Option(help="What the job makes, where the DAGs do not say it.")] = "",
    json: Json = False,
) -> None:
    """Dry run of a Spark job here: what it would commit, and what would change. Exit code 1 if it would not fit."""
    from trilake.cli.run import run
    from trilake.endpoints import Endpoints

    home = _home()
    endpoints = Endpoints.from_environment(home.environment())
    fits = run(home, endpoints, job=job, start=partition, end=end, limit=limit, data_set=data_set, as_json=json)
    raise typer.Exit(0 if fits else 1)


@app.command()
def put(
    data_set: Annotated[str, typer.Argument(help="As the DAGs declare it.")],
    partition: Annotated[str, typer.Argument(help="Such as 2013-02 or 2013-02-28.")],
    files: Annotated[list[Path], typer.Argument(help="CSV files with a header.")],
    json: Json = False,
) -> None:
    """Put files into a partition of s3://raw/, as a producer does. One of the same name is replaced."""
    from trilake.cli.put import put
    from trilake.project import find_project

    put(find_project(), _endpoints(), data_set, partition, files, as_json=json)


@app.command()
def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for servers that do not answer yet.")] = 0,
    json: Json = False,
) -> None:
    """Apply the files of sql/ to PostgreSQL and to every shard of ClickHouse."""
    from trilake.cli import ledger
    from trilake.project import find_project

    ledger.migrate(_endpoints(), find_project() / "sql", dry_run=plan, wait=wait, as_json=json)


@app.command()
def arrivals(
    hours: Annotated[float, typer.Option("--hours", help="Taken longer ago than this.", min=0)] = 24,
    again: Annotated[
        str, typer.Option("--again", metavar="DATA_SET/PARTITION", help="Forget who took this: it is due again.")
    ] = "",
    json: Json = False,
) -> None:
    """Show partitions that a run took in hand a day ago or more and no job has committed."""
    from trilake.cli import ledger

    ledger.arrivals(_endpoints(), hours=hours, again=again, as_json=json)


@app.command()
def publications(
    finish: Annotated[bool, typer.Option("--finish", help="Complete what was decided.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Drop what dead publishers left behind.")] = False,
    json: Json = False,
) -> None:
    """Show which snapshot of each partition ClickHouse shows."""
    from trilake.cli import ledger

    ledger.publications(_endpoints(), finish=finish, clean=clean, as_json=json)


@app.command()
def env(
    file: Annotated[Path, typer.Option(help="Where it is.")] = Path(".env"),
    hosts: Annotated[str, typer.Option(help="Private addresses of vps_1, vps_2 and vps_3, with commas.")] = "",
    subnet: Annotated[str, typer.Option(help="Of the replica, if there are no hosts.")] = "10.77.0.0/24",
    check: Annotated[bool, typer.Option("--check", help="Write nothing: say whether what is there is whole.")] = False,
    part: Annotated[str, typer.Option(help="Write nothing: print what a host (vps_1, vps_2, vps_3) needs.")] = "",
) -> None:
    """Write .env for the hosts or their replica, once, with random secrets. It is never written over."""
    from trilake.cli import environment

    addresses = [address.strip() for address in hosts.split(",")] if hosts else []
    if addresses and len(addresses) != 3:
        raise typer.BadParameter("takes three addresses", param_hint="--hosts")
    if part not in ("", "vps_1", "vps_2", "vps_3"):
        raise typer.BadParameter("is one of vps_1, vps_2, vps_3", param_hint="--part")
    if check:
        environment.check(file, part or None)
    elif part:
        environment.show(file, part)
    else:
        environment.write(file, hosts=addresses, subnet=subnet)


@app.command()
def overlay(
    name: Annotated[str, typer.Argument(help="Of k8s/overlays.")],
    into: Annotated[Path, typer.Argument(help="The folder to be made, or made anew.")],
    k8s: Annotated[Path, typer.Option(help="What it is made from.")] = Path("k8s"),
    file: Annotated[Path | None, typer.Option(help="A .env; by default this process' environment.")] = None,
) -> None:
    """Write k8s/ with the hosts' addresses and the jobs' connections of .env, for `kubectl apply -k` on vps_2."""
    import os

    from trilake.platform.hosts import environment
    from trilake.platform.hosts.overlay import write_overlay

    print(write_overlay(k8s, name, environment.read(file) if file else os.environ, into))


@app.command()
def deploy(
    check: Annotated[bool, typer.Option("--check", help="Deploy nothing: say whether it could be.")] = False,
) -> None:
    """Push the jobs' code and make the project's DAGs and SQL live under the same version. All or nothing."""
    from trilake.cli.deploy import check as look_at
    from trilake.cli.deploy import deploy as put_live
    from trilake.project import find_project

    if check:
        look_at(find_project())
    else:
        put_live(_endpoints(), find_project())


@app.command()
def replica(
    down: Annotated[bool, typer.Option("--down", help="End it; its data is kept.")] = False,
) -> None:
    """Start the three hosts' replica in Docker, or what of it does not run, and wait until all is well."""
    from trilake.cli.replica import down as end
    from trilake.cli.replica import up as start
    from trilake.project import find_project

    (end if down else start)(find_project())


@setup_app.command("databases")
def setup_databases() -> None:
    """Databases and users of both PostgreSQL servers."""
    from trilake.cli import setup

    setup.databases()


@setup_app.command("s3")
def setup_s3() -> None:
    """S3's identities, buckets, and who may do what in which."""
    from trilake.cli import setup

    setup.store()


@setup_app.command("airflow")
def setup_airflow() -> None:
    """Airflow's database, and the password of its user admin."""
    from trilake.cli import setup

    setup.airflow()


@jobs_app.command("push")
def jobs_push() -> None:
    """Put the jobs' code into S3 and make it the current version, for runs that start from now on."""
    from trilake import s3
    from trilake.project import find_project
    from trilake.spark import versions

    print(versions.push(s3.client(_endpoints().s3), find_project()))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Made if it is not there.")],
    package: Annotated[
        str, typer.Option(help="Of what DAGs and jobs share, below dags/; by default named as the folder.")
    ] = "",
) -> None:
    """Write a small project of your own, with tests, which works as it is. Nothing is overwritten."""
    from trilake.cli.init import show

    show(folder, package)


@new_app.callback()
def _new() -> None:
    """Keeps `dataset` a command of its own."""


@new_app.command("dataset")
def new_dataset(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and underscores.")],
    grain: Annotated[str, typer.Option(help="What is recomputed and replaced as a whole: month or day.")] = "month",
) -> None:
    """Write a data set's DAG, job, table, check and tests, which run as they are. Nothing is overwritten."""
    from trilake.cli.new import show
    from trilake.project import find_project

    show(find_project(), name, grain)


@vpn_app.command("init")
def vpn_init(json: Json = False) -> None:
    """Make the VPN's keys and certificates, if there are none (its container does so at its first start)."""
    from trilake.cli import vpn

    vpn.init(vpn.here(), as_json=json)


@vpn_app.command("add")
def vpn_add(
    name: Annotated[str, typer.Argument(help="Of a person or an agent: small letters, digits and -.")],
    role: Annotated[str, typer.Option(help="admin, engineer or agent: docs/network.md says who reaches what.")],
    out: Annotated[Path | None, typer.Option(help="The file; by default NAME.ovpn here. Never written over.")] = None,
    remote: Annotated[str, typer.Option(help="HOST[:PORT] of the VPN, if not as .env says.")] = "",
    json: Json = False,
) -> None:
    """Make a profile: one file with all that OpenVPN needs, mode 600. Its keys are not kept."""
    from trilake.cli import vpn

    vpn.add(vpn.here(), name, role, file=out or Path(f"{name}.ovpn"), remote=remote, as_json=json)


@vpn_app.command("revoke")
def vpn_revoke(name: str, json: Json = False) -> None:
    """End a profile and its session, at once."""
    from trilake.cli import vpn

    vpn.revoke(vpn.here(), name, as_json=json)


@vpn_app.command("list")
def vpn_list(json: Json = False) -> None:
    """Show every profile: role, address, whether it holds, whether it is connected."""
    from trilake.cli import vpn

    vpn.show(vpn.here(), as_json=json)


@vpn_app.command("renew-crl")
def vpn_renew_crl(json: Json = False) -> None:
    """Write a new revocation list. The container does so by itself long before the old one expires."""
    from trilake.cli import vpn

    vpn.renew_crl(vpn.here(), as_json=json)


_Producer = Annotated[str, typer.Argument(help="Small letters, digits and -.")]
_DataSet = Annotated[str, typer.Option("--data-set", help="Whose prefix; a producer of two has two keys.")]


@producer_app.command("add")
def producer_add(
    name: _Producer,
    data_set: _DataSet,
    out: Annotated[Path | None, typer.Option(help="The file; by default DATA_SET.NAME.key here.")] = None,
    json: Json = False,
) -> None:
    """Make a key and write it to a file, mode 600. Its secret is kept nowhere else."""
    from trilake.cli import producer

    producer.add(producer.here(), name, data_set, file=out or Path(f"{data_set}.{name}.key"), as_json=json)


@producer_app.command("revoke")
def producer_revoke(name: _Producer, data_set: _DataSet, json: Json = False) -> None:
    """End a key, at once. What it has put stays."""
    from trilake.cli import producer

    producer.revoke(producer.here(), name, data_set, as_json=json)


@producer_app.command("list")
def producer_list(json: Json = False) -> None:
    """Show every producer and the data set that it brings."""
    from trilake.cli import producer

    producer.show(producer.here(), as_json=json)
