"""A table's rows move to another number of shards while readers read and others publish. On real servers."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from pyiceberg.types import IntegerType

from support.publication_table import Table, tables_of
from support.published_lake import Lake
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.publication import reshard as resharding
from trilake.clickhouse.publication.comparison import RowsLostError
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.reshard import ReshardError, ReshardReport, copy_table, finish_reshards
from trilake.clickhouse.publication.shard_sets import ReshardedError, ShardSets
from trilake.clickhouse.publication.staging import Staging
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.errors import ConfigurationError
from trilake.lake.catalog import plan
from trilake.schema.clickhouse_steps import migrate_clickhouse
from trilake.schema.steps import MigrationError, Step

JANUARY, FEBRUARY = "2013-01", "2013-02"


@pytest.fixture
def cluster(endpoints: Endpoints) -> Iterator[Cluster]:
    """Three shards: databases of the running server, and a third one of this test."""
    first = endpoints.clickhouse.shards[0]
    third = ClickHouseShard(3, first.host, first.port, f"r_{secrets.token_hex(4)}")
    with Cluster(replace(endpoints.clickhouse, shards=(*endpoints.clickhouse.shards, third))) as cluster:
        cluster.on_shard(third, Statement("CREATE DATABASE {shard}"))
        yield cluster
        cluster.on_shard(third, Statement("DROP DATABASE {shard} SYNC"))
        cluster.on_shard(third, Statement("DROP DATABASE IF EXISTS {staging} SYNC"))


@pytest.fixture
def lake(endpoints: Endpoints, cluster: Cluster) -> Iterator[Lake]:
    """Two months on the first two of three shards."""
    table = Table(endpoints, cluster)
    made = Lake(table)
    made.commit(1, *(f"n{n}" for n in range(40)))
    made.commit(2, *(f"m{n}" for n in range(25)))
    planned = plan(made.iceberg, made.data_set, [JANUARY, FEBRUARY], with_columns=True)
    Publisher(cluster.only([1, 2]), made.ledger).publish(planned, run_id="run")
    made.show()
    yield made
    cluster.any_host(Statement(f"DROP TABLE IF EXISTS {made.endpoints.clickhouse.database}.{made.name} SYNC"))
    made.drop()
    table.drop()


def reshard(lake: Lake, shards: int) -> ReshardReport:
    return resharding.reshard(lake.endpoints, lake.cluster, lake.name, shards)


def read(lake: Lake) -> tuple[int, int]:
    """Rows and checksum, as a reader of the table over all shards sees them."""
    sql = f"SELECT count(), sum(cityHash64(k, d, note)) FROM {lake.endpoints.clickhouse.database}.{lake.name}"
    return lake.cluster.any_host(Statement(sql))[0]  # type: ignore[return-value]


def by_shard(lake: Lake) -> dict[int, int]:
    counted = lake.cluster.every_shard(Statement(f"SELECT count() FROM {lake.local}"))
    return {number: rows[0][0] for number, rows in counted.items()}


def strays(lake: Lake, shards: int) -> int:
    """Rows that are on another shard than their bucket says."""
    return sum(
        lake.cluster.on_shard(
            shard,
            Statement(f"SELECT count() FROM {lake.local} WHERE icebergBucket({shards}, k) != {shard.number - 1}"),
        )[0][0]
        for shard in lake.cluster.shards
    )


def nothing_is_left(lake: Lake) -> bool:
    tables = lake.cluster.every_shard(tables_of)
    names = {name for found in tables.values() for _, name in found if name.startswith(lake.name)}
    left = lake.ledger.shard_sets.copies(lake.name) or lake.ledger.attempts(lake.name)
    return names == {lake.data_set.local_table} and not left


def all_is_right(lake: Lake, shards: int, seen: tuple[int, int]) -> None:
    assert read(lake) == seen
    assert strays(lake, shards) == 0
    assert all(bool(rows) == (number <= shards) for number, rows in by_shard(lake).items())
    lake.compare(checksums=True).raise_differences()
    assert nothing_is_left(lake)
    assert lake.ledger.shard_sets.of(lake.name).shards == shards


def test_rows_move_to_three_shards_and_back_and_publications_follow(lake: Lake) -> None:
    seen = read(lake)
    assert reshard(lake, 3) == ReshardReport(lake.name, 2, 3, 2)
    all_is_right(lake, 3, seen)
    lake.commit(1, "later")
    lake.publish(JANUARY)  # the Iceberg table still has two buckets
    seen = read(lake)
    all_is_right(lake, 3, seen)
    lake.lose(JANUARY)
    lake.rebuild()
    all_is_right(lake, 3, seen)
    assert reshard(lake, 2).after == 2
    all_is_right(lake, 2, seen)
    assert reshard(lake, 2).partitions == 0
    all_is_right(lake, 2, seen)


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """Repeats work in a thread for the length of the block. The list has the error that ended it."""
    ended, errors = threading.Event(), list[BaseException]()

    def repeat() -> None:
        while not ended.is_set():
            try:
                work()
            except Exception as e:
                errors.append(e)
                return

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield errors
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_readers_see_all_rows_while_they_move_and_others_publish(lake: Lake) -> None:
    seen, reads, published = read(lake), list[tuple[int, int]](), list[str]()
    planned = plan(lake.iceberg, lake.data_set, [JANUARY], with_columns=True)

    def publish() -> None:
        try:
            Publisher(lake.cluster, lake.ledger).publish(planned, run_id="beside", force=True)
            published.append("published")
        except ReshardedError:
            published.append("refused")

    with beside(lambda: reads.append(read(lake))) as unread, beside(publish) as unpublished:
        reshard(lake, 3)
        reshard(lake, 2)
    assert (unread, unpublished) == ([], [])
    assert len(reads) > 10
    assert set(reads) == {seen}
    assert "published" in published
    all_is_right(lake, 2, seen)


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[list[str]]:
    """The process dies before the statement to ClickHouse or the transaction of the ledger with this number."""
    statements = list[str]()

    def counted(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            statements.append(name)
            if len(statements) > after:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Cluster, "_run", counted("ClickHouse", Cluster._run))
        for name in ("begin", "copies", "copied", "forget_copy", "decide", "complete"):
            patched.setattr(ShardSets, name, counted(name, getattr(ShardSets, name)))
        yield statements


def killed(lake: Lake, monkeypatch: pytest.MonkeyPatch, shards: int, after: int, seen: tuple[int, int]) -> bool:
    """Kill a reshard after so many statements, and finish it. False: it ended before."""
    with dying(monkeypatch, after):
        try:
            reshard(lake, shards)
        except KeyboardInterrupt:
            assert read_undisturbed(lake) == seen
        else:
            return False
    reshard(lake, shards)
    Publisher(lake.cluster, lake.ledger).clean(lake.name)  # as the housekeeping does for attempts that died
    all_is_right(lake, shards, seen)
    return True


def read_undisturbed(lake: Lake) -> tuple[int, int]:
    with Cluster(lake.cluster.endpoint) as cluster:
        sql = f"SELECT count(), sum(cityHash64(k, d, note)) FROM {lake.endpoints.clickhouse.database}.{lake.name}"
        client = cluster.client(cluster.shards[0])
        row = client.query(sql).result_rows[0]
        return int(row[0]), int(row[1])


@pytest.mark.parametrize("first", [17, *(pytest.param(n, marks=pytest.mark.nightly) for n in range(17))])
def test_a_reshard_that_dies_at_any_step_is_finished_by_the_next_call(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Each call dies some statements later than the one before: all cases together die everywhere."""
    seen, shards, after = read(lake), 3, first
    while killed(lake, monkeypatch, shards, after, seen):
        shards = 5 - shards
        after += 17
    assert after > 50, "a reshard has more statements than this"
    reshard(lake, 2)
    all_is_right(lake, 2, seen)


def test_what_was_decided_is_finished_by_the_housekeeping(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read(lake)
    with monkeypatch.context() as patched:
        patched.setattr(resharding._Tables, "finish", lambda _self: None)
        reshard(lake, 3)
    with pytest.raises(ReshardedError, match=f"`trilake reshard --table {lake.name} --shards 3`"):
        lake.publish(JANUARY)
    assert not lake.compare().compared  # a check during the switch does not report a loss
    assert lake.compare().moving == (lake.name,)
    assert finish_reshards(lake.cluster, lake.ledger) == ([lake.name], [])
    all_is_right(lake, 3, seen)


def test_a_publication_that_was_prepared_before_is_refused_after(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Staging.write
    lake.commit(1, "later")

    def reshard_first(self: Staging, partitions: Any) -> Any:
        written = real(self, partitions)
        monkeypatch.setattr(Staging, "write", real)
        reshard(lake, 3)
        return written

    monkeypatch.setattr(Staging, "write", reshard_first)
    with pytest.raises(ReshardedError, match="were spread over 3 shards meanwhile"):
        lake.publish(JANUARY)
    lake.publish(JANUARY)
    all_is_right(lake, 3, read(lake))


def test_a_copy_that_was_changed_is_made_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = read(lake), resharding._copy

    def change(tables: Any, publication: Any, *arguments: Any) -> None:
        real(tables, publication, *arguments)
        if publication.partition == FEBRUARY:
            monkeypatch.setattr(resharding, "_copy", real)
            lake.cluster.every_shard(
                Statement(f"ALTER TABLE {{shard}}.{copy_table(lake.name)} DROP PARTITION ID '201301'")
            )

    monkeypatch.setattr(resharding, "_copy", change)
    assert reshard(lake, 3).partitions == 3
    all_is_right(lake, 3, seen)


def test_a_copy_that_is_lost_after_the_decision_does_not_end_in_a_dead_end(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read(lake)
    with monkeypatch.context() as patched:
        patched.setattr(resharding._Tables, "finish", lambda _self: None)
        reshard(lake, 3)
    lost = Statement(f"DROP TABLE {{shard}}.{copy_table(lake.name)} SYNC")
    lake.cluster.on_shard(lake.cluster.shards[2], lost)
    with pytest.raises(RowsLostError, match=f"`trilake rebuild --table {lake.name}` brings them back"):
        reshard(lake, 3)
    with pytest.raises(ClickHouseError, match="UNKNOWN_TABLE"):  # and not a number that is too small
        read(lake)
    lake.rebuild()
    lake.show()
    all_is_right(lake, 3, seen)


def test_rows_on_a_shard_that_the_ledger_does_not_name_are_removed_with_the_next_publication(lake: Lake) -> None:
    """As after a restore of the ledger to a time before a reshard."""
    seen = read(lake)
    third = lake.cluster.shards[2]
    lake.cluster.on_shard(third, Statement(f"INSERT INTO {lake.local} SELECT * FROM {lake.cluster.shards[0].database}."
                                           f"{lake.data_set.local_table}"))  # fmt: skip
    with pytest.raises(RowsLostError, match=r"shard 3 holds .* rows, and the ledger says 0"):
        lake.compare().raise_differences()
    lake.rebuild()
    all_is_right(lake, 2, seen)


def test_a_column_that_was_added_since_stays_as_it_is(lake: Lake) -> None:
    """In the lake and in ClickHouse: partitions that were published before have its default."""
    add = f"ALTER TABLE {lake.local} ADD COLUMN more Nullable(Int32) DEFAULT 7"
    lake.cluster.every_shard(Statement(add))
    with lake.iceberg.update_schema() as schema:
        schema.add_column("more", IntegerType())
    seen = read(lake)
    reshard(lake, 3)
    lake.lose(FEBRUARY)
    lake.rebuild()
    all_is_right(lake, 3, seen)
    values = lake.cluster.every_shard(Statement(f"SELECT DISTINCT more FROM {lake.local}"))
    assert {row for rows in values.values() for row in rows} == {(7,)}


def test_a_connection_that_lacks_a_shard_finishes_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read(lake)
    with monkeypatch.context() as patched:
        patched.setattr(resharding._Tables, "finish", lambda _self: None)
        reshard(lake, 3)
    finished, (error,) = finish_reshards(lake.cluster.only([1, 2]), lake.ledger)
    assert finished == []
    assert "the connection names 2 shards" in str(error)
    reshard(lake, 3)
    all_is_right(lake, 3, seen)


def test_a_table_is_not_altered_while_its_rows_move(lake: Lake) -> None:
    table = Step(f"clickhouse/{lake.name}/table.sql", lake.name, "clickhouse", f"CREATE TABLE {lake.name} (k Int32)")
    column = Step(
        f"clickhouse/{lake.name}/001_a.sql", lake.name, "clickhouse", f"ALTER TABLE {lake.name} ADD COLUMN a Int8"
    )
    migrate_clickhouse(lake.cluster, [table], dry_run=False)
    lake.ledger.shard_sets.begin(lake.name, 3)
    with pytest.raises(MigrationError, match=f"Finish the reshard first: .*{lake.name} --shards 3"):
        migrate_clickhouse(lake.cluster, [table, column], dry_run=False, resharding=lake.ledger.shard_sets.resharding())


def test_a_reshard_can_be_given_up_before_it_is_decided(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read(lake)
    with dying(monkeypatch, 30), pytest.raises(KeyboardInterrupt):
        reshard(lake, 3)
    assert lake.ledger.shard_sets.of(lake.name).next_shards == 3
    assert reshard(lake, 2).partitions == 0
    Publisher(lake.cluster, lake.ledger).clean(lake.name)
    assert lake.ledger.shard_sets.of(lake.name).next_shards is None
    all_is_right(lake, 2, seen)


def test_rows_that_nobody_published_are_not_moved_but_named(lake: Lake) -> None:
    first = lake.cluster.shards[0]
    lake.cluster.on_shard(first, Statement(f"INSERT INTO {lake.local} VALUES (1, '2019-05-01', 'by hand')"))
    with pytest.raises(ReshardError, match="1 in partition 201905"):
        reshard(lake, 3)
    assert (1, 1, "by hand") in lake.table.seen()


def test_what_cannot_be_resharded_is_named(lake: Lake) -> None:
    with pytest.raises(ReshardError, match="the connection names 3"):
        reshard(lake, 4)
    with pytest.raises(ReshardError, match="was never published"):
        resharding.reshard(lake.endpoints, lake.cluster, "never", 3)
    reshard(lake, 3)
    lake.commit(1, "later")
    planned = plan(lake.iceberg, lake.data_set, [JANUARY], with_columns=True)
    with pytest.raises(ConfigurationError, match="Rows are on shard 3, but the connection names 2 shards"):
        Publisher(lake.cluster.only([1, 2]), lake.ledger).publish(planned, run_id="r")
