"""Publishes lost rows again: after the loss of a disk, a server or a table, from the states that the ledger names.

No job runs. The rows of an Iceberg table are pulled from the ledger's own snapshot, which maintenance keeps for this.
Plain objects are pulled by their keys, if they still have the ETags that were published. The rows must have the
checksums that the ledger recorded.

Rebuilding is safe beside publications. It replaces a publication only if the ledger still shows the fence that was
compared, so it can never bring back an earlier state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from trilake import s3
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.publication.comparison import Comparison, compare
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.switch import raise_all
from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake.catalog import data_set_of, load_table, open_catalog, plan
from trilake.lake.data_set import CURATED_NAMESPACE
from trilake.lake.objects import plan_again
from trilake.lake.plan import ICEBERG_TABLE, PLAIN_OBJECTS, LoadPlan

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog

log = logging.getLogger(__name__)

# Partitions of one snapshot that are published together.
_TOGETHER = 16


class CannotRebuildError(TrilakeError):
    """The source of a publication does not exist any more, or is not known."""


@dataclass(frozen=True)
class RebuildReport:
    """The result of a rebuild.

    :param before: the comparison of ClickHouse with the ledger before anything was changed.
    :param unfinished: publications whose switch could not be finished, because their staging tables were lost.
    :param rebuilt: the publications that were published again, as they were recorded before.
    :param overtaken: lost publications that another publication replaced meanwhile.
    :param failed: lost publications that could not be published again, each with the reason.
    """

    before: Comparison
    unfinished: tuple[Publication, ...] = ()
    rebuilt: tuple[Publication, ...] = ()
    overtaken: tuple[Publication, ...] = ()
    failed: tuple[tuple[Publication, TrilakeError], ...] = ()

    @property
    def rows(self) -> int:
        return sum(publication.total_rows for publication in self.rebuilt)

    def raise_failed(self) -> None:
        """:raises TrilakeError: some publications could not be published again. The message names each."""
        raise_all([error for _, error in self.failed])


def rebuild(
    endpoints: Endpoints,
    cluster: Cluster,
    table: str | None = None,
    partitions: Iterable[str] | None = None,
    *,
    checksums: bool = False,
    progress: Callable[[str], None] = log.info,
) -> RebuildReport:
    """Publish again what ClickHouse does not hold any more. The tables must exist: apply the migrations first.

    :param table: only this table. None: all tables of the ledger.
    :param partitions: only these partitions. None: all.
    :param checksums: also find rows with other values. This reads all columns of all published partitions.
    :param progress: called with a line of text for each step.
    :raises ClusterError: a shard does not answer.
    :raises RowsLostError: afterwards the shards still do not hold what was published again.
    """
    ledger = Ledger(endpoints.lake)
    publisher = Publisher(cluster, ledger)
    wanted = None if partitions is None else frozenset(partitions)
    decided = [p for p in ledger.switching(table) if wanted is None or p.partition in wanted]
    incomplete = publisher.finish_each(decided)
    stuck = [publication for publication, error in incomplete if error.staging_lost]
    failed: list[tuple[Publication, TrilakeError]] = [(p, error) for p, error in incomplete if not error.staging_lost]
    before = compare(cluster, ledger, table, wanted, checksums=checksums)
    lost = sorted((*before.lost, *stuck), key=_source)
    progress(f"{len(before.compared) + len(stuck)} published partitions were compared, {len(lost)} have to be rebuilt")
    rebuilt: list[Publication] = []
    overtaken: list[Publication] = []
    run_id = f"rebuild {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    with closing(open_catalog(endpoints.lake, endpoints.s3)) as catalog:
        for group in _groups(lost):
            try:
                planned = plan_of(endpoints, catalog, group)
                report = publisher.publish(planned, run_id=run_id, lost={p.partition: p for p in group})
            except TrilakeError as e:
                failed += [(publication, e) for publication in group]
                progress(f"failed: {_named(group)}: {e.message}")
                continue
            done = [publication for publication in group if publication.partition in report.published]
            rebuilt += done
            overtaken += [publication for publication in group if publication.partition not in report.published]
            progress(f"rebuilt {len(rebuilt)} of {len(lost)}: {_named(group)}, {report.total_rows} rows")
    try:
        publisher.clean(table)
    except TrilakeError as e:  # what cannot be completed is in `failed`
        log.warning("%s", e)
    for name, of_table in groupby(sorted(rebuilt, key=_source), key=lambda p: p.table):
        # their checksums were compared before they were shown
        compare(cluster, ledger, name, [p.partition for p in of_table], checksums=checksums).raise_differences()
    return RebuildReport(before, tuple(stuck), tuple(rebuilt), tuple(overtaken), tuple(failed))


def _source(publication: Publication) -> tuple[str, str, int, int, str]:
    return (
        publication.table,
        publication.source,
        publication.sequence_number,
        publication.snapshot_id,
        publication.partition,
    )


def _groups(publications: Iterable[Publication]) -> Iterator[list[Publication]]:
    """Publications of the same snapshot. A partition of plain objects is a group of its own."""
    for key, same in groupby(publications, key=lambda p: _source(p)[:4]):
        group = list(same)
        size = 1 if key[1] == PLAIN_OBJECTS else _TOGETHER
        yield from (group[start : start + size] for start in range(0, len(group), size))


def plan_of(endpoints: Endpoints, catalog: SqlCatalog, group: list[Publication]) -> LoadPlan:
    """A plan of exactly the states that these publications show.

    :raises CannotRebuildError: the source is not known, or is another one now.
    :raises TrilakeError: a table, snapshot or object does not exist any more, or an object was changed.
    """
    first = group[0]
    if not first.source.startswith(ICEBERG_TABLE):
        if first.contents is None or first.contents.objects is None:
            raise CannotRebuildError(
                f"Partition {first.partition} of {first.table} was published from plain objects by an older version, "
                "which did not record their keys.",
                hint=f"Clear the run that published it: {first.run_id}.",
            )
        document = first.contents.objects
        return plan_again(s3.client(endpoints.s3), first.partition, document, version=first.sequence_number)
    table = load_table(catalog, f"{CURATED_NAMESPACE}.{first.table}")
    source = f"{ICEBERG_TABLE} {table.metadata.table_uuid}"
    if first.source not in (source, ICEBERG_TABLE):
        raise CannotRebuildError(
            f"{_named(group)}: the Iceberg table was dropped and created again since it was published (run "
            f"{first.run_id}).",
            hint=f"Publish the new rows: `trilake publish {first.table} --partition {first.partition} --force`.",
        )
    data_set = data_set_of(table)
    return plan(table, data_set, [p.partition for p in group], first.snapshot_id, with_columns=True)


def _named(group: list[Publication]) -> str:
    names = [publication.partition for publication in group]
    return f"{group[0].table} {names[0] if len(names) == 1 else f'{names[0]} to {names[-1]} ({len(names)} partitions)'}"
