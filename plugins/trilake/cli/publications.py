"""``trilake publications``, ``publish``, ``rebuild`` and ``reshard``: what readers of ClickHouse see."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trilake.cli import options
from trilake.cli.access import sync_after

if TYPE_CHECKING:
    from trilake.clickhouse.publication.comparison import Comparison
    from trilake.clickhouse.publication.ledger import Ledger, Publication
    from trilake.endpoints import Endpoints
    from trilake.lake import DataSet
    from trilake.lake.plan import LoadPlan

app = typer.Typer()

_PUBLICATION = ("table", "partition", "state", "fence", "rows", "by_shard", "snapshot_id", "source", "run_id")

Partitions = Annotated[
    list[str] | None,
    typer.Option("--partition", help="Only this partition, such as 2013-02. Can be given several times."),
]


@app.command()
def publications(
    finish: Annotated[
        bool,
        typer.Option("--finish", help="Finish publications that are in the ledger, but not on every shard yet."),
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Drop the staging tables of publishers that were killed.")
    ] = False,
    forget: Annotated[
        str,
        typer.Option(
            "--forget",
            metavar="TABLE",
            help="Remove a table from the ledger, after its data set was removed from the project. Its rows and files "
            "stay. Needs --yes.",
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Confirm --forget.")] = False,
    json: options.Json = False,
) -> None:
    """Show which snapshot of each partition is published in ClickHouse."""
    from trilake.clickhouse.cluster import Cluster
    from trilake.clickhouse.publication.ledger import Ledger
    from trilake.clickhouse.publication.publisher import Publisher

    endpoints = options.endpoints()
    ledger = Ledger(endpoints.lake)
    if forget:
        _forget(ledger, forget, confirmed=yes)
        return
    if finish or clean:
        with Cluster(endpoints.clickhouse, comment={"by": "trilake publications"}) as cluster:
            publisher = Publisher(cluster, ledger)
            if finish:
                for publication in publisher.finish():
                    print(f"finished {publication.partition} of {publication.table}", file=sys.stderr)
            if clean:
                for attempt in publisher.clean():
                    print(f"cleaned up attempt {attempt}", file=sys.stderr)
    rows = [
        {**asdict(publication), "rows": publication.total_rows, "by_shard": dict(publication.rows)}
        for publication in ledger.publications()
    ]
    options.print_table((*_PUBLICATION, "decided_at"), rows, as_json=json)


def _forget(ledger: Ledger, table: str, *, confirmed: bool) -> None:
    from trilake.errors import ConfigurationError

    number = len(ledger.publications(table))
    if not number:
        raise ConfigurationError(
            f"The ledger has no publication of {table}.", hint="`trilake publications` lists the published tables."
        )
    if not confirmed:
        raise ConfigurationError(
            f"This would remove {number} published partitions of {table} from the ledger. ClickHouse's tables, the "
            "Iceberg table and marts stay as they are. But nothing compares these rows any more, and no rebuild brings "
            "them back.",
            hint=f"To do it: `trilake publications --forget {table} --yes`.",
        )
    print(f"removed {ledger.forget_table(table)} rows of {table} from the ledger", file=sys.stderr)


@app.command()
def publish(
    data_set: Annotated[str, typer.Argument(help="The data set's name.")],
    partition: Partitions = None,
    snapshot: Annotated[int, typer.Option(help="A snapshot of the Iceberg table. Default: the current one.")] = 0,
    objects: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='Publish plain objects instead: a JSON file such as {"2013-01": {"orders/2013-01/a.parquet": 120}}, '
            "with the rows of each object.",
        ),
    ] = None,
    bucket: Annotated[str, typer.Option(help="The bucket of the plain objects.")] = "raw",
    force: Annotated[
        bool,
        typer.Option("--force", help="Also replace a later state, the same state, or rows of another source."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Publish partitions of a data set in ClickHouse, with the data set's checks. No job runs."""
    from trilake.clickhouse.cluster import Cluster
    from trilake.clickhouse.publication.checks import read_checks
    from trilake.clickhouse.publication.ledger import Ledger
    from trilake.clickhouse.publication.publisher import Publisher
    from trilake.project import find_project

    endpoints, project = options.endpoints(), find_project()
    if objects is not None:
        planned = _plan_objects(endpoints, _declared(project, data_set), objects, bucket, partition)
    else:
        planned = _plan_snapshot(endpoints, data_set, partition, snapshot)
    checks = read_checks(project / "sql", planned.data_set.table)
    run_id = f"trilake publish by {getpass.getuser()} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    with Cluster(endpoints.clickhouse, comment={"by": "trilake publish"}) as cluster:
        report = Publisher(cluster, Ledger(endpoints.lake), checks=checks).publish(planned, run_id=run_id, force=force)
    rows: list[Mapping[str, Any]] = [
        {"partition": name, "result": "published", "by_shard": dict(report.rows[name])} for name in report.published
    ]
    rows += [{"partition": name, "result": "not changed", "by_shard": ""} for name in report.current]
    options.print_table(("partition", "result", "by_shard"), rows, as_json=json)
    if report.current:
        print("A partition that is not changed shows this state or a later one. --force replaces it.", file=sys.stderr)


def _declared(project: Path, name: str) -> DataSet:
    from trilake.lake.declared import find_data_set

    return find_data_set(project / "dags", name)


def _plan_objects(
    endpoints: Endpoints, data_set: DataSet, file: Path, bucket: str, partitions: list[str] | None
) -> LoadPlan:
    from trilake import s3
    from trilake.lake.objects import plan_objects, read_objects

    objects = read_objects(data_set, file.read_text(encoding="utf-8"))
    if partitions:
        objects = {name: files for name, files in objects.items() if name in partitions}
    version = int(datetime.now(UTC).timestamp() * 1_000_000)
    return plan_objects(s3.client(endpoints.s3), data_set, bucket, objects, version=version)


def _plan_snapshot(endpoints: Endpoints, name: str, partitions: list[str] | None, snapshot: int) -> LoadPlan:
    from contextlib import closing

    from trilake.errors import ConfigurationError
    from trilake.lake import DataSet
    from trilake.lake.catalog import data_set_of, load_table, open_catalog, plan

    with closing(open_catalog(endpoints.lake, endpoints.s3)) as catalog:
        table = load_table(catalog, DataSet(name).curated)
        data_set = data_set_of(table)
        if data_set.grain and not partitions:
            raise ConfigurationError(
                f"Data set {name} has partitions, and none is named.", hint="Name each: --partition 2013-02."
            )
        return plan(table, data_set, partitions or (), snapshot or None, with_columns=True)


@app.command()
def rebuild(
    table: Annotated[str, typer.Option(help="Only this table. Default: all published tables.")] = "",
    partition: Partitions = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only compare. The exit code is 1 if rows are lost. Nothing is changed."),
    ] = False,
    checksums: Annotated[
        bool,
        typer.Option("--checksums", help="Compare checksums too, not only numbers of rows. This reads all rows."),
    ] = False,
    drop_unknown: Annotated[
        bool,
        typer.Option(
            "--drop-unknown",
            help="Drop partitions that ClickHouse holds but that were never published. With --table, also those of a "
            "table that is not in the ledger at all.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare ClickHouse with the ledger of publications, and publish again what is lost. No Spark job runs.

    Missing tables are created from sql/clickhouse first.
    """
    from trilake.clickhouse.cluster import Cluster
    from trilake.clickhouse.publication import comparison
    from trilake.clickhouse.publication.ledger import Ledger
    from trilake.clickhouse.publication.rebuild import rebuild as publish_again
    from trilake.errors import ConfigurationError

    if drop_unknown and partition:
        raise ConfigurationError(
            "--drop-unknown and --partition cannot be combined.", hint="Leave --partition out: nothing else is dropped."
        )
    endpoints = options.endpoints()
    ledger = Ledger(endpoints.lake)
    with Cluster(endpoints.clickhouse, comment={"by": "trilake rebuild"}) as cluster:
        if check:
            compared = comparison.compare(cluster, ledger, table or None, partition, checksums=checksums)
            problems = comparison.readers_problems(cluster, ledger, table or None)
            _print(compared, {}, (), problems, as_json=json)
            raise typer.Exit(1 if compared.differences or problems else 0)
        _create_tables(endpoints)
        report = publish_again(
            endpoints,
            cluster,
            table or None,
            partition,
            checksums=checksums,
            progress=lambda line: print(line, file=sys.stderr),
        )
        if report.rebuilt:
            _create_tables(endpoints)  # also those that nobody may read without their rows
        problems = comparison.readers_problems(cluster, ledger, table or None)
        unknown = report.before.unknown + (report.before.unpublished if table else ())
        dropped = {
            (name, partition_id)
            for name, partition_id, _ in unknown
            if drop_unknown and comparison.drop_unknown(cluster, ledger, name, partition_id)
        }
    results = {(p.table, p.partition): "rebuilt" for p in report.rebuilt}
    results |= {(p.table, p.partition): "replaced meanwhile" for p in report.overtaken}
    results |= {(p.table, p.partition): "failed" for p, _ in report.failed}
    _print(report.before, {**results, **dict.fromkeys(dropped, "dropped")}, report.unfinished, problems, as_json=json)
    sync_after(endpoints, "`trilake rebuild`")
    report.raise_failed()
    comparison.raise_readers_problems(problems)


@app.command()
def reshard(
    shards: Annotated[int, typer.Option(min=1, help="How many shards the rows are spread over afterwards.")],
    table: Annotated[str, typer.Option(help="Only this table. Default: all published tables.")] = "",
    json: options.Json = False,
) -> None:
    """Spread published rows over another number of shards. Readers and publications go on meanwhile.

    The connection must name all shards, the old ones and the new ones.
    """
    from trilake.clickhouse.cluster import Cluster
    from trilake.clickhouse.publication import reshard as resharding
    from trilake.clickhouse.publication.ledger import Ledger

    endpoints = options.endpoints()
    ledger = Ledger(endpoints.lake)
    tables = [table] if table else sorted({p.table for p in ledger.publications()})
    if not ledger.shard_sets.resharding():  # else a migration may be refused until the reshard is finished
        _create_tables(endpoints)
    with Cluster(endpoints.clickhouse, comment={"by": "trilake reshard"}) as cluster:
        reports = [
            resharding.reshard(endpoints, cluster, name, shards, progress=lambda line: print(line, file=sys.stderr))
            for name in tables
        ]
    _create_tables(endpoints)  # also dimension tables that nobody could read on a new server
    sync_after(endpoints, "`trilake reshard`")
    options.print_table(("table", "before", "after", "partitions"), [asdict(r) for r in reports], as_json=json)


def _create_tables(endpoints: Endpoints) -> None:
    from trilake.project import find_project
    from trilake.schema.migrations import migrate

    for step in migrate(endpoints, find_project() / "sql"):
        if step.state == "pending":
            print(f"applied {step.step.file} to {step.target}", file=sys.stderr)


def _print(
    compared: Comparison,
    results: Mapping[tuple[str, str], str],
    unfinished: Sequence[Publication],
    problems: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """A row for each difference and each unknown partition, and on stderr what was compared."""
    rows: list[dict[str, Any]] = [
        {
            "table": difference.publication.table,
            "partition": difference.publication.partition,
            "shard": difference.shard,
            "ledger": difference.expected,
            "clickhouse": "no table" if difference.held is None else difference.held,
            "problem": "other values" if difference.values else "other number of rows",
            "result": results.get((difference.publication.table, difference.publication.partition), ""),
        }
        for difference in compared.differences
    ]
    rows += [
        {
            "table": table,
            "partition": partition_id,
            "shard": "all",
            "ledger": "",
            "clickhouse": held,
            "problem": problem,
            "result": results.get((table, partition_id), ""),
        }
        for found, problem in (
            (compared.unknown, "never published"),
            (compared.unpublished, "table is not in the ledger"),
        )
        for table, partition_id, held in found
    ]
    rows += [
        {
            "table": publication.table,
            "partition": publication.partition,
            "shard": "all",
            "ledger": publication.total_rows,
            "clickhouse": "",
            "problem": "staging tables lost",
            "result": results.get((publication.table, publication.partition), ""),
        }
        for publication in unfinished
    ]
    if rows or as_json:
        columns = ("table", "partition", "shard", "ledger", "clickhouse", "problem", "result")
        options.print_table(columns, rows, as_json=as_json)
    print(
        f"{len(compared.compared)} published partitions compared, {len(compared.lost)} differ, "
        f"{len(compared.unknown) + len(compared.unpublished)} in ClickHouse were never published",
        file=sys.stderr,
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    if compared.without_checksum:
        print(
            f"{len(compared.without_checksum)} have no checksum that can be compared (an older version published them, "
            "or the table's columns were changed since): only their rows were counted",
            file=sys.stderr,
        )
