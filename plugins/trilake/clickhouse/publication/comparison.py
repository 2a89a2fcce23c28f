"""Compares what every shard holds with what the ledger says that readers see.

A publication is compared only if its switch is complete, and if it is still the current one after the rows were
counted. So a publication that runs meanwhile is never reported as a loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.clickhouse.publication.partitions import ttl_of
from trilake.clickhouse.readers_table import readers_table_problem
from trilake.errors import TrilakeError
from trilake.lake.data_set import WHOLE, DataSet
from trilake.postgres.locks import migration_lock

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from trilake.endpoints import ClickHouseShard

log = logging.getLogger(__name__)

# What the names of local tables end with
_LOCAL = "_local"
# An error names at most so many differences.
_SHOWN = 10


class RowsLostError(TrilakeError):
    """ClickHouse does not hold the rows that the ledger says readers see."""


class ReadersTableError(TrilakeError):
    """A table over all shards is missing, or is not what it should be."""


@dataclass(frozen=True)
class Difference:
    """A shard that does not hold what a publication says.

    :param held: rows on the shard; None: it has no such table.
    :param values: the number of rows is right, but their checksum is not.
    """

    publication: Publication
    shard: int
    held: int | None
    values: bool = False

    @property
    def expected(self) -> int:
        return _expected(self.publication, self.shard)

    def __str__(self) -> str:
        found = (
            "has no such table" if self.held is None
            else f"holds {self.held} rows with other values" if self.values
            else f"holds {self.held} rows"
        )  # fmt: skip
        return (
            f"table {self.publication.table}, partition {self.publication.partition}: shard {self.shard} {found}, and "
            f"the ledger says {self.expected}"
        )


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    :param compared: the publications that were compared.
    :param differences: what shards do not hold, by table, partition and shard.
    :param unknown: table, partition id and rows of partitions that ClickHouse holds, but that were never published.
    :param unpublished: the same of local tables of which nothing was ever published.
    :param moving: tables that were not compared, because a reshard of them is being finished.
    :param without_checksum: publications of which only the rows could be counted: an older version published them, or
        the table's columns were changed since.
    """

    compared: tuple[Publication, ...] = ()
    differences: tuple[Difference, ...] = ()
    unknown: tuple[tuple[str, str, int], ...] = ()
    without_checksum: tuple[Publication, ...] = ()
    moving: tuple[str, ...] = ()
    unpublished: tuple[tuple[str, str, int], ...] = ()

    @property
    def lost(self) -> tuple[Publication, ...]:
        """The publications with differences."""
        found = {(d.publication.table, d.publication.partition): d.publication for d in self.differences}
        return tuple(found.values())

    def raise_differences(self) -> None:
        """:raises RowsLostError: there are differences. It names table, partition, shard and both numbers of each."""
        if not self.differences:
            return
        more = f"; and {len(self.differences) - _SHOWN} more" if len(self.differences) > _SHOWN else ""
        tables = {difference.publication.table for difference in self.differences}
        raise RowsLostError(
            "ClickHouse does not hold exactly the published rows: "
            f"{'; '.join(map(str, self.differences[:_SHOWN]))}{more}.",
            hint=f"`trilake rebuild{f' --table {tables.pop()}' if len(tables) == 1 else ''}` publishes them again.",
        )


@dataclass(frozen=True)
class _Held:
    """What a shard holds of one partition."""

    rows: int
    checksum: int | None = None


def compare(
    cluster: Cluster,
    ledger: Ledger,
    table: str | None = None,
    partitions: Iterable[str] | None = None,
    *,
    checksums: bool = False,
) -> Comparison:
    """Count the rows of every published partition on every shard.

    :param table: only this table. None: all tables of the ledger.
    :param partitions: only these partitions. None: all.
    :param checksums: also compare the rows' checksums. This reads all columns.
    :raises ClusterError: a shard does not answer, or refuses.
    """
    wanted = None if partitions is None else frozenset(partitions)
    before: dict[str, list[Publication]] = {}
    for publication in ledger.publications(table):
        before.setdefault(publication.table, []).append(publication)
    found = [
        _compare_table(cluster, ledger, DataSet(name), publications, wanted, checksums=checksums)
        for name, publications in sorted(before.items())
    ]
    return Comparison(
        tuple(publication for of_table in found for publication in of_table.compared),
        tuple(difference for of_table in found for difference in of_table.differences),
        tuple(partition for of_table in found for partition in of_table.unknown),
        tuple(publication for of_table in found for publication in of_table.without_checksum),
        tuple(table for of_table in found for table in of_table.moving),
        tuple(_unpublished(cluster, ledger, table)) if partitions is None else (),
    )


def _compare_table(
    cluster: Cluster,
    ledger: Ledger,
    data_set: DataSet,
    publications: Sequence[Publication],
    wanted: frozenset[str] | None,
    *,
    checksums: bool,
) -> Comparison:
    cluster.only({number for p in publications if p.partition != WHOLE for number in p.rows})  # all can be compared
    shard_set = ledger.shard_sets.of(data_set.table)
    done = [p for p in publications if p.state == "done" and (wanted is None or p.partition in wanted)]
    held = _rows(cluster, data_set, None if wanted is None else [p.partition for p in done])
    groups = _by_columns(cluster, data_set, done) if checksums else {}
    for columns, of_group in groups.items():
        local, ids = quote_name(data_set.local_table), [data_set.partition_id(p.partition) for p in of_group]
        for shard, sums in held_of(cluster, local, columns, ids).items():
            if (rows := held[shard]) is not None:
                rows |= {partition_id: _Held(*of_partition) for partition_id, of_partition in sums.items()}
    if shard_set.switching or ledger.shard_sets.of(data_set.table).generation != shard_set.generation:
        return Comparison(moving=(data_set.table,))  # the rows are between two numbers of shards
    now = {p.partition: p for p in ledger.publications(data_set.table)}
    compared = [p for p in done if _same(p, now.get(p.partition))]
    summed = {p.partition for of_group in groups.values() for p in of_group}
    differences = [
        difference
        for publication in compared
        for difference in _differences(publication, data_set, held, with_checksum=publication.partition in summed)
    ]
    fewer = any(difference.held is not None and difference.held < difference.expected for difference in differences)
    if fewer and (ttl := ttl_of(cluster, data_set)):
        log.info("Missing rows of %s may have been removed by its TTL (%s)", data_set.table, ttl)
        empty = {shard for shard, partitions in held.items() if not any(p.rows for p in (partitions or {}).values())}
        differences = [d for d in differences if d.shard in empty or d.held is None or d.held >= d.expected]
    without = [p for p in compared if checksums and p.partition not in summed]
    unknown = _unknown(data_set, held, now) if wanted is None else []
    return Comparison(tuple(compared), tuple(differences), tuple(unknown), tuple(without))


def _unknown(
    data_set: DataSet, held: Mapping[int, Mapping[str, _Held] | None], published: Iterable[str]
) -> list[tuple[str, str, int]]:
    """Table, id and rows of partitions that a shard holds, but that were never published."""
    known = {data_set.partition_id(partition) for partition in published}
    found: dict[str, int] = {}
    for rows in held.values():
        for partition_id, of_shard in (rows or {}).items():
            if partition_id not in known:
                found[partition_id] = found.get(partition_id, 0) + of_shard.rows
    return [(data_set.table, partition_id, rows) for partition_id, rows in sorted(found.items())]


def _unpublished(cluster: Cluster, ledger: Ledger, table: str | None) -> list[tuple[str, str, int]]:
    """Table, partition id and rows of what local tables hold that the ledger does not know at all."""

    def of_shard(client: Client, shard: ClickHouseShard) -> list[tuple[str, str, int]]:
        wanted = "" if table is None else f"AND table = {quote_text(DataSet(table).local_table)}"
        sql = (
            f"SELECT table, partition_id, sum(rows) FROM system.parts WHERE active AND database = "
            f"{quote_text(shard.database)} AND endsWith(table, {quote_text(_LOCAL)}) {wanted} GROUP BY 1, 2"
        )
        return [(name, partition_id, int(rows)) for name, partition_id, rows in Statement(sql)(client, shard)]

    held = cluster.every_shard(of_shard)
    published = {p.table for p in ledger.publications(table)}  # afterwards: a publication may be the first one
    found: dict[tuple[str, str], int] = {}
    for local, partition_id, rows in (row for of in held.values() for row in of):
        name = local.removesuffix(_LOCAL)
        if name not in published:
            found[name, partition_id] = found.get((name, partition_id), 0) + rows
    return [(*key, rows) for key, rows in sorted(found.items()) if rows]


def readers_problems(cluster: Cluster, ledger: Ledger, table: str | None = None) -> list[str]:
    """What is wrong with the tables over all shards, a sentence for each. Empty if nothing is.

    A table whose reshard is being finished is left out.
    """

    def found() -> list[str]:
        moving = {name for name, of in ledger.shard_sets.all().items() if of.switching}
        tables = sorted({p.table for p in ledger.publications(table)} - moving)
        problems = []
        for name in tables:
            look = partial(readers_table_problem, cluster.endpoint, name, DataSet(name).local_table)
            shards = {shard.number: shard for shard in cluster.shards}
            for number, problem in sorted(cluster.every_host(look).items()):
                if problem:
                    problems.append(f"{cluster.endpoint.database}.{name} on {shards[number].host} {problem}")
        return problems

    if not found():
        return []
    with migration_lock(ledger.endpoint):  # a migration or a reshard may just be changing it
        return found()


def raise_readers_problems(problems: Sequence[str]) -> None:
    """:raises ReadersTableError: there are problems. It names each."""
    if problems:
        raise ReadersTableError(
            f"Readers do not see the published rows as they should: {'; '.join(problems)}.",
            hint="`trilake migrate` makes these tables again. If published rows are lost, use `trilake rebuild`. If a "
            "table is not in the project any more: `trilake publications --forget TABLE`.",
        )


def _expected(publication: Publication, shard: int) -> int:
    """Rows. A shard that the publication does not name has none, except of a dimension table: there all have a copy."""
    return publication.rows.get(shard, publication.total_rows if publication.partition == WHOLE else 0)


def _expected_checksum(publication: Publication, shard: int) -> int:
    checksums = publication.contents.checksums if publication.contents else {}
    return checksums.get(shard, next(iter(checksums.values()), 0) if publication.partition == WHOLE else 0)


def _same(before: Publication, now: Publication | None) -> bool:
    return now is not None and (now.fence, now.state, now.rows) == (before.fence, before.state, before.rows)


def _differences(
    publication: Publication,
    data_set: DataSet,
    held: Mapping[int, Mapping[str, _Held] | None],
    *,
    with_checksum: bool,
) -> list[Difference]:
    differences = []
    partition_id = data_set.partition_id(publication.partition)
    for shard, partitions in sorted(held.items()):
        if partitions is None:
            differences.append(Difference(publication, shard, None))
            continue
        found = partitions.get(partition_id, _Held(0, 0))
        if found.rows != _expected(publication, shard):
            differences.append(Difference(publication, shard, found.rows))
        elif with_checksum and (found.checksum or 0) != _expected_checksum(publication, shard):
            differences.append(Difference(publication, shard, found.rows, values=True))
    return differences


def _rows(cluster: Cluster, data_set: DataSet, partitions: Sequence[str] | None) -> dict[int, dict[str, _Held] | None]:
    """By shard: what it holds of each partition id. None: it has no such table.

    :param partitions: only these; None: all.
    """
    where = "" if partitions is None else f"WHERE _partition_id IN ({_ids(data_set, partitions)})"

    def of_shard(client: Client, shard: ClickHouseShard) -> dict[str, _Held] | None:
        if not _columns(data_set, client, shard):
            return None
        if partitions is not None and not partitions:
            return {}
        counted = f"SELECT _partition_id, count() FROM {{shard}}.{quote_name(data_set.local_table)} {where} GROUP BY 1"
        return {partition_id: _Held(int(rows)) for partition_id, rows in Statement(counted)(client, shard)}

    return cluster.every_shard(of_shard)


def _columns(data_set: DataSet, client: Client, shard: ClickHouseShard) -> set[tuple[str, str]]:
    """Name and type of the local table's columns; empty if the shard has no such table."""
    sql = (
        f"SELECT name, type FROM system.columns WHERE database = {quote_text(shard.database)} "
        f"AND table = {quote_text(data_set.local_table)}"
    )
    return {(name, kind) for name, kind in Statement(sql)(client, shard)}


def _by_columns(
    cluster: Cluster, data_set: DataSet, publications: Sequence[Publication]
) -> dict[tuple[str, ...], list[Publication]]:
    """The publications whose checksum can be computed now, by the columns that it is of.

    The table must still have these columns with these types on every shard. Other columns may have been added.
    """
    groups: dict[tuple[str, ...], list[Publication]] = {}
    by_shard = cluster.every_shard(partial(_columns, data_set))
    existing = set.intersection(*by_shard.values())
    for publication in publications:
        contents = publication.contents
        if contents and set(contents.columns) <= existing:
            groups.setdefault(tuple(name for name, _ in contents.columns), []).append(publication)
    return groups


def _ids(data_set: DataSet, partitions: Iterable[str]) -> str:
    return ", ".join(quote_text(data_set.partition_id(partition)) for partition in partitions)


def held_of(
    cluster: Cluster, table: str, columns: Sequence[str], partition_ids: Iterable[str]
) -> dict[int, dict[str, tuple[int, int]]]:
    """By shard: rows and checksum of each partition that a table holds, by partition id.

    :param table: the quoted name of a table that every shard has.
    :param columns: of the checksum, see `trilake.clickhouse.publication.ledger.Contents`.
    """
    listed = ", ".join(quote_name(name) for name in columns)
    ids = ", ".join(map(quote_text, partition_ids))
    found = cluster.every_shard(
        Statement(
            f"SELECT _partition_id, count(), sum(cityHash64(tuple({listed}))) FROM {{shard}}.{table} "
            f"WHERE _partition_id IN ({ids}) GROUP BY 1"
        )
    )
    return {
        shard: {partition_id: (int(rows), int(checksum)) for partition_id, rows, checksum in of_shard}
        for shard, of_shard in found.items()
    }


def drop_unknown(cluster: Cluster, ledger: Ledger, table: str, partition_id: str) -> bool:
    """Drop a partition that was never published, on every shard. False: it has been published meanwhile."""
    data_set = DataSet(table)
    local = quote_name(data_set.local_table)
    drop = Statement(f"ALTER TABLE {{shard}}.{local} DROP PARTITION ID {quote_text(partition_id)}")
    with ledger.partition_lock(table, _partition_of(partition_id)) as current:
        if current is not None:
            return False
        for number, columns in cluster.every_shard(partial(_columns, data_set)).items():
            if columns:  # a table that was never published may be on some shards only
                cluster.only([number]).every_shard(drop)
    return True


def _partition_of(partition_id: str) -> str:
    """The partition's name: the reverse of `DataSet.partition_id`."""
    if partition_id == WHOLE or not partition_id.isdigit() or len(partition_id) not in (6, 8):
        return partition_id
    return "-".join(filter(None, (partition_id[:4], partition_id[4:6], partition_id[6:])))
