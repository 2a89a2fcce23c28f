"""``trilake up``, ``down``, ``status``, ``logs``, ``doctor`` and ``demo``: the platform on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from trilake.cli import options

app = typer.Typer()


@app.command()
def up(
    without_airflow: Annotated[
        bool,
        typer.Option("--without-airflow", help="Start only the stores and Spark. This is enough for jobs and SQL."),
    ] = False,
) -> None:
    """Start each service that is not running, and wait until all are ready."""
    from trilake.cli.lifecycle import start

    start(options.home(), airflow_too=not without_airflow)


@app.command()
def down() -> None:
    """Stop every process of the platform. Its data is kept."""
    from trilake.cli.lifecycle import stop

    stop(options.home())


@app.command()
def status(json: options.Json = False) -> None:
    """Show each service: its state, address, process, memory and version."""
    from trilake.cli.lifecycle import show

    show(options.home(), as_json=json)


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="The service's name in `trilake status`.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Print new lines until you press Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many lines to show from the end.")] = 50,
) -> None:
    """Show a service's log."""
    from trilake.cli.logs import show

    show(options.home(), service, lines=lines, follow=follow)


@app.command()
def doctor(json: options.Json = False) -> None:
    """Show what is missing on this machine and how to fix it. The exit code is 1 if something is missing."""
    from trilake.cli.doctor import examine, show

    healthy = show(examine(options.home()), as_json=json)
    raise typer.Exit(0 if healthy else 1)


@app.command()
def demo() -> None:
    """Start the platform, and run the project's demo. The demo of Trilake's own project loads a year of flights."""
    from rich.console import Console

    from trilake.cli.demo import load
    from trilake.cli.lifecycle import start
    from trilake.endpoints import Endpoints
    from trilake.platform.airflow_api import AirflowApi
    from trilake.platform.embedded.airflow import administrator

    home = options.home()
    run = load(home.project)
    start(home)
    url, user, password = administrator(home)
    with AirflowApi(url, user, password) as api:
        run(api, Endpoints.from_environment(home.environment()), Console(), home.path / "reports")
    print(f"\nAirflow: {url}  user {user}, password {password}")
