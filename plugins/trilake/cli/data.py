"""``trilake put``, ``run``, ``migrate`` and ``arrivals``: data sets and their tables."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from trilake.cli import options

app = typer.Typer()


@app.command()
def put(
    data_set: Annotated[str, typer.Argument(help="The data set's name, as a DAG file declares it.")],
    partition: Annotated[str, typer.Argument(help="The partition: a month like 2013-02, or a day like 2013-02-28.")],
    files: Annotated[list[Path], typer.Argument(help="CSV files with a header.")],
    json: options.Json = False,
) -> None:
    """Upload files to a partition of s3://raw/. A file with the same name is replaced."""
    from trilake.cli.put import put_files
    from trilake.project import find_project

    put_files(find_project(), options.endpoints(), data_set, partition, files, as_json=json)


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="The name of a file in spark_jobs/, without .py.")],
    partition: Annotated[str, typer.Option(help="The first partition, such as 2013-02 or 2013-02-28.")],
    end: Annotated[str, typer.Option(help="The last partition. Default: the first one.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="How many lines to read of each partition. 0 reads all.")] = 0,
    data_set: Annotated[
        str, typer.Option(help="The data set that the job writes, if the DAG files do not name it.")
    ] = "",
    json: options.Json = False,
) -> None:
    """Do a dry run of a Spark job: show what it would change. The exit code is 1 if this could not be published."""
    from trilake.cli.run import dry_run_job
    from trilake.endpoints import Endpoints

    home = options.home()
    endpoints = Endpoints.from_environment(home.environment())
    fits = dry_run_job(home, endpoints, job=job, start=partition, end=end, limit=limit, data_set=data_set, as_json=json)
    raise typer.Exit(0 if fits else 1)


@app.command()
def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be applied. Nothing is changed.")] = False,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait until the ClickHouse servers answer.")] = 0,
    json: options.Json = False,
) -> None:
    """Apply the files of sql/ to PostgreSQL and to every shard of ClickHouse."""
    from trilake.clickhouse.cluster import Cluster
    from trilake.project import find_project
    from trilake.schema import migrations

    endpoints = options.endpoints()
    if wait:
        # the client logs each attempt, but not the host's name
        logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
        hosts = " and ".join(map(str, endpoints.clickhouse.shards))
        print(f"waiting for {hosts}, at most {wait} s", file=sys.stderr)
        with Cluster(endpoints.clickhouse.for_questions()) as cluster:
            cluster.await_hosts(wait)
    planned = migrations.migrate(endpoints, find_project() / "sql", dry_run=plan)
    rows = [
        {"step": step.step.file, "target": step.target, "state": step.state if plan else "applied now"}
        for step in planned
        if step.state == "pending" or plan
    ]
    options.print_table(("step", "target", "state"), rows, as_json=json)


@app.command()
def arrivals(
    hours: Annotated[
        float, typer.Option("--hours", help="Show only claims that are older than this many hours.", min=0)
    ] = 24,
    again: Annotated[
        str,
        typer.Option(
            "--again",
            metavar="DATA_SET/PARTITION",
            help="Release this partition's claim, so that the next run can claim it.",
        ),
    ] = "",
    json: options.Json = False,
) -> None:
    """Show partitions that a run has claimed, but that no job has committed yet."""
    import trilake.lake.arrivals

    lake = options.endpoints().lake
    if again:
        data_set, _, partition = again.partition("/")
        trilake.lake.arrivals.again(lake, data_set, partition)
        print(f"{again} is due again, if it has files", file=sys.stderr)
        return
    rows = [asdict(arrival) for arrival in trilake.lake.arrivals.overdue(lake, timedelta(hours=hours))]
    options.print_table(("data_set", "partition", "run", "taken_at"), rows, as_json=json)
    if rows:
        print(
            "Clear the run in Airflow. If the run was deleted or will never commit: trilake arrivals --again "
            f"{rows[0]['data_set']}/{rows[0]['partition']}",
            file=sys.stderr,
        )
