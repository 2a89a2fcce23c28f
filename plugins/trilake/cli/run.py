"""``trilake run``: a dry run. It shows what a job would commit, and which published rows would change."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trilake.cli.declared_tasks import find_task
from trilake.clickhouse.cluster import UNKNOWN_TABLE, ClickHouseError, Cluster, quote_name
from trilake.endpoints import Endpoints
from trilake.errors import CountMismatchError, UnreachableError
from trilake.lake import DataSet, Window
from trilake.platform.embedded import dry_run, local_table
from trilake.platform.embedded.home import Home
from trilake.platform.embedded.local_table import Column, Difference
from trilake.spark.counts import TooManyRefusedError, check_refused

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from rich.table import Table

    from trilake.endpoints import ClickHouseShard

_CONNECT_TIMEOUT_S = 5
_PIPE_COLUMNS = 160


@dataclass(frozen=True)
class Report:
    """The result of a dry run.

    :param trouble: why the rows would not be committed or published, one line each; empty if they would be.
    :param difference: the difference from the published rows; None if ClickHouse has no such table yet.
    """

    result: dry_run.DryRunResult
    columns: Sequence[Column]
    trouble: Sequence[str]
    difference: Difference | None
    seconds: float


def dry_run_job(
    home: Home,
    endpoints: Endpoints,
    *,
    job: str,
    start: str,
    end: str | None = None,
    limit: int = 0,
    data_set: str = "",
    as_json: bool = False,
) -> bool:
    """Run the job without a commit and print the result. Returns whether it could be committed and published.

    :raises TrilakeError: there is no such job, data set or window, the platform is down, or the job failed.
    """
    began = time.monotonic()
    task = find_task(home.project, job, data_set)
    window = task.data_set.window(start, end)
    _check_up(endpoints)
    with dry_run.scratch(home) as folder:
        published = folder / "published.native"
        with ThreadPoolExecutor(1) as beside:  # runs while Spark starts
            fetched = beside.submit(_fetch, endpoints, task.data_set, window, published)
            result = dry_run.run(home, endpoints, task, window, folder, limit=limit)
            has_table = fetched.result()
        report = _examine(result, task.data_set, home.project / "sql", published if has_table else None, began)
    title = f"{task.job}: {task.data_set.name} {window}"
    if as_json:
        print(json.dumps(_document(report, title, limit), indent=2, default=str))
    else:
        _print(report, title, task.data_set, limit)
    return not report.trouble


def _check_up(endpoints: Endpoints) -> None:
    """:raises UnreachableError: a server that the job or the comparison needs does not listen."""
    s3, shard = urlsplit(endpoints.s3.url), endpoints.clickhouse.shards[0]
    for name, host, port in (
        ("S3", s3.hostname, s3.port or 80),
        ("PostgreSQL", endpoints.lake.host, endpoints.lake.port),
        ("ClickHouse", shard.host, shard.port),
    ):
        try:
            socket.create_connection((host or "", port), _CONNECT_TIMEOUT_S).close()
        except OSError as e:
            raise UnreachableError(
                f"{name} ({host}:{port}) does not answer: {e.strerror or type(e).__name__}.",
                hint="`trilake status` shows whether it runs; `trilake up` starts it.",
            ) from None


def _fetch(endpoints: Endpoints, data_set: DataSet, window: Window, path: Path) -> bool:
    """Write the published rows of the window to a file, in format Native. False if ClickHouse has no such table."""
    sql = (
        f"SELECT * FROM {quote_name(endpoints.clickhouse.database)}.{quote_name(data_set.table)} "
        f"WHERE {quote_name(str(data_set.date))} >= {{start:Date}} AND {quote_name(str(data_set.date))} < {{stop:Date}}"
    )

    def stream(client: Client, _: ClickHouseShard) -> None:
        with (
            client.raw_stream(sql, {"start": window.start, "stop": window.stop}, fmt="Native") as rows,
            open(path, "wb") as file,
        ):
            shutil.copyfileobj(rows, file)

    try:
        with Cluster(endpoints.clickhouse, comment={"dry-run": data_set.name}) as cluster:
            cluster.any_host(stream)
    except ClickHouseError as e:
        if e.code != UNKNOWN_TABLE:
            raise
        return False
    return True


def _examine(
    result: dry_run.DryRunResult, data_set: DataSet, sql_folder: Path, published: Path | None, began: float
) -> Report:
    trouble = []
    for partition, count in result.counts.items():
        try:
            count.check(f"{data_set.name} {partition}")
        except CountMismatchError as e:
            trouble.append(str(e))
    columns = local_table.table_columns(sql_folder, data_set.table)
    try:
        check_refused(data_set, result.counts)
    except TooManyRefusedError as e:
        trouble.append(e.message)
    trouble += local_table.misfits(result.columns, data_set.table, sql_folder)
    trouble += [
        f"{name}: {rows:,} rows have no value, and the table's type has no NULL"
        for name, rows in local_table.missing_values(result.rows, columns).items()
    ]
    difference = None
    if published:
        difference = local_table.compare(result.rows, published, result.columns, sql_folder, data_set.table)
    return Report(result, columns, trouble, difference, round(time.monotonic() - began, 1))


def _document(report: Report, title: str, limit: int) -> dict[str, Any]:
    result = report.result
    difference = asdict(report.difference) if report.difference else None
    if difference and limit:
        # With a limit, a published row that the run did not make may only not have been read.
        difference["only_there"] = None
        difference["examples"].pop("only_there")
    return {
        "run": title,
        "limit": limit or None,
        "counts": {name: asdict(count) for name, count in result.counts.items()},
        "inputs": result.inputs,
        "refused": result.refused,
        "columns": result.columns,
        "trouble": report.trouble,
        "difference": difference,
        "seconds": report.seconds,
    }


# --- the output for people


def _print(report: Report, title: str, data_set: DataSet, limit: int) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.width = console.width if console.is_terminal else _PIPE_COLUMNS
    sample = f" A sample: the first {limit:,} lines of each partition." if limit else ""
    console.print(f"{title}, dry run of {report.seconds} s. Nothing was committed.{sample}\n")
    for table in (
        _rows(report.result, data_set),
        _refused(report.result.refused),
        _schema(report, data_set),
        *_differences(report.difference, data_set, limit),
    ):
        console.print(table)
    for line in report.trouble:
        console.print(f"! {line}")
    console.print("It would not be published." if report.trouble else "It could be published.")


def _rows(result: dry_run.DryRunResult, data_set: DataSet) -> Table:
    table = _table("Rows", str(data_set.grain), "in", "curated", "quarantined", "duplicates")
    for partition, count in result.counts.items():
        table.add_row(partition, *(f"{value:,}" for value in asdict(count).values()))
    return table


def _refused(refused: Sequence[Mapping[str, Any]]) -> Table | str:
    if not refused:
        return "No line was refused.\n"
    table = _table("Refused lines", "data set", "reason", "lines", "such as", left=2)
    table.columns[-1].justify = "left"
    table.columns[-1].overflow = "fold"
    for group in refused:
        lines = [f"{example['file']}: {example['raw']}" for example in group["examples"]]
        table.add_row(group["data_set"], group["reason"], f"{group['rows']:,}", "\n".join(lines))
    return table


def _schema(report: Report, data_set: DataSet) -> Table:
    made = report.result.columns
    table = _table(
        f"Columns, compared with sql/clickhouse/{data_set.table}/table.sql", "column", "job", "table", "", left=4
    )
    declared = {column.name: column for column in report.columns}
    for name in [*made, *(name for name in declared if name not in made)]:
        kind = declared[name].type if name in declared else "-"
        wrong = any(line.startswith(f"{name}:") for line in report.trouble)
        table.add_row(name, made.get(name, "-"), kind, "does not fit" if wrong else "")
    return table


def _differences(found: Difference | None, data_set: DataSet, limit: int) -> list[Table | str]:
    if found is None:
        return [f"ClickHouse has no table {data_set.table} yet. `trilake up` creates it; the DAG fills it.\n"]
    table = _table(f"Rows, compared with the published table {data_set.table}", "", "rows", left=1)
    for name, rows in (("in both", found.both), ("only in this run", found.only_here)):
        table.add_row(name, f"{rows:,}")
    table.add_row("only published", "unknown, as this is a sample" if limit else f"{found.only_there:,}")
    tables: list[Table | str] = [table]
    here = found.examples["only_here"]
    there = [] if limit else found.examples["only_there"]
    if here or there:
        numbers = [f"run {n}" for n in range(1, len(here) + 1)] + [f"published {n}" for n in range(1, len(there) + 1)]
        examples = _table("Examples of different rows", "column", *numbers, left=1 + len(numbers))
        for column in found.columns:
            examples.add_row(column, *("" if row[column] is None else str(row[column]) for row in (*here, *there)))
        tables.append(examples)
    return tables


def _table(title: str, *columns: str, left: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table
