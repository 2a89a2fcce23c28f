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
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.columns import AuditError, check_types, read_columns
from trilake.clickhouse.publication.comparison import RowsLostError, compare, held_of
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.pulls import pull_of
from trilake.clickhouse.publication.rebuild import plan_of, rebuild
from trilake.clickhouse.publication.shard_sets import Copy
from trilake.clickhouse.publication.staging import Staging, drop_staging
from trilake.clickhouse.publication.switch import REPLACE_SETTINGS
from trilake.clickhouse.readers_table import readers_table_ddl
from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake.catalog import open_catalog
from trilake.lake.data_set import WHOLE, DataSet
from trilake.lake.plan import LoadPlan
from trilake.postgres.locks import LockSpace, migration_lock, watched_lock

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
    if not cluster.endpoint.one_server:
        cluster.check_topology()
    with watched_lock(endpoints.lake, LockSpace.RESHARD, table) as held:
        if held is None:
            raise ReshardError(f"Another reshard of {table} is running.", hint="Wait until it ends.")
        tables = _Tables(cluster, ledger, table, held, progress)
        now = ledger.shard_sets.of(table)
        before = now.shards or len(cluster.shards)
        if now.switching:
            tables.finish()
            now = ledger.shard_sets.of(table)
        with migration_lock(endpoints.lake):  # a migration that runs now does not know yet that this table is copied
            if now.next_shards != shards:  # an earlier call copied for another number
                tables.drop_copies()
            if now.shards == shards:
                ledger.shard_sets.cancel(table)
                return ReshardReport(table, before, shards)
            ledger.shard_sets.begin(table, shards)
            tables.create_copies()
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


def finish_reshards(cluster: Cluster, ledger: Ledger) -> tuple[list[str], list[TrilakeError]]:
    """Finish the reshards that were decided, and whose process died. Returns their tables, and why others failed.

    A reshard that was not decided is only named in a warning: it can be continued or given up.
    """
    finished: list[str] = []
    errors: list[TrilakeError] = []
    for table, shards in ledger.shard_sets.resharding().items():
        with watched_lock(ledger.endpoint, LockSpace.RESHARD, table) as held:
            if held is None:
                continue
            shard_set = ledger.shard_sets.of(table)
            if not shard_set.switching:
                log.warning("A reshard of %s died. To continue: `trilake reshard --table %s --shards %s`. To give up: "
                            "--shards %s.", table, table, shards, shard_set.shards)  # fmt: skip
                continue
            try:
                _Tables(cluster, ledger, table, held, log.info).finish()
                finished.append(table)
            except TrilakeError as e:
                errors.append(e)
    return finished, errors


def _copy_all(tables: _Tables, shards: int, plan_of_published: Callable[[list[Publication]], LoadPlan]) -> int:
    """Copy until every current publication is copied, and decide the switch. Returns the number of copies made."""
    ledger, table = tables.ledger, tables.table
    publisher = Publisher(tables.cluster, ledger)
    made = 0
    unchecked = set(ledger.shard_sets.copies(table))
    while True:
        publisher.finish(table)
        copies = ledger.shard_sets.copies(table)
        due = [
            p for p in ledger.publications(table) if p.partition not in copies or copies[p.partition].fence != p.fence
        ]
        for number, publication in enumerate(due, 1):
            _copy(tables, publication, shards, plan_of_published([publication]))
            made += 1
            unchecked.add(publication.partition)
            tables.progress(f"{table}: copied {number} of {len(due)}: {publication.partition}, "
                            f"{publication.total_rows} rows")  # fmt: skip
        if due:
            continue
        wrong = tables.wrong(unchecked)
        for partition in wrong:  # it was changed since, or the shard lost it: copy it again
            ledger.shard_sets.forget_copy(table, partition)
        unchecked = set()
        if not wrong and tables.held() and ledger.shard_sets.decide(table):
            return made


def _copy(tables: _Tables, publication: Publication, shards: int, plan: LoadPlan) -> None:
    """Pull one partition into staging on the new shards, audit it, and move it to the copies.

    :raises AuditError: the source does not give the published rows.
    """
    ledger, table = tables.ledger, tables.table
    columns = read_columns(tables.cluster, plan.data_set)
    if publication.contents:  # a column that was added since has its default in these rows
        columns = columns.only(publication.contents.columns)
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
            f"FROM {{staging}}.{quote_name(name)}"
        )
        target.every_shard(Statement(move, REPLACE_SETTINGS))
        copy = Copy(claim.partition, publication.fence, claim.rows, contents.checksums, contents.columns)
        ledger.shard_sets.copied(table, copy)
        target.every_shard(partial(drop_staging, name))
        ledger.forget(attempt)


class _Tables:
    """The local tables of a data set, and the copies beside them.

    :param held: whether this process still holds the lock of the table's reshard.
    """

    def __init__(
        self,
        cluster: Cluster,
        ledger: Ledger,
        table: str,
        held: Callable[[], bool],
        progress: Callable[[str], None],
    ) -> None:
        self.held = held
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
        # without the setting, the server refuses to drop a table of more than 50 GB
        drop = Statement(f"DROP TABLE IF EXISTS {{shard}}.{self.copies} SYNC", {"max_table_size_to_drop": 0})
        self.cluster.every_shard(drop)

    def finish(self) -> None:
        """From the decision to the end. Every step can be repeated.

        :raises ReshardError: queries still read an old table, or this process lost its lock.
        :raises RowsLostError: rows were lost meanwhile. The reshard is complete, and a rebuild brings them back.
        :raises ConfigurationError: the connection does not name all old and new shards.
        """
        shard_set = self.ledger.shard_sets.of(self.table)
        self.cluster.only(range(1, max(shard_set.shards or 1, shard_set.next_shards or 1) + 1))
        with migration_lock(self.ledger.endpoint):  # a migration must not alter the tables, nor what readers see
            self._finish()

    def _finish(self) -> None:
        if all(self.cluster.every_shard(partial(_exists, copy_table(self.table))).values()):
            self.progress(f"{self.table}: readers get the copies, and then the local tables again")
            self._show(copy_table(self.table))
            self._await_readers()
            self._check_lock()
            self._fill_local_tables()
        # else: a process died while it dropped the copies. The local tables have the rows, and readers see them.
        if lost := self._lost():
            # The copies cannot bring these rows back, but the ledger's states can.
            self.cluster.every_host(Statement(f"DROP TABLE IF EXISTS {self._readers_table} SYNC"))
            self.drop_copies()
            self.ledger.shard_sets.complete(self.table)
            raise RowsLostError(
                f"Rows of {self.table} were lost while they were spread over other shards, in partition {min(lost)}. "
                "Nobody can read the table now.",
                hint=f"`trilake rebuild --table {self.table}` brings them back.",
            )
        self._check_lock()
        self._show(self.data_set.local_table)
        self._await_readers()
        self._check_lock()
        self.drop_copies()  # before others may publish: a process that continues too late finds nothing to move
        self.ledger.shard_sets.complete(self.table)

    def _check_lock(self) -> None:
        if not self.held():
            raise ReshardError(
                f"The reshard of {self.table} lost its connection to PostgreSQL.", hint="Run this command again."
            )

    @property
    def _readers_table(self) -> str:
        return f"{quote_name(self.cluster.endpoint.database)}.{quote_name(self.table)}"

    def _lost(self) -> set[str]:
        """The partitions of which a local table does not hold the copies' number of rows.

        The values need no second look: the fill links the files of the copies.
        """
        counted = self.cluster.every_shard(
            Statement(f"SELECT _partition_id, count() FROM {{shard}}.{self.local} GROUP BY 1")
        )
        held = {shard: {name: int(rows) for name, rows in found} for shard, found in counted.items()}
        return {
            copy.partition
            for copy in self.ledger.shard_sets.copies(self.table).values()
            for shard, partitions in held.items()
            if partitions.get(self.data_set.partition_id(copy.partition), 0) != copy.rows.get(shard, 0)
        }

    def wrong(self, partitions: Collection[str]) -> set[str]:
        """Those of the partitions of which a shard's copy does not have the recorded rows and checksums."""
        wrong = set()
        by_columns: dict[tuple[tuple[str, str], ...], list[Copy]] = {}
        for copy in self.ledger.shard_sets.copies(self.table).values():
            if copy.partition in partitions:
                by_columns.setdefault(copy.columns, []).append(copy)
        for columns, group in by_columns.items():
            ids = [self.data_set.partition_id(copy.partition) for copy in group]
            for shard, held in held_of(self.cluster, self.copies, [name for name, _ in columns], ids).items():
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

        They may read it through a view, so the name of the table in a query says nothing.

        :raises ReshardError: they run too long.
        """
        began = time.monotonic()

        def older(client: Client, _: ClickHouseShard) -> list[str]:
            age = time.monotonic() - began
            sql = (
                "SELECT query_id FROM system.processes WHERE query_kind IN ('Select', 'Insert') "
                f"AND elapsed > {age:.3f} AND NOT match(query, '_staging_[0-9a-f]+_') "
                "AND position(query, 'system.processes') = 0"
            )
            return [row[0] for row in client.query(sql).result_rows]

        while running := [query for found in self.cluster.every_host(older).values() for query in found]:
            if time.monotonic() - began > READERS_WAIT_S:
                raise ReshardError(
                    f"{len(running)} queries run for more than {READERS_WAIT_S} s, such as {running[0]}. They may read "
                    f"{self.table}.",
                    hint="Wait until they end, or stop them. Then run this command again.",
                )
            time.sleep(_POLL_S)


def _exists(table: str, client: Client, shard: ClickHouseShard) -> bool:
    place = f"database = {quote_text(shard.database)} AND name = {quote_text(table)}"
    return bool(Statement(f"SELECT count() FROM system.tables WHERE {place}")(client, shard)[0][0])
