"""Spreads a table's rows over another number of shards, while publications and readers go on.

The connection must name all shards, the old ones and the new ones. A shard that was added is empty, so readers see the
right rows before, during and after this. The steps:

1. Copy: each published partition is pulled again from the state that the ledger names, into tables `<table>_reshard`
   beside the old ones. The rows and checksums of all shards together must be those of the publication. Publications
   into the old tables go on; a partition that was published again is copied again.
2. Decide: in one transaction, if every current publication is complete and copied. From here on nothing is published
   into this table until the last step, and any process can finish.
3. Readers get a table over the copies. When the queries that began before have ended, each local table gets the
   partitions of its copy (hard links, no data is moved). Its rows and checksums are compared, and readers get the table
   over the local tables again. The copies are dropped.
4. Complete: one transaction records the new number of shards, and the rows and checksums of each publication.

Each step can be repeated. A process can die between any two: the next call continues.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.columns import AuditError, check_types, read_columns
from trilake.clickhouse.publication.comparison import compare, held_of
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.pull import pull_of
from trilake.clickhouse.publication.rebuild import plan_of, rebuild
from trilake.clickhouse.publication.shard_sets import Copy
from trilake.clickhouse.publication.staging import Staging, drop_staging
from trilake.clickhouse.publication.switch import REPLACE_SETTINGS
from trilake.clickhouse.readers_table import readers_table_ddl
from trilake.endpoints import Endpoints
from trilake.errors import CountMismatchError, TrilakeError
from trilake.lake.catalog import open_catalog
from trilake.lake.data_set import WHOLE, DataSet
from trilake.lake.plan import LoadPlan
from trilake.postgres.locks import LockSpace, try_lock

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from trilake.endpoints import ClickHouseShard

log = logging.getLogger(__name__)

# Seconds to wait for queries that began before readers got another table.
READERS_WAIT_S = 600
_POLL_S = 0.5


class ReshardError(TrilakeError):
    """The table cannot be spread over that number of shards now."""


@dataclass(frozen=True)
class ReshardReport:
    """The result for one table.

    :param before: the number of shards before.
    :param partitions: how many partitions were copied by this call.
    """

    table: str
    before: int
    after: int
    partitions: int = 0


def copy_table(table: str) -> str:
    """The table beside each local table that gets the copies."""
    return f"{table}_reshard"


def reshard(
    endpoints: Endpoints, cluster: Cluster, table: str, shards: int, *, progress: Callable[[str], None] = log.info
) -> ReshardReport:
    """Spread the rows of a published table over the first `shards` shards of the connection.

    A dimension table, of which every shard has a full copy, is only copied to the shards that lack it.

    :param progress: called with a line of text for each step.
    :raises ReshardError: the connection has fewer shards, rows were never published, or another reshard of it runs.
    :raises AuditError: a copy does not hold the published rows. Readers see no change.
    """
    if not 1 <= shards <= len(cluster.shards):
        raise ReshardError(
            f"{table} cannot be spread over {shards} shards: the connection names {len(cluster.shards)}.",
            hint="Add the shard first: docs/operations/scaling.md.",
        )
    ledger = Ledger(endpoints.lake)
    publications = ledger.publications(table)
    if not publications:
        raise ReshardError(f"{table} was never published.", hint="`trilake publications` lists the published tables.")
    if all(publication.partition == WHOLE for publication in publications):
        rebuilt = rebuild(endpoints, cluster, table, progress=progress)
        rebuilt.raise_failed()
        return ReshardReport(table, len(cluster.shards), len(cluster.shards), len(rebuilt.rebuilt))
    with try_lock(endpoints.lake, LockSpace.RESHARD, table) as free:
        if not free:
            raise ReshardError(f"Another reshard of {table} is running.", hint="Wait until it ends.")
        tables = _Tables(cluster, ledger, table, progress)
        now = ledger.shard_sets.of(table)
        before = now.shards or len(cluster.shards)
        if now.switching:
            tables.finish()
            now = ledger.shard_sets.of(table)
        if now.next_shards != shards:  # an earlier call copied for another number
            tables.drop_copies()
        if now.shards == shards:
            ledger.shard_sets.cancel(table)
            return ReshardReport(table, before, shards)
        ledger.shard_sets.begin(table, shards)
        if unknown := compare(cluster, ledger, table).unknown:
            raise ReshardError(
                f"{table} holds rows that were never published, such as {unknown[0][2]} in partition {unknown[0][1]}. "
                "It is unknown to which shard they belong.",
                hint=f"Publish them, or drop them: `trilake rebuild --table {table} --drop-unknown`.",
            )
        with closing(open_catalog(endpoints.lake, endpoints.s3)) as catalog:
            copied = _copy_all(tables, shards, partial(plan_of, endpoints, catalog))
        tables.finish()
        return ReshardReport(table, before, shards, copied)


def finish_reshards(cluster: Cluster, ledger: Ledger) -> list[str]:
    """Finish the reshards that were decided, and whose process died. Returns their tables.

    :raises ReshardError: queries still read an old table.
    """
    finished = []
    for table, shard_set in ledger.shard_sets.resharding().items():
        if shard_set.switching:
            with try_lock(ledger.endpoint, LockSpace.RESHARD, table) as free:
                if free:
                    _Tables(cluster, ledger, table, log.info).finish()
                    finished.append(table)
    return finished


def _copy_all(tables: _Tables, shards: int, plan_of_published: Callable[[list[Publication]], LoadPlan]) -> int:
    """Copy until every current publication is copied, and decide the switch. Returns the number of copies made."""
    ledger, table = tables.ledger, tables.table
    tables.create_copies()
    publisher = Publisher(tables.cluster, ledger)
    made = 0
    while True:
        publisher.finish(table)
        copies = ledger.shard_sets.copies(table)
        due = [
            p for p in ledger.publications(table) if p.partition not in copies or copies[p.partition].fence != p.fence
        ]
        for number, publication in enumerate(due, 1):
            _copy(tables, publication, shards, plan_of_published([publication]))
            made += 1
            tables.progress(f"{table}: copied {number} of {len(due)}: {publication.partition}, "
                            f"{publication.total_rows} rows")  # fmt: skip
        if due:
            continue
        wrong = tables.wrong(tables.copies)
        for partition in wrong:  # it was changed since, or the shard lost it: copy it again
            ledger.shard_sets.forget_copy(table, partition)
        if not wrong and ledger.shard_sets.decide(table):
            return made


def _copy(tables: _Tables, publication: Publication, shards: int, plan: LoadPlan) -> None:
    """Pull one partition into staging on the new shards, audit it, and move it to the copies.

    :raises AuditError: the source does not give the published rows.
    """
    ledger, table = tables.ledger, tables.table
    columns = read_columns(tables.cluster, plan.data_set)
    check_types(plan, columns)
    target = tables.cluster.only(range(1, shards + 1))
    attempt = secrets.token_hex(6)
    with ledger.attempt(attempt, table, f"reshard to {shards}"):
        staging = Staging(target, plan, pull_of(plan, columns, shards), attempt)
        (claim,), _ = staging.write(plan.partitions)
        contents, published = claim.contents, publication.contents
        assert contents is not None  # noqa: S101 - `write` always gives it
        rows = sum(claim.rows.values())
        if rows != publication.total_rows or (published and not published.may_equal(contents, claim.partition)):
            raise AuditError(
                f"{table}, partition {claim.partition}: its source does not give the rows that were published (fence "
                f"{publication.fence}): {rows} rows instead of {publication.total_rows}, or other values.",
                hint="Readers see no change. Run the data set's job for this partition again, then this command.",
            )
        name = tables.data_set.staging_table(attempt, claim.partition)
        partition_id = quote_text(tables.data_set.partition_id(claim.partition))
        move = (
            f"ALTER TABLE {{shard}}.{tables.copies} REPLACE PARTITION ID {partition_id} "
            f"FROM {{shard}}.{quote_name(name)}"
        )
        target.every_shard(Statement(move, REPLACE_SETTINGS))
        copy = Copy(claim.partition, publication.fence, claim.rows, contents.checksums, contents.columns)
        ledger.shard_sets.copied(table, copy)
        target.every_shard(partial(drop_staging, name))
        ledger.forget(attempt)


class _Tables:
    """The local tables of a data set, and the copies beside them."""

    def __init__(self, cluster: Cluster, ledger: Ledger, table: str, progress: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.table = table
        self.data_set = DataSet(table)
        self.progress = progress
        self.local = quote_name(self.data_set.local_table)
        self.copies = quote_name(copy_table(table))

    def create_copies(self) -> None:
        make = f"CREATE TABLE IF NOT EXISTS {{shard}}.{self.copies} AS {{shard}}.{self.local}"
        self.cluster.every_shard(Statement(make))

    def drop_copies(self) -> None:
        self.cluster.every_shard(Statement(f"DROP TABLE IF EXISTS {{shard}}.{self.copies} SYNC"))

    def finish(self) -> None:
        """From the decision to the end. Every step can be repeated.

        :raises ReshardError: queries still read an old table.
        :raises CountMismatchError: the local tables do not hold the rows of the copies.
        """
        if all(there for there in self.cluster.every_shard(partial(_exists, copy_table(self.table))).values()):
            self.progress(f"{self.table}: readers get the copies, and then the local tables again")
            self._show(copy_table(self.table))
            self._await_readers()
            self._fill_local_tables()
        # else: a process died while it dropped the copies. The local tables have the rows, and readers see them.
        if wrong := self.wrong(self.local):
            raise CountMismatchError(
                f"{self.table}, partition {min(wrong)}: the local tables do not hold the rows of the copies.",
                hint="Readers see the right rows. Run this command again.",
            )
        self._show(self.data_set.local_table)
        self._await_readers()
        self.drop_copies()  # before others may publish: a process that continues too late finds nothing to move
        self.ledger.shard_sets.complete(self.table)

    def wrong(self, table: str) -> set[str]:
        """The partitions of which a shard does not hold the rows and checksums of the copies in this table.

        :param table: `local` or `copies`.
        """
        wrong = set()
        by_columns: dict[tuple[tuple[str, str], ...], list[Copy]] = {}
        for copy in self.ledger.shard_sets.copies(self.table).values():
            by_columns.setdefault(copy.columns, []).append(copy)
        for columns, group in by_columns.items():
            ids = [self.data_set.partition_id(copy.partition) for copy in group]
            for shard, held in held_of(self.cluster, table, [name for name, _ in columns], ids).items():
                for copy in group:
                    found = held.get(self.data_set.partition_id(copy.partition), (0, 0))
                    if found != (copy.rows.get(shard, 0), copy.checksums.get(shard, 0)):
                        wrong.add(copy.partition)
        return wrong

    def _fill_local_tables(self) -> None:
        ids = sorted(map(self.data_set.partition_id, self.ledger.shard_sets.copies(self.table)))

        def fill(client: Client, shard: ClickHouseShard) -> None:
            for partition_id in ids:
                move = (
                    f"ALTER TABLE {{shard}}.{self.local} REPLACE PARTITION ID {quote_text(partition_id)} "
                    f"FROM {{shard}}.{self.copies}"
                )
                Statement(move, REPLACE_SETTINGS)(client, shard)

        self.cluster.every_shard(fill)

    def _show(self, local: str) -> None:
        """Let readers see this local table of every shard."""

        def replace(client: Client, host: ClickHouseShard) -> None:
            client.command(readers_table_ddl(self.cluster.endpoint, host, self.table, local, partitioned=True))

        self.cluster.every_host(replace)

    def _await_readers(self) -> None:
        """Wait for the queries that began before readers got another table.

        :raises ReshardError: they run too long.
        """
        began = time.monotonic()

        def older(client: Client, _: ClickHouseShard) -> list[str]:
            age = time.monotonic() - began
            sql = (
                "SELECT query_id FROM system.processes WHERE query_kind IN ('Select', 'Insert') "
                f"AND elapsed > {age:.3f} AND position(query, {quote_text(self.table)}) > 0 "
                "AND position(query, '_staging_') = 0 AND position(query, 'system.processes') = 0"
            )
            return [row[0] for row in client.query(sql).result_rows]

        while running := [query for found in self.cluster.every_host(older).values() for query in found]:
            if time.monotonic() - began > READERS_WAIT_S:
                raise ReshardError(
                    f"{len(running)} queries read {self.table} for more than {READERS_WAIT_S} s, such as {running[0]}.",
                    hint="Wait until they end, or stop them. Then run this command again.",
                )
            time.sleep(_POLL_S)


def _exists(table: str, client: Client, shard: ClickHouseShard) -> bool:
    place = f"database = {quote_text(shard.database)} AND name = {quote_text(table)}"
    return bool(Statement(f"SELECT count() FROM system.tables WHERE {place}")(client, shard)[0][0])
