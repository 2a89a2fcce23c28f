"""The demo: a year of flights through the whole platform, watched, and told in figures at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints
from trilake.errors import CountMismatchError
from trilake.lake import Window
from trilake.platform.airflow_api import FINAL_STATES, NOTICE_S, AirflowApi, AirflowError, Task
from trilake.postgres.connection import connect

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REFERENCE, FLIGHTS, REPORT = "reference_snapshot", "flights", "flights_report"
YEAR = Window.parse("month", "2013-01", "2013-12")
# The whole demo takes two minutes on two cores; what takes this long hangs.
PATIENCE_S = 900
REFRESH_S = 0.7

_MARKS = {
    "success": "[green]done[/]",
    "failed": "[red]failed[/]",
    "running": "[cyan]running[/]",
    "deferred": "[cyan]running[/]",  # waits for Spark without holding a worker: for a person, it runs
    "up_for_retry": "[yellow]trying again[/]",
}


@dataclass(frozen=True)
class Run:
    """One DAG run of the demo and its tasks, as they stand."""

    dag_id: str
    run_id: str
    state: str
    tasks: tuple[Task, ...]


def run(api: AirflowApi, endpoints: Endpoints, console: Console, folder: Path) -> None:
    """Run the DAGs over 2013 and tell what happened.

    :param folder: where a copy of the report is put.
    :raises AirflowError: a task failed; its last log lines have been printed.
    :raises CountMismatchError: the rows do not add up.
    """
    began = datetime.now(UTC)
    api.wait_for_dags(REFERENCE, FLIGHTS, REPORT)
    runs = list(_watch(api, console, _runs(api, began)))
    _, flights, report = runs
    curated = api.xcom(FLIGHTS, flights.run_id, "curate")
    landed = api.xcom(FLIGHTS, flights.run_id, "ingest_flights")
    console.print()
    _print_rows(console, endpoints, curated["counts"], landed)
    _print_stages(console, runs, sum(count["rows_in"] for count in curated["counts"].values()))
    _print_routes(console, endpoints)
    _print_mart(console, endpoints)
    _fetch_report(console, endpoints, api.xcom(REPORT, report.run_id, "report"), folder)


# --- running


def _runs(api: AirflowApi, began: datetime) -> Iterator[tuple[str, str]]:
    """(DAG, run) one after another: each is started, or found, when the one before has ended."""
    api.unpause(REPORT)
    if api.unpause(REFERENCE):
        # A daily DAG that is unpaused makes the run that is due by itself.
        yield REFERENCE, _appears(api, REFERENCE, began)
    else:
        yield REFERENCE, api.trigger(REFERENCE)
    api.unpause(FLIGHTS)
    started = datetime.now(UTC)
    yield FLIGHTS, api.trigger(FLIGHTS, {"start": YEAR.partitions[0], "end": YEAR.partitions[-1]})
    yield REPORT, _appears(api, REPORT, started)


def _appears(api: AirflowApi, dag_id: str, since: datetime) -> str:
    deadline = time.monotonic() + NOTICE_S
    while True:
        if found := api.runs(dag_id, since):
            return str(found[0]["dag_run_id"])
        if time.monotonic() > deadline:
            raise AirflowError(
                f"The scheduler made no run of {dag_id} within {NOTICE_S} s.",
                hint="See `trilake logs airflow-scheduler`.",
            )
        time.sleep(REFRESH_S)


def _watch(api: AirflowApi, console: Console, runs: Iterator[tuple[str, str]]) -> Iterator[Run]:
    """Show each run's tasks until it has ended. Without a terminal, one line a task that ends."""
    from rich.live import Live

    deadline = time.monotonic() + PATIENCE_S
    done: list[Run] = []
    said: set[tuple[str, str]] = set()
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        for dag_id, run_id in runs:
            while True:
                state = str(api.run(dag_id, run_id)["state"])
                current = Run(dag_id, run_id, state, tuple(api.tasks(dag_id, run_id)))
                if console.is_terminal:
                    live.update(_progress([*done, current]))
                else:
                    _say(console, current, said)
                if state in FINAL_STATES:
                    break
                if time.monotonic() > deadline:
                    raise AirflowError(f"Run {run_id} of {dag_id} has not ended after {PATIENCE_S} s.")
                time.sleep(REFRESH_S)
            if state == "failed":
                live.stop()
                _tell_failure(api, console, current)
            done.append(current)
            yield current


def _progress(runs: Sequence[Run]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, justify in (("DAG", "left"), ("task", "left"), ("", "left"), ("seconds", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # the two names that rich lists too
    for one in runs:
        for index, task in enumerate(one.tasks):
            mark = _MARKS.get(task.state, f"[dim]{task.state}[/]")
            seconds = f"{task.seconds:.1f}" if task.seconds else ""
            table.add_row(one.dag_id if index == 0 else "", task.task_id, mark, seconds)
    return table


def _say(console: Console, current: Run, said: set[tuple[str, str]]) -> None:
    for task in current.tasks:
        key = (task.dag_id, task.task_id)
        if task.state in FINAL_STATES and key not in said:
            said.add(key)
            console.print(f"{task.dag_id}.{task.task_id}: {task.state} after {task.seconds:.1f} s")


def _tell_failure(api: AirflowApi, console: Console, failed: Run) -> None:
    broken = next((task for task in failed.tasks if task.state == "failed"), None)
    if broken is None:
        raise AirflowError(f"Run {failed.run_id} of {failed.dag_id} failed.", hint=f"Open it at {api.url}.")
    for line in api.last_lines(failed.dag_id, failed.run_id, broken):
        console.print(f"  {line}", style="dim", markup=False, highlight=False)
    raise AirflowError(
        f"Task {broken.task_id} of {failed.dag_id} failed (run {failed.run_id}).", hint=f"Open its log at {api.url}."
    )


# --- telling


def _print_rows(
    console: Console, endpoints: Endpoints, counts: Mapping[str, Mapping[str, int]], landed: Mapping[str, Any]
) -> None:
    """Rows per month: what was ingested, what the job says, and what each shard of ClickHouse holds."""
    with Cluster(endpoints.clickhouse) as cluster:
        found = cluster.every_shard(
            Statement("SELECT formatDateTime(flight_date, '%Y-%m'), count() FROM {shard}.flights_local GROUP BY 1")
        )
    shards = {number: {str(month): int(rows) for month, rows in listed} for number, listed in found.items()}
    table = _table("Rows", "month", "in", "curated", "quarantined", "duplicates", *(f"shard {n}" for n in shards))
    totals = [0] * (4 + len(shards))
    for month in YEAR:
        count = counts[month]
        held = [by_month.get(month, 0) for by_month in shards.values()]
        row = [count["rows_in"], count["curated"], count["quarantined"], count["duplicates"], *held]
        ingested = landed[month]["lines"] - 1  # its header
        if count["rows_in"] != ingested or sum(row[1:4]) != ingested or sum(held) != count["curated"]:
            raise CountMismatchError(f"flights {month}: {ingested} rows were ingested; {dict(count)}, shards {held}.")
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        table.add_row(month, *(f"{value:,}" for value in row))
    table.add_section()
    table.add_row("2013", *(f"{value:,}" for value in totals), style="bold")
    console.print(table)


def _print_stages(console: Console, runs: Sequence[Run], rows: int) -> None:
    table = _table("Stages", "DAG", "task", "seconds", "rows/s", left=2)
    for one in runs:
        for task in one.tasks:
            through = one.dag_id == FLIGHTS and task.task_id in {"ingest_flights", "curate", "publish"}
            rate = f"{rows / task.seconds:,.0f}" if through and task.seconds else ""
            table.add_row(one.dag_id, task.task_id, f"{task.seconds:.1f}", rate)
    console.print(table)


def _print_routes(console: Console, endpoints: Endpoints) -> None:
    sql = (
        "SELECT origin, dest, any(p.name), count(arr_delay), round(avg(arr_delay), 1) FROM {db}.flights AS f "
        "LEFT JOIN {db}.airports AS p ON p.faa = f.dest GROUP BY origin, dest HAVING count(arr_delay) >= 300 "
        "ORDER BY avg(arr_delay) DESC LIMIT 5"
    ).replace("{db}", endpoints.clickhouse.database)
    with Cluster(endpoints.clickhouse) as cluster:
        rows = cluster.any_host(Statement(sql))
    table = _table("The most delayed routes (ClickHouse)", "from", "to", "airport", "arrivals", "minutes late", left=3)
    for origin, dest, name, arrivals, late in rows:
        table.add_row(origin, dest, name or "", f"{arrivals:,}", f"{late:.1f}")
    console.print(table)


def _print_mart(console: Console, endpoints: Endpoints) -> None:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT carrier, name, sum(flights), sum(cancelled), "
            "sum(mean_arr_delay * arrivals) / sum(arrivals) "
            "FROM marts.carrier_month WHERE month >= %s AND month < %s GROUP BY carrier, name ORDER BY 3 DESC",
            (YEAR.start, YEAR.stop),
        )
        rows = cursor.fetchall()
    table = _table(
        "marts.carrier_month, the year (PostgreSQL)", "", "carrier", "flights", "cancelled", "minutes late", left=2
    )
    for carrier, name, flights, cancelled, late in rows:
        table.add_row(carrier, name, f"{flights:,}", f"{cancelled:,}", "" if late is None else f"{late:.1f}")
    console.print(table)


def _fetch_report(console: Console, endpoints: Endpoints, address: str, folder: Path) -> None:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / key.replace("/", "-").removeprefix("reports-")
    copy.write_bytes(s3.client(endpoints.s3).get_object(Bucket=bucket, Key=key)["Body"].read())
    console.print(f"Report     {address}")
    console.print(f"           open {copy}", soft_wrap=True)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table
