"""``trilake``: the platform's command line. One file for each group of commands.

Every command imports what it needs when it is called, so that ``trilake --help`` answers at once.
"""

from __future__ import annotations

import os
import sys

try:
    import typer
except ModuleNotFoundError:  # `pip install trilake` without extras installs only the core, as in Spark's image
    sys.exit("trilake: the command line is not installed. Run `pip install 'trilake[airflow]'`.")

from trilake.cli import (
    access,
    agents,
    backup,
    data,
    hosts,
    init,
    jobs,
    local,
    new,
    producer,
    publications,
    query,
    types,
    vpn,
)
from trilake.errors import TrilakeError

DEBUG = "--debug"

app = typer.Typer(
    help="A data platform on three hosts, or in one folder of this machine.",
    epilog="An error is one line that says what to do. --debug, anywhere in the command, shows the traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (local, backup, query, init, data, publications, agents, types, hosts):
    app.add_typer(group.app)
app.add_typer(new.app, name="new")
app.add_typer(jobs.app, name="jobs")
app.add_typer(access.app, name="access")
app.add_typer(vpn.app, name="vpn")
app.add_typer(producer.app, name="producer")
app.add_typer(hosts.setup_app, name="setup")


def main() -> None:
    """The command `trilake`. Exit codes: 0 done, 1 an error (one line on stderr), 2 a wrong command line."""
    debug = DEBUG in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    _bypass_proxies()
    try:
        app(args=arguments, prog_name="trilake")
    except Exception as e:
        if debug:
            raise
        print(f"trilake: {_one_line(e)}", file=sys.stderr)
        sys.exit(1)


def _bypass_proxies() -> None:
    """Exclude this machine from the environment's proxy: boto3 and clickhouse-connect would use it otherwise."""
    configured = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    bypassed = ",".join(filter(None, [*configured, "127.0.0.1", "localhost"]))
    os.environ.update(no_proxy=bypassed, NO_PROXY=bypassed)


def _one_line(error: Exception) -> str:
    if isinstance(error, TrilakeError):
        return str(error)
    if type(error).__module__ == "botocore.exceptions":  # compared by name: the import would cost too much time
        return f"S3: {error}"
    return f"{type(error).__name__}: {error}. Unexpected error. Run again with {DEBUG} for the traceback."
