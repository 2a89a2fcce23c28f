"""The ledger of publications: which state of each partition ClickHouse shows, or will show after a switch.

The ledger is in PostgreSQL, database ``lake``. Each decided publication is a row of ``publications``. The rows of
one partition are numbered. The number is called a fence: the row with the highest fence is the valid one. A publisher
registers its attempt in ``publication_attempts`` before it makes its first staging table. It holds an advisory lock as
long as it lives: if the lock of an attempt is free, its process is dead.

A row names the source of its data (an Iceberg table by its UUID, or plain objects) and the source's state: Iceberg's
sequence number and snapshot, or the version of a load of plain objects and a digest of the objects. Two states can be
compared (which one is later) only if they have the same source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from trilake.clickhouse.publication.shard_sets import ShardSet, ShardSets, check_claim, check_forget
from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.lake.data_set import WHOLE
from trilake.lake.plan import ICEBERG_TABLE, PLAIN_OBJECTS
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, hold_lock, lock_key, try_lock

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

State = Literal["switching", "done", "superseded"]


class AttemptLostError(TrilakeError):
    """The attempt lost the connection that holds its lock. From then on any process may clean up after it."""


class InUseError(TrilakeError):
    """The publications of a table cannot be removed now."""


class SourceChangedError(TrilakeError):
    """The partition shows rows of another source, so it is unknown which rows are newer."""


@dataclass(frozen=True)
class Attempt:
    """A registered attempt and the connection that holds its lock.

    :param shard_set: the shards for which its rows are prepared. None: unknown.
    """

    name: str
    table: str
    run_id: str
    connection: Connection = field(repr=False)
    shard_set: ShardSet | None = None

    @property
    def lost(self) -> bool:
        """Whether the connection is closed. Its last transaction may or may not have been committed."""
        return bool(self.connection.closed)


@dataclass(frozen=True)
class Contents:
    """What the rows of a publication are: enough to find their loss, and to publish the same rows again.

    :param columns: name and ClickHouse type of each column that was filled, in the table's order at that time.
    :param checksums: by shard number: the sum of the rows' hashes over these columns, modulo 2^64.
    :param objects: the plain objects, see `trilake.lake.objects.objects_document`; None for rows of an Iceberg table.
    """

    columns: tuple[tuple[str, str], ...]
    checksums: Mapping[int, int]
    objects: Mapping[str, Any] | None = None

    def may_equal(self, other: Contents, partition: str) -> bool:
        """Whether these can be the same rows, also if they are spread over another number of shards.

        Checksums of other columns cannot be compared.
        """
        if self.columns != other.columns:
            return True
        if partition == WHOLE:  # every shard has a full copy
            return set(self.checksums.values()) == set(other.checksums.values())
        if self.checksums.keys() == other.checksums.keys():
            return self.checksums == other.checksums
        return (sum(self.checksums.values()) - sum(other.checksums.values())) % 2**64 == 0


@dataclass(frozen=True)
class Publication:
    """A row of the ledger.

    :param fence: the number of this publication, counted for each partition. The highest one is valid.
    :param snapshot_id: the id of the Iceberg snapshot, or a digest of plain objects.
    :param sequence_number: the sequence number of the Iceberg snapshot, or the version of a load of plain objects.
    :param rows: rows by shard number.
    :param source: where the rows came from, see `trilake.lake.plan.LoadPlan`.
    :param contents: what the rows are; None if an older version published them.
    """

    table: str
    partition: str
    fence: int
    state: State
    attempt: str
    snapshot_id: int
    sequence_number: int
    rows: Mapping[int, int]
    run_id: str
    decided_at: datetime
    done_at: datetime | None
    source: str = ICEBERG_TABLE
    contents: Contents | None = None

    @property
    def total_rows(self) -> int:
        return total_rows(self.partition, self.rows)

    def shows(self, snapshot_id: int, sequence_number: int) -> bool:
        """Whether this publication is of exactly the given state of its source."""
        return (self.snapshot_id, self.sequence_number) == (snapshot_id, sequence_number)

    def stands_against(self, snapshot_id: int, sequence_number: int, source: str) -> bool:
        """Whether this publication already shows the given state, or a later one. If two different states have the same
        sequence number, neither is later: False, so that the given one replaces this one.

        :raises SourceChangedError: the given state is of another source.
        """
        sources = {self.source, source}
        if len(sources) > 1 and not (ICEBERG_TABLE in sources and all(s.startswith(ICEBERG_TABLE) for s in sources)):
            raise SourceChangedError(
                f"Partition {self.partition} of {self.table} shows rows of {self.source} (run {self.run_id}). The new "
                f"rows are of {source}, and it is unknown which are newer.",
                hint="Nothing was published. To replace the published rows: `trilake publish "
                f"{self.table} --partition {self.partition} --force"
                f"{' --objects FILE' if source == PLAIN_OBJECTS else ''}`.",
            )
        return self.shows(snapshot_id, sequence_number) or self.sequence_number > sequence_number


@dataclass(frozen=True)
class Claim:
    """The ledger row that a publisher proposes for one partition; see `Publication`.

    :param replaces: the fence of a publication whose rows were lost. The claim wins only if that publication is still
        the current one. None: the claim wins against an earlier state.
    """

    partition: str
    snapshot_id: int
    sequence_number: int
    rows: Mapping[int, int]
    source: str = ICEBERG_TABLE
    contents: Contents | None = None
    replaces: int | None = None

    def wins_against(self, current: Publication | None) -> bool:
        """Whether this claim may replace the current publication of its partition.

        :raises SourceChangedError: they are of different sources.
        """
        if self.replaces is not None:
            return current is not None and current.fence == self.replaces
        return current is None or not current.stands_against(self.snapshot_id, self.sequence_number, self.source)


def total_rows(partition: str, rows: Mapping[int, int]) -> int:
    """The rows of a partition on all shards. Every shard has a full copy of a dimension table, which counts once."""
    return max(rows.values(), default=0) if partition == WHOLE else sum(rows.values())


_COLUMNS = (
    "table_name, partition, fence, state, attempt, snapshot_id, sequence_number, rows, run_id, decided_at, done_at, "
    "source, columns, checksums, objects"
)


class Ledger:
    """The ledger of one lake. Each method is a separate transaction."""

    def __init__(self, endpoint: PostgresEndpoint) -> None:
        self.endpoint = endpoint
        self.shard_sets = ShardSets(endpoint)

    @contextmanager
    def attempt(self, attempt: str, table: str, run_id: str, shard_set: ShardSet | None = None) -> Iterator[Attempt]:
        """Register an attempt, and hold its lock for the length of the `with` block.

        The row stays when the block ends. `forget` removes it when ClickHouse has no table of the attempt.
        """
        with (
            hold_lock(self.endpoint, LockSpace.PUBLICATION_ATTEMPT, attempt) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(
                "INSERT INTO publication_attempts (attempt, table_name, run_id) VALUES (%s, %s, %s)",
                (attempt, table, run_id),
            )
            yield Attempt(attempt, table, run_id, connection, shard_set)

    def forget(self, attempt: str) -> None:
        """Remove an attempt's row. Call it when ClickHouse has no table of the attempt."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM publication_attempts WHERE attempt = %s", (attempt,))

    def forget_table(self, table: str) -> int:
        """Remove all publications of a table. Returns the number of rows. ClickHouse's tables stay as they are.

        :raises InUseError: it is being published or resharded, or an attempt of it was not cleaned up.
        """
        for attempt, _ in self.attempts(table):
            with self.abandoned(attempt) as dead:
                raise InUseError(
                    f"{table} cannot be forgotten: its publication attempt {attempt} "
                    f"{'was not cleaned up' if dead else 'is running'}.",
                    hint="`trilake publications --clean` cleans up." if dead else "Wait until it ends.",
                )
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            check_forget(connection, table)  # from here on, nothing is decided until the transaction ends
            cursor.execute("SELECT partition FROM publications WHERE table_name = %s AND state = 'switching'", (table,))
            if switching := cursor.fetchone():
                raise InUseError(
                    f"{table} cannot be forgotten: the publication of partition {switching[0]} is not complete.",
                    hint="`trilake publications --finish` completes it.",
                )
            cursor.execute("DELETE FROM reshard_copies WHERE table_name = %s", (table,))
            cursor.execute("DELETE FROM shard_sets WHERE table_name = %s", (table,))
            cursor.execute("DELETE FROM publications WHERE table_name = %s", (table,))
            return cursor.rowcount

    def claim(
        self, attempt: Attempt, claims: Sequence[Claim], *, force: bool = False
    ) -> tuple[list[Publication], list[Publication]]:
        """Decide the publication of each partition, in one transaction.

        Returns the publications that this attempt won, and the current publications that it does not replace, because
        they show the same state or a later one, or because another publication came in between. With `force`, it wins
        all.

        :raises AttemptLostError: the connection of the attempt is closed.
        :raises SourceChangedError: a partition shows rows of another source. Nothing was decided.
        :raises ReshardedError: the table's rows are spread over other shards now. Nothing was decided.
        """
        import psycopg2

        try:
            # Use the connection that holds the attempt's lock. If another process gets the lock, this connection has
            # ended, so this attempt can no longer publish. Then that process may drop the staging tables.
            attempt.connection.autocommit = False
            with attempt.connection:
                return self._claim(attempt, claims, force=force)
        except psycopg2.Error as e:
            if not attempt.lost:
                raise
            raise AttemptLostError(
                f"Publication attempt {attempt.name} of {attempt.table} lost its connection to PostgreSQL "
                f"({type(e).__name__}).",
                hint="Run the task again.",
            ) from None

    def _claim(
        self, attempt: Attempt, claims: Sequence[Claim], *, force: bool
    ) -> tuple[list[Publication], list[Publication]]:
        won: list[Publication] = []
        kept: list[Publication] = []
        table = attempt.table
        shards = max((number for claim in claims if claim.partition != WHOLE for number in claim.rows), default=0)
        check_claim(attempt.connection, table, attempt.shard_set, shards)
        with attempt.connection.cursor() as cursor:
            for claim in sorted(claims, key=lambda claim: claim.partition):  # the same order everywhere: no deadlock
                cursor.execute(*_lock_of(table, claim.partition))
                current = _current(attempt.connection, table, claim.partition)
                if not force and not claim.wins_against(current):
                    kept += [current] if current else []
                    continue
                cursor.execute(
                    "UPDATE publications SET state = 'superseded' "
                    "WHERE table_name = %s AND partition = %s AND state = 'switching'",
                    (table, claim.partition),
                )
                cursor.execute(
                    "INSERT INTO publications (table_name, partition, fence, state, attempt, snapshot_id, "
                    "sequence_number, rows, run_id, source, columns, checksums, objects) "
                    "VALUES (%s, %s, %s, 'switching', %s, %s, %s, %s, %s, %s, %s, %s, %s) "
                    f"RETURNING {_COLUMNS}",
                    (
                        table,
                        claim.partition,
                        (current.fence if current else 0) + 1,
                        attempt.name,
                        claim.snapshot_id,
                        claim.sequence_number,
                        _json(claim.rows),
                        attempt.run_id,
                        claim.source,
                        *_contents_values(claim.contents),
                    ),
                )
                won.append(_publication(_single_row(cursor.fetchone())))
        return won, kept

    @contextmanager
    def partition_lock(self, table: str, partition: str) -> Iterator[Publication | None]:
        """The current publication of a partition. No other one is decided as long as the `with` block lasts."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(*_lock_of(table, partition))
            yield _current(connection, table, partition)

    def done(self, publication: Publication) -> bool:
        """Record that every shard shows the publication. False: a higher fence has replaced it; nothing is recorded."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE publications SET state = 'done', done_at = now() "
                "WHERE table_name = %s AND partition = %s AND fence = %s AND state IN ('switching', 'done')",
                (publication.table, publication.partition, publication.fence),
            )
            return bool(cursor.rowcount)

    # --- reading

    def current(self, table: str, partition: str) -> Publication | None:
        """The publication with the highest fence of this partition."""
        with connect(self.endpoint) as connection:
            return _current(connection, table, partition)

    def publications(self, table: str | None = None) -> list[Publication]:
        """The current publication of every partition, by table and partition."""
        return self._select(
            f"SELECT DISTINCT ON (table_name, partition) {_COLUMNS} FROM publications "
            "WHERE table_name = coalesce(%s, table_name) ORDER BY table_name, partition, fence DESC",
            (table,),
        )

    def missing(
        self,
        table: str,
        partitions: Sequence[str],
        *,
        not_before: datetime | None = None,
        sequence_number: int | None = None,
    ) -> dict[str, str]:
        """The partitions that readers do not see in the required state, each with the reason. Empty if they see all.

        :param not_before: require a switch that was complete at this time or later.
        :param sequence_number: require the snapshot with this number, or a later one.
        """
        current = {publication.partition: publication for publication in self.publications(table)}
        missing = {}
        for partition in partitions:
            publication = current.get(partition)
            if publication is None:
                missing[partition] = "was never published"
            elif publication.state != "done" or publication.done_at is None:
                missing[partition] = f"is {publication.state} since {publication.decided_at:%Y-%m-%d %H:%M:%S}"
            elif not_before and publication.done_at < not_before:
                missing[partition] = (
                    f"was published at {publication.done_at:%Y-%m-%d %H:%M:%S}, before {not_before:%Y-%m-%d %H:%M:%S}"
                )
            elif sequence_number is not None and publication.sequence_number < sequence_number:
                missing[partition] = f"shows the earlier snapshot {publication.snapshot_id}"
        return missing

    def switching(self, table: str | None = None) -> list[Publication]:
        """The publications that are decided but not complete."""
        return self._select(
            f"SELECT {_COLUMNS} FROM publications WHERE state = 'switching' "
            "AND table_name = coalesce(%s, table_name) ORDER BY table_name, partition",
            (table,),
        )

    def lower_fences(self, publication: Publication) -> list[str]:
        """The registered attempts that published this partition with a lower fence."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT p.attempt FROM publications p JOIN publication_attempts a USING (attempt) "
                "WHERE p.table_name = %s AND p.partition = %s AND p.fence < %s AND p.attempt <> %s",
                (publication.table, publication.partition, publication.fence, publication.attempt),
            )
            return [attempt for (attempt,) in cursor.fetchall()]

    def attempts(self, table: str | None = None) -> list[tuple[str, str]]:
        """(attempt, table) of every registered attempt, alive or not."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT attempt, table_name FROM publication_attempts WHERE table_name = coalesce(%s, table_name) "
                "ORDER BY started_at",
                (table,),
            )
            return [(attempt, name) for attempt, name in cursor.fetchall()]

    @contextmanager
    def abandoned(self, attempt: str) -> Iterator[bool]:
        """Whether an attempt's process is dead. If True, the block holds its lock: no other process cleans it up."""
        with try_lock(self.endpoint, LockSpace.PUBLICATION_ATTEMPT, attempt) as free:
            yield free

    def _select(self, sql: str, parameters: tuple[Any, ...]) -> list[Publication]:
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return [_publication(row) for row in cursor.fetchall()]


def _lock_of(table: str, partition: str) -> tuple[str, tuple[Any, ...]]:
    """A statement that waits for the partition's lock and holds it until the transaction ends."""
    key = lock_key(f"{table}/{partition}")
    return "SELECT pg_advisory_xact_lock(%s, %s)", (LockSpace.PUBLISHED_PARTITION, key)


def _current(connection: Connection, table: str, partition: str) -> Publication | None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM publications WHERE table_name = %s AND partition = %s ORDER BY fence DESC LIMIT 1",
            (table, partition),
        )
        row = cursor.fetchone()
        return _publication(row) if row else None


def _publication(row: tuple[Any, ...]) -> Publication:
    table, partition, fence, state, attempt, snapshot_id, sequence_number, rows, run_id, decided_at, done_at = row[:11]
    source, columns, checksums, objects = row[11:]
    return Publication(
        table=table,
        partition=partition,
        fence=fence,
        state=state,
        attempt=attempt,
        snapshot_id=snapshot_id,
        sequence_number=sequence_number,
        rows=_by_shard(rows),
        run_id=run_id,
        decided_at=decided_at,
        done_at=done_at,
        source=source,
        contents=None
        if checksums is None
        else Contents(tuple((name, kind) for name, kind in columns), _by_shard(checksums), objects),
    )


def _by_shard(numbers: Mapping[str, int]) -> dict[int, int]:
    return {int(shard): int(number) for shard, number in numbers.items()}


def _contents_values(contents: Contents | None) -> tuple[Any, Any, Any]:
    from psycopg2.extras import Json

    if contents is None:
        return None, None, None
    objects = None if contents.objects is None else Json(contents.objects)
    return Json([list(column) for column in contents.columns]), _json(contents.checksums), objects


def _single_row(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert row is not None  # noqa: S101 - INSERT RETURNING and SELECT of a function always give a row
    return row


def _json(rows: Mapping[int, int]) -> Any:
    from psycopg2.extras import Json

    return Json({str(shard): count for shard, count in rows.items()})
