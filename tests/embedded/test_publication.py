"""Write, audit, publish: what readers see, whatever happens in between. On a real ClickHouse, PostgreSQL and S3."""

from __future__ import annotations

import io
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running_platform import Platform
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan

from trilake import s3
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.publication import publisher as publication_module
from trilake.clickhouse.publication import pull as sources_module
from trilake.clickhouse.publication.checks import Check, CheckFailedError
from trilake.clickhouse.publication.ledger import AttemptLostError, Ledger, Publication
from trilake.clickhouse.publication.publisher import AuditError, Publisher, SwitchIncompleteError
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.errors import UnreachableError
from trilake.lake import DataSet
from trilake.lake.catalog import load_table, open_catalog
from trilake.lake.catalog import plan as plan_snapshot
from trilake.lake.dimensions import replace_table
from trilake.operators.publications import FinishPublicationsOperator
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, lock_key

MONTH = "2013-01"


def forget(connection: Any, data_set: DataSet) -> None:
    with connection.cursor() as cursor:
        for table in ("publications", "publication_attempts"):
            cursor.execute(f"DELETE FROM {table} WHERE table_name = %s", (data_set.table,))


class Table:
    """A table of one test: its data set, and plans of snapshots that hold what the test says."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster) -> None:
        self.endpoints = endpoints
        self.cluster = cluster
        self.data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")
        self.ledger = Ledger(endpoints.lake)
        self.s3 = s3.client(endpoints.s3)
        self.snapshots = 0
        for shard in cluster.shards:
            cluster.on_shard(
                shard,
                Statement(
                    f"CREATE TABLE {{shard}}.{self.data_set.local_table} (k Int32, d Date, note Nullable(String)) "
                    "ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k"
                ),
            )

    def drop(self) -> None:
        for shard in self.cluster.shards:
            for (name,) in self.cluster.on_shard(shard, Statement("SHOW TABLES FROM {shard}")):
                if name.startswith(self.data_set.name):
                    self.cluster.on_shard(shard, Statement(f"DROP TABLE {{shard}}.{name} SYNC"))
        with connect(self.endpoints.lake) as connection:
            self.forget(connection)

    def forget(self, connection: Any) -> None:
        forget(connection, self.data_set)

    def publisher(self, *checks: Check) -> Publisher:
        return Publisher(self.cluster, self.ledger, checks=checks)

    def file(self, bucket: int, *rows: tuple[int, date, str | None], claimed: int | None = None) -> DataFile:
        schema = pa.schema([("d", pa.date32()), ("k", pa.int32()), ("note", pa.string())])  # not in the table's order
        content = io.BytesIO()
        columns = {"d": [row[1] for row in rows], "k": [row[0] for row in rows], "note": [row[2] for row in rows]}
        pq.write_table(pa.table(columns, schema=schema), content)
        key = f"warehouse/test/{self.data_set.name}/{secrets.token_hex(8)}.parquet"
        self.s3.put_object(Bucket="lake", Key=key, Body=content.getvalue())
        return DataFile(key, len(rows) if claimed is None else claimed, content.tell(), bucket)

    def plan(self, *files: DataFile, partition: str = MONTH, sequence: int | None = None) -> LoadPlan:
        self.snapshots += 1
        sequence = self.snapshots if sequence is None else sequence
        return LoadPlan(self.data_set, 1000 + sequence, sequence, 2, (PartitionPlan(partition, files),))

    def seen(self) -> list[tuple[Any, ...]]:
        """(shard, k, note) of what readers see."""
        rows = self.cluster.every_shard(
            Statement(f"SELECT k, note FROM {{shard}}.{self.data_set.local_table} ORDER BY k")
        )
        return [(number, *row) for number, found in sorted(rows.items()) for row in found]

    def staging(self) -> list[str]:
        tables = self.cluster.every_shard(Statement("SHOW TABLES FROM {shard}"))
        return [
            name for found in tables.values() for (name,) in found if name.startswith(f"{self.data_set.name}_staging")
        ]


@pytest.fixture
def table(endpoints: Endpoints) -> Iterator[Table]:
    with Cluster(endpoints.clickhouse) as cluster:
        made = Table(endpoints, cluster)
        yield made
        made.drop()


DAY = date(2013, 1, 5)


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt  # as abrupt as a test can be: no `except Exception` on the way holds it up


def test_each_shard_gets_the_rows_of_its_bucket_once(table: Table) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a"), (2, DAY, None)), table.file(1, (3, DAY, "c")))
    report = table.publisher().publish(plan, run_id="r")
    assert report.published == (MONTH,)
    assert report.rows == {MONTH: {1: 2, 2: 1}}
    assert table.seen() == [(1, 1, "a"), (1, 2, None), (2, 3, "c")]
    again = table.publisher().publish(plan, run_id="r")
    assert (again.published, again.current) == ((), (MONTH,))
    assert table.seen() == [(1, 1, "a"), (1, 2, None), (2, 3, "c")]
    assert not table.staging()
    assert not table.ledger.attempts(table.data_set.table)


def test_a_later_snapshot_replaces_an_earlier_one_and_not_the_other_way_round(table: Table) -> None:
    old, new = table.plan(table.file(0, (1, DAY, "old"))), table.plan(table.file(0, (1, DAY, "new")))
    table.publisher().publish(new, run_id="r")
    assert table.publisher().publish(old, run_id="r").current == (MONTH,)
    assert table.seen() == [(1, 1, "new")]
    assert table.publisher().publish(old, run_id="r", force=True).published == (MONTH,)
    assert table.seen() == [(1, 1, "old")]


def test_an_empty_partition_is_published_and_others_stay(table: Table) -> None:
    table.publisher().publish(table.plan(table.file(0, (1, DAY, "a"))), run_id="r")
    table.publisher().publish(table.plan(table.file(1, (2, date(2013, 2, 1), "b")), partition="2013-02"), run_id="r")
    table.publisher().publish(table.plan(), run_id="r")
    assert table.seen() == [(2, 2, "b")]


@pytest.mark.parametrize(
    ("rows", "claimed", "says"),
    [
        ([(1, DAY, "a")], 2, "the snapshot says 2 rows, staging holds 1"),
        ([(1, DAY, "a"), (2, date(2013, 2, 1), "b")], None, "rows of other partitions: 201302"),
    ],
)
def test_staging_that_is_not_the_snapshot_is_never_seen(
    table: Table, rows: list[tuple[int, date, str | None]], claimed: int | None, says: str
) -> None:
    table.publisher().publish(table.plan(table.file(0, (9, DAY, "before"))), run_id="r")
    with pytest.raises((AuditError, ClickHouseError), match=says):
        table.publisher().publish(table.plan(table.file(0, *rows, claimed=claimed)), run_id="r")
    assert table.seen() == [(1, 9, "before")]
    assert not table.staging()


def test_values_that_were_changed_on_the_way_are_found_even_beside_nulls(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table.plan(table.file(0, (1, DAY, None), (2, DAY, None)))

    def corrupt(self: Publisher, *arguments: Any) -> int:
        client = arguments[-2]
        command = client.command

        def changed(sql: str, **options: Any) -> Any:
            return command(sql.replace(") SELECT `k`,", ") SELECT `k` + 1,", 1), **options)

        monkeypatch.setattr(client, "command", changed)
        return original(self, *arguments)

    original = Publisher._write_cell
    monkeypatch.setattr(Publisher, "_write_cell", corrupt)
    with pytest.raises(ClickHouseError, match="values in staging are not those"):
        table.publisher().publish(plan, run_id="r")
    assert table.seen() == []


def test_a_null_where_the_table_has_none_is_an_error_and_no_zero(table: Table) -> None:
    schema = pa.schema([("k", pa.int32()), ("d", pa.date32()), ("note", pa.string())])
    content = io.BytesIO()
    pq.write_table(pa.table({"k": [None], "d": [DAY], "note": ["a"]}, schema=schema), content)
    key = f"warehouse/test/{table.data_set.name}/null.parquet"
    table.s3.put_object(Bucket="lake", Key=key, Body=content.getvalue())
    with pytest.raises(ClickHouseError):
        table.publisher().publish(table.plan(DataFile(key, 1, 1, 0)), run_id="r")
    assert table.seen() == []


def test_a_blocking_check_stops_before_anyone_reads_and_a_warning_does_not(table: Table) -> None:
    plan = table.plan(table.file(0, (1, DAY, "bad")), table.file(1, (2, DAY, "good")))
    finds = "SELECT k FROM {table} WHERE note = 'bad' -- what nobody may read"
    with pytest.raises(CheckFailedError, match=f"no_bad of {table.data_set.table} finds 1 rows in partition {MONTH}"):
        table.publisher(Check("no_bad", finds)).publish(plan, run_id="r")
    assert table.seen() == []
    assert not table.staging()
    report = table.publisher(Check("no_bad", finds, blocking=False)).publish(plan, run_id="r")
    assert report.warnings == (f"check no_bad of {table.data_set.table} finds 1 rows in partition {MONTH}",)
    assert len(table.seen()) == 2


def test_a_publication_that_died_after_the_decision_is_finished_by_the_next(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))
    with monkeypatch.context() as dying:
        dying.setattr(Publisher, "_switch", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    assert table.seen() == []
    assert [p.state for p in table.ledger.publications(table.data_set.table)] == ["switching"]
    assert table.publisher().publish(plan, run_id="r").current == (MONTH,)
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]
    assert [p.state for p in table.ledger.publications(table.data_set.table)] == ["done"]
    assert not table.staging()
    assert not table.ledger.attempts(table.data_set.table)


def test_what_died_between_two_shards_is_finished_by_a_clean_up(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))

    def half(self: Publisher, publication: Publication) -> None:
        data_set = table.data_set
        table.cluster.on_shard(
            table.cluster.shards[0],
            Statement(
                f"ALTER TABLE {{shard}}.{data_set.local_table} REPLACE PARTITION ID '201301' "
                f"FROM {{shard}}.{data_set.staging_table(publication.attempt, MONTH)}"
            ),
        )
        die()

    with monkeypatch.context() as dying:
        dying.setattr(Publisher, "_switch", half)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    assert table.seen() == [(1, 1, "a")]
    assert len(table.publisher().clean(table.data_set.table)) == 1
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]
    assert not table.staging()


def add_a_column(table: Table) -> None:
    for shard in table.cluster.shards:
        alter = f"ALTER TABLE {{shard}}.{table.data_set.local_table} ADD COLUMN extra Int32 DEFAULT 7"
        table.cluster.on_shard(shard, Statement(alter))


def test_nothing_is_published_into_columns_that_were_changed_meanwhile(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, check = table.plan(table.file(0, (1, DAY, "a"))), Publisher._check

    def migrated(self: Publisher, *args: Any) -> Any:
        add_a_column(table)
        return check(self, *args)

    with monkeypatch.context() as migrating:
        migrating.setattr(Publisher, "_check", migrated)
        with pytest.raises(AuditError, match=r"columns of .* were changed while it was being published"):
            table.publisher().publish(plan, run_id="r")
    assert table.seen() == []
    assert not table.staging()
    assert not table.ledger.attempts(table.data_set.table)


def test_what_is_decided_and_fits_the_table_no_more_says_what_ends_it(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, claim = table.plan(table.file(0, (1, DAY, "a"))), Ledger.claim

    def migrated(self: Ledger, *args: Any, **options: Any) -> Any:
        won = claim(self, *args, **options)
        add_a_column(table)
        return won

    with monkeypatch.context() as migrating:
        migrating.setattr(Ledger, "claim", migrated)
        with pytest.raises(
            SwitchIncompleteError, match="publish a snapshot that has them, or this one again with forc"
        ):
            table.publisher().publish(plan, run_id="r")
    with pytest.raises(SwitchIncompleteError):
        table.publisher().finish(table.data_set.table)
    for shard in table.cluster.shards:
        drop = f"ALTER TABLE {{shard}}.{table.data_set.local_table} DROP COLUMN extra"
        table.cluster.on_shard(shard, Statement(drop))
    assert table.publisher().publish(plan, run_id="r", force=True).published == (MONTH,)
    assert table.seen() == [(1, 1, "a")]
    assert not table.staging()


@pytest.mark.parametrize("verb", ["clean", "publish"])
def test_what_died_before_the_decision_leaves_nothing_after_a_clean_up_or_the_next_try(
    table: Table, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")))
    with monkeypatch.context() as dying:
        dying.setattr(Ledger, "claim", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    assert table.staging()
    assert table.seen() == []
    if verb == "publish":
        assert table.publisher().publish(plan, run_id="r").published == (MONTH,)
    else:
        table.publisher().clean(table.data_set.table)
    assert not table.staging()
    assert not table.ledger.attempts(table.data_set.table)


def test_a_publisher_that_wakes_up_too_late_cannot_bring_its_rows_back(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decided, slept, and another published something newer meanwhile."""
    old, new = table.plan(table.file(0, (1, DAY, "old"))), table.plan(table.file(0, (1, DAY, "new")))
    switch = Publisher._switch

    def sleep_first(self: Publisher, publication: Publication) -> None:
        monkeypatch.setattr(Publisher, "_switch", switch)
        assert table.publisher().publish(new, run_id="newer").published == (MONTH,)
        switch(self, publication)

    monkeypatch.setattr(Publisher, "_switch", sleep_first)
    table.publisher().publish(old, run_id="late")
    assert table.seen() == [(1, 1, "new")]
    assert not table.staging()


def test_a_publisher_at_work_is_left_alone_by_a_clean_up(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Ledger.claim

    def interrupted(self: Ledger, *arguments: Any, **options: Any) -> Any:
        assert table.publisher().clean(table.data_set.table) == []
        return claim(self, *arguments, **options)

    monkeypatch.setattr(Ledger, "claim", interrupted)
    assert table.publisher().publish(table.plan(table.file(0, (1, DAY, "a"))), run_id="r").published == (MONTH,)


def test_a_publisher_at_work_and_one_who_finishes_for_it_do_not_hinder_each_other(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Publisher._switch

    def finished_by_another_first(self: Publisher, publication: Publication) -> None:
        monkeypatch.setattr(Publisher, "_switch", switch)
        assert [p.partition for p in table.publisher().finish(table.data_set.table)] == [MONTH]
        switch(self, publication)

    monkeypatch.setattr(Publisher, "_switch", finished_by_another_first)
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))
    assert table.publisher().publish(plan, run_id="r").total_rows == 2
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]
    assert not table.staging()


def test_a_decided_publication_whose_staging_is_lost_says_so(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")))
    with monkeypatch.context() as dying:
        dying.setattr(Publisher, "_switch", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    for shard in table.cluster.shards:
        for name in set(table.staging()):
            table.cluster.on_shard(shard, Statement(f"DROP TABLE {{shard}}.{name} SYNC"))
    with pytest.raises(SwitchIncompleteError, match="publish the snapshot again with force"):
        table.publisher().publish(plan, run_id="r")
    assert table.publisher().publish(plan, run_id="r", force=True).published == (MONTH,)
    assert table.seen() == [(1, 1, "a")]


def lose_connection(table: Table, attempt: str) -> None:
    """What a restart of PostgreSQL does to an attempt at work: its connection, and so its lock, is gone."""
    held = "FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
    lock = (LockSpace.PUBLICATION_ATTEMPT, lock_key(attempt) & 0xFFFFFFFF)
    with connect(table.endpoints.lake, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_terminate_backend(pid) {held}", lock)
        assert cursor.fetchall() == [(True,)]
        while cursor.execute(f"SELECT 1 {held}", lock) or cursor.fetchone():
            time.sleep(0.02)


def test_an_attempt_that_was_taken_for_dead_cannot_decide_on_half_dropped_staging(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL restarts, somebody cleans up and reaches one shard only, and then the attempt goes on."""
    table.publisher().publish(table.plan(table.file(0, (9, DAY, "before"))), run_id="r")
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))
    drop = publication_module._kill_and_drop

    def one_shard_only(name: str, client: Any, shard: ClickHouseShard) -> None:
        if shard.number == 2:
            raise UnreachableError("shard 2 does not answer.")
        drop(name, client, shard)

    def taken_for_dead(*_: object) -> list[str]:
        ((attempt, _table),) = table.ledger.attempts(table.data_set.table)
        lose_connection(table, attempt)
        with monkeypatch.context() as broken:
            broken.setattr(publication_module, "_kill_and_drop", one_shard_only)
            assert table.publisher().clean(table.data_set.table) == []
        return []

    with monkeypatch.context() as late:
        late.setattr(Publisher, "_check", taken_for_dead)
        with pytest.raises(AttemptLostError, match="lost its connection to PostgreSQL"):
            table.publisher().publish(plan, run_id="late")
    assert table.seen() == [(1, 9, "before")]
    assert [p.state for p in table.ledger.publications(table.data_set.table)] == ["done"]
    assert not table.staging()
    assert not table.ledger.attempts(table.data_set.table)
    assert table.publisher().publish(plan, run_id="again").published == (MONTH,)
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]


@pytest.mark.parametrize("verb", ["finish", "clean"])
@pytest.mark.parametrize("attempts", [1, 2])
def test_a_publication_that_cannot_be_completed_does_not_hold_up_the_others(
    table: Table, monkeypatch: pytest.MonkeyPatch, verb: str, attempts: int
) -> None:
    stuck = table.plan(table.file(0, (1, DAY, "lost")))
    fine = table.plan(table.file(1, (2, date(2013, 2, 1), "b")), partition="2013-02")
    with monkeypatch.context() as dying:
        dying.setattr(Publisher, "_switch", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        dying.setattr(Publisher, "_try_to_clean", lambda *_: None)
        both = replace(stuck, partitions=stuck.partitions + fine.partitions)
        for plan in (both,) if attempts == 1 else (stuck, fine):
            with pytest.raises(KeyboardInterrupt):
                table.publisher().publish(plan, run_id="r")
    assert len(table.ledger.attempts(table.data_set.table)) == attempts
    for name in {name for name in table.staging() if name.endswith("_201301")}:
        table.cluster.every_shard(Statement(f"DROP TABLE {{shard}}.{name} SYNC"))
    with pytest.raises(SwitchIncompleteError, match=MONTH):
        getattr(table.publisher(), verb)(table.data_set.table)
    assert table.seen() == [(2, 2, "b")]
    assert [p.partition for p in table.ledger.switching(table.data_set.table)] == [MONTH]


def task_result(task: Any, run_id: str = "r") -> Any:
    ti = SimpleNamespace(dag_id="d", task_id=task.task_id, run_id=run_id, map_index=-1, try_number=1)
    return json.loads(json.dumps(task.execute({"ti": ti, "run_id": run_id, "task": task})))


def test_the_housekeeping_task_finishes_and_cleans_what_the_dead_left_and_says_so(
    table: Table, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (name for name in platform.env if name.startswith("AIRFLOW_CONN_")):
        monkeypatch.setenv(name, platform.env[name])
    task = FinishPublicationsOperator(task_id="finish", table=table.data_set.table)
    assert task_result(task) == {"finished": [], "cleaned": []}
    decided = table.plan(table.file(0, (1, DAY, "a")))
    undecided = table.plan(table.file(1, (2, date(2013, 2, 1), "b")), partition="2013-02")
    with monkeypatch.context() as dying:
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        dying.setattr(Publisher, "_try_to_clean", lambda *_: None)
        for plan, dies_at in ((decided, (Publisher, "_switch")), (undecided, (Ledger, "claim"))):
            with dying.context() as here:
                here.setattr(*dies_at, die)
                with pytest.raises(KeyboardInterrupt):
                    table.publisher().publish(plan, run_id="r")
    attempts = sorted(attempt for attempt, _ in table.ledger.attempts(table.data_set.table))
    assert task_result(task) == {
        "finished": [{"table": table.data_set.table, "partition": MONTH}],
        "cleaned": attempts,
    }
    assert table.seen() == [(1, 1, "a")]
    assert not table.staging()


def test_the_housekeeping_task_cleans_up_though_a_publication_is_stuck_and_then_fails(
    table: Table, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (name for name in platform.env if name.startswith("AIRFLOW_CONN_")):
        monkeypatch.setenv(name, platform.env[name])
    with monkeypatch.context() as dying:
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        dying.setattr(Publisher, "_try_to_clean", lambda *_: None)
        dying.setattr(Publisher, "_switch", die)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(table.plan(table.file(0, (1, DAY, "a"))), run_id="r")
        for name in set(table.staging()):
            table.cluster.every_shard(Statement(f"DROP TABLE {{shard}}.{name} SYNC"))
        dying.setattr(Ledger, "claim", die)
        plan = table.plan(table.file(1, (2, date(2013, 2, 1), "b")), partition="2013-02")
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    assert table.staging()
    with pytest.raises(SwitchIncompleteError, match="staging table is gone: publish the snapshot again with force"):
        task_result(FinishPublicationsOperator(task_id="finish", table=table.data_set.table))
    assert not table.staging()


def test_an_empty_dimension_table_is_published_the_first_time(endpoints: Endpoints) -> None:
    data_set = DataSet(f"t_{secrets.token_hex(4)}")
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    with Cluster(endpoints.clickhouse) as cluster, connect(endpoints.oltp) as oltp, oltp.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE {data_set.name} (k int)")
        cursor.execute("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
        source = f"{cursor.fetchone()[0]}.{data_set.name}"  # type: ignore[index]
        local = f"{{shard}}.{data_set.local_table}"
        cluster.every_shard(Statement(f"CREATE TABLE {local} (k Nullable(Int32)) ENGINE = MergeTree ORDER BY tuple()"))
        try:
            publisher = Publisher(cluster, Ledger(endpoints.lake))
            for rows in (0, 3, 0):
                cursor.execute(f"DELETE FROM {source}")
                cursor.execute(f"INSERT INTO {source} SELECT generate_series(1, {rows})")
                snapshot_id, written = replace_table(catalog, data_set, oltp, source, run_id="r")
                planned = plan_snapshot(load_table(catalog, data_set.curated), data_set, [], snapshot_id)
                report = publisher.publish(planned, run_id="r")
                assert (written, report.published, report.total_rows) == (rows, ("all",), rows)
                held = cluster.every_shard(Statement(f"SELECT count() FROM {local}"))
                assert set(map(tuple, held.values())) == {((rows,),)}
        finally:
            cluster.every_shard(Statement(f"DROP TABLE {local} SYNC"))
            catalog.drop_table(data_set.curated)
            catalog.close()
            with connect(endpoints.lake) as connection:
                forget(connection, data_set)


def test_a_column_that_the_table_would_cut_is_refused_before_anything_is_written(table: Table) -> None:
    """Both sides of the audit would read it cut alike."""
    plan = replace(table.plan(table.file(0, (1, date(2013, 1, 1), "a"))), types={"k": "long", "d": "date"})
    with pytest.raises(AuditError, match="k is long in the lake and Int32 in ClickHouse"):
        table.publisher().publish(plan, run_id="r")
    assert table.seen() == []
    assert table.ledger.publications(table.data_set.table) == []
    assert (table.staging(), table.ledger.attempts(table.data_set.table)) == ([], [])
    fitting = replace(plan, types={"k": "int", "d": "date", "note": "string"})
    assert table.publisher().publish(fitting, run_id="r").published == (MONTH,)


def test_a_partition_of_more_files_than_one_statement_can_name_is_published(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "MAX_SOURCE_CHARACTERS", 500)
    files = [table.file(0, (number, DAY, "a" if number % 2 else None)) for number in range(1, 8)]
    assert table.publisher().publish(table.plan(*files), run_id="r").rows == {MONTH: {1: 7, 2: 0}}
    assert [row[1] for row in table.seen()] == list(range(1, 8))
    many = [DataFile(f"warehouse/{number:0200}.parquet", 1, 1, 0) for number in range(2_000)]
    monkeypatch.undo()
    columns = sources_module.Columns(("k",), ("Int32",))
    sources = sources_module.sources(table.plan(*many), many, columns, shard=1, shards=2)
    assert max(len(source) for source in sources) < 200_000  # of the 262,144 bytes that ClickHouse parses by default
    assert sum(source.count(".parquet") for source in sources) == 2_000
