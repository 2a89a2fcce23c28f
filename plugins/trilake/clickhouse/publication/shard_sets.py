"""Over how many shards the rows of each table are spread, as the ledger's database records it.

A table's rows are on the first shards of the connection. The connection may have more shards, which were added since:
the table is empty there. `trilake.clickhouse.publication.reshard` spreads the rows over another number of shards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.lake.data_set import DataSet
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, lock_key

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


_RECORD = (
    "INSERT INTO shard_sets (table_name, shards) SELECT table_name, max(shard::integer) "
    "FROM publications, jsonb_object_keys(rows) AS shard WHERE table_name = %s AND partition <> 'all' "
    "GROUP BY table_name ON CONFLICT DO NOTHING"
)
_FORGET = "DELETE FROM reshard_copies WHERE (table_name, partition) = (%s, %s)"


class ReshardedError(TrilakeError):
    """The rows of the table are being spread over another number of shards, or were meanwhile."""


@dataclass(frozen=True)
class ShardSet:
    """The shards of one table.

    :param generation: counts the changes of the number of shards.
    :param shards: the rows are on the first so many shards. None: nothing was published yet.
    :param next_shards: the number of a reshard in progress.
    :param switching: the reshard is decided. Until it is finished, nothing else may be published.
    """

    generation: int = 1
    shards: int | None = None
    next_shards: int | None = None
    switching: bool = False

    def check_open(self, table: str) -> None:
        """:raises ReshardedError: the table may not be published or read now."""
        if self.switching:
            raise ReshardedError(
                f"The rows of {table} are being spread over {self.next_shards} shards.",
                hint=f"Run the task again later. If the reshard's process has died: `trilake reshard --table {table} "
                f"--shards {self.next_shards}`.",
            )


@dataclass(frozen=True)
class Copy:
    """A partition that a reshard has copied.

    :param fence: of the publication whose rows it has.
    :param rows: by shard number; `checksums` likewise, see `trilake.clickhouse.publication.ledger.Contents`.
    """

    partition: str
    fence: int
    rows: Mapping[int, int]
    checksums: Mapping[int, int]
    columns: tuple[tuple[str, str], ...]


def read_shard_set(connection: Connection, table: str) -> ShardSet:
    """The shards of a table, in the connection's transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT generation, shards, next_shards, switching FROM shard_sets WHERE table_name = %s", (table,)
        )
        row = cursor.fetchone()
        return ShardSet(*row) if row else ShardSet()


def check_claim(connection: Connection, table: str, began: ShardSet | None, shards: int) -> None:
    """Make a reshard wait for the connection's transaction, and check that none came in between.

    :param began: the shards for which the publication was prepared.
    :param shards: how many it has. They are recorded with the table's first publication.
    :raises ReshardedError: the rows have to be spread over other shards now.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", _lock(table))
        now = read_shard_set(connection, table)
        now.check_open(table)
        if began is not None and began.generation != now.generation:
            raise ReshardedError(
                f"The rows of {table} were spread over {now.shards} shards meanwhile.",
                hint="Nothing was published. Run the task again.",
            )
        if now.shards is None and shards:
            cursor.execute(
                "INSERT INTO shard_sets (table_name, shards) VALUES (%s, %s) ON CONFLICT DO NOTHING", (table, shards)
            )


def check_forget(connection: Connection, table: str) -> None:
    """Make claims and reshards wait for the connection's transaction.

    :raises ReshardedError: a reshard of the table is in progress.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", _lock(table))
    if (shards := read_shard_set(connection, table)).next_shards is not None:
        raise ReshardedError(
            f"A reshard of {table} to {shards.next_shards} shards is in progress.",
            hint=f"Finish it: `trilake reshard --table {table} --shards {shards.next_shards}`.",
        )


class ShardSets:
    """The shards of all tables. Each method is a separate transaction."""

    def __init__(self, endpoint: PostgresEndpoint) -> None:
        self.endpoint = endpoint

    def of(self, table: str) -> ShardSet:
        with connect(self.endpoint) as connection:
            return read_shard_set(connection, table)

    def all(self) -> dict[str, ShardSet]:
        """The shards of each published table."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT table_name, generation, shards, next_shards, switching FROM shard_sets ORDER BY 1")
            return {table: ShardSet(*row) for table, *row in cursor.fetchall()}

    def resharding(self) -> dict[str, int]:
        """The tables with a reshard in progress, and over how many shards their rows are to be spread."""
        return {table: of.next_shards for table, of in self.all().items() if of.next_shards is not None}

    @contextmanager
    def no_rows_move(self, statements: Collection[str]) -> Iterator[None]:
        """Check that no rows move to other shards in the block, which reads local tables shard by shard.

        :param statements: they name the local tables that are read.
        :raises ReshardedError: rows of such a table moved, so some may have been read twice or not at all.
        """
        before = self.all()
        read = [name for name in before if any(DataSet(name).local_table in sql for sql in statements)]
        for table in read:
            before[table].check_open(table)
        yield
        after = self.all() if read else {}
        for table in read:
            if after[table].switching or after[table].generation != before[table].generation:
                raise ReshardedError(
                    f"The rows of {table} were spread over other shards while they were read.", hint="Run it again."
                )

    def begin(self, table: str, shards: int) -> None:
        """Record that a reshard is in progress. Forgets the copies of one with another number of shards."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(_RECORD, (table,))  # an older version may have published the table first
            cursor.execute(
                "UPDATE shard_sets SET next_shards = %s WHERE table_name = %s AND NOT switching "
                "AND next_shards IS DISTINCT FROM %s",
                (shards, table, shards),
            )
            if cursor.rowcount:
                cursor.execute("DELETE FROM reshard_copies WHERE table_name = %s", (table,))

    def cancel(self, table: str) -> None:
        """Give up a reshard that was not decided."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("UPDATE shard_sets SET next_shards = NULL WHERE table_name = %s AND NOT switching", (table,))
            cursor.execute("DELETE FROM reshard_copies WHERE table_name = %s", (table,))

    def copies(self, table: str) -> dict[str, Copy]:
        """The copied partitions by name."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT partition, fence, rows, checksums, columns FROM reshard_copies WHERE table_name = %s", (table,)
            )
            return {
                partition: Copy(partition, fence, _by_shard(rows), _by_shard(checksums), tuple(map(tuple, columns)))
                for partition, fence, rows, checksums, columns in cursor.fetchall()
            }

    def copied(self, table: str, copy: Copy) -> None:
        """Record a copy, in place of an earlier one of its partition."""
        from psycopg2.extras import Json

        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(_FORGET, (table, copy.partition))
            cursor.execute(
                "INSERT INTO reshard_copies (table_name, partition, fence, rows, checksums, columns) "
                "VALUES (%s, %s, %s, %s, %s, %s)",
                (table, copy.partition, copy.fence, Json(copy.rows), Json(copy.checksums), Json(copy.columns)),
            )

    def forget_copy(self, table: str, partition: str) -> None:
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(_FORGET, (table, partition))

    def decide(self, table: str) -> bool:
        """Decide the switch, if every partition's current publication is complete and copied. False: not yet.

        Claims wait for this transaction, and are refused after it.
        """
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", _lock(table))
            cursor.execute(
                "SELECT count(*) FROM (SELECT DISTINCT ON (partition) partition, fence, state FROM publications "
                "WHERE table_name = %s ORDER BY partition, fence DESC) AS current "
                "WHERE state <> 'done' OR NOT EXISTS (SELECT FROM reshard_copies AS copy WHERE copy.table_name = %s "
                "AND copy.partition = current.partition AND copy.fence = current.fence)",
                (table, table),
            )
            if cursor.fetchone() != (0,):
                return False
            cursor.execute(
                "UPDATE shard_sets SET switching = true WHERE table_name = %s AND next_shards IS NOT NULL", (table,)
            )
            return bool(cursor.rowcount)

    def complete(self, table: str) -> None:
        """Record that the rows are spread as the copies say. From here on, publications go to the new shards."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", _lock(table))
            cursor.execute(
                "UPDATE publications AS p SET rows = copy.rows, checksums = copy.checksums, columns = copy.columns "
                "FROM reshard_copies AS copy WHERE p.table_name = %s AND copy.table_name = p.table_name "
                "AND copy.partition = p.partition AND copy.fence = p.fence",
                (table,),
            )
            cursor.execute(
                "UPDATE shard_sets SET generation = generation + 1, shards = next_shards, next_shards = NULL, "
                "switching = false WHERE table_name = %s AND switching",
                (table,),
            )
            cursor.execute("DELETE FROM reshard_copies WHERE table_name = %s", (table,))


def _lock(table: str) -> tuple[int, int]:
    return LockSpace.SHARD_SET, lock_key(table)


def _by_shard(numbers: Mapping[str, Any]) -> dict[int, int]:
    return {int(shard): int(number) for shard, number in numbers.items()}
