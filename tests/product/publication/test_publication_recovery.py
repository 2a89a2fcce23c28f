"""A publication that dies, waits or meets another one: who finishes it, and what readers see. On real servers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from support.publication_table import DAY, MONTH, Table, die, tables_of
from support.running_platform import Platform
from trilake.clickhouse.cluster import Statement
from trilake.clickhouse.publication import publisher, staging
from trilake.clickhouse.publication.ledger import AttemptLostError, Ledger, Publication
from trilake.clickhouse.publication.publisher import AuditError, Publisher, SwitchIncompleteError
from trilake.clickhouse.publication.staging import Staging
from trilake.clickhouse.publication.switch import Switch
from trilake.endpoints import ClickHouseShard
from trilake.errors import UnreachableError
from trilake.lake.plan import LoadPlan, PartitionPlan
from trilake.operators.publications import FinishPublicationsOperator
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, lock_key


def test_a_publication_that_died_after_the_decision_is_finished_by_the_next(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))
    with monkeypatch.context() as dying:
        dying.setattr(Switch, "one", die)
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

    def half(self: Switch, publication: Publication) -> None:
        data_set = table.data_set
        table.cluster.on_shard(
            table.cluster.shards[0],
            Statement(
                f"ALTER TABLE {{shard}}.{data_set.local_table} REPLACE PARTITION ID '201301' "
                f"FROM {{staging}}.{data_set.staging_table(publication.attempt, MONTH)}"
            ),
        )
        die()

    with monkeypatch.context() as dying:
        dying.setattr(Switch, "one", half)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    assert table.seen() == [(1, 1, "a")]
    assert len(table.publisher().clean(table.data_set.table)) == 1
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]
    assert not table.staging()


def die_in_the_previous_version(
    table: Table, plan: LoadPlan, monkeypatch: pytest.MonkeyPatch, *, at: tuple[type, str]
) -> None:
    """Publish as the version did that made staging tables in the shard's database, and die there."""

    def beside_the_local_table(self: Staging, partition: PartitionPlan, shard: ClickHouseShard) -> str:
        return f"{shard.database}.{self.plan.data_set.staging_table(self.attempt, partition.partition)}"

    with monkeypatch.context() as previous:
        previous.setattr(Staging, "_quoted", beside_the_local_table)
        previous.setattr(Publisher, "_sweep", lambda *_: None)
        previous.setattr(*at, die)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="previous")
    found = table.cluster.every_shard(tables_of)
    databases = {db for rows in found.values() for db, name in rows if name.startswith(f"{table.data_set.name}_stag")}
    assert databases == {shard.database for shard in table.cluster.shards}


@pytest.mark.parametrize("verb", ["finish", "clean"])
def test_a_publication_that_the_previous_version_decided_is_finished_from_its_old_place(
    table: Table, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))
    die_in_the_previous_version(table, plan, monkeypatch, at=(Switch, "one"))
    assert [p.state for p in table.ledger.publications(table.data_set.table)] == ["switching"]
    getattr(table.publisher(), verb)(table.data_set.table)
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]
    assert [p.state for p in table.ledger.publications(table.data_set.table)] == ["done"]
    assert not table.staging()


def test_what_the_previous_version_did_not_decide_is_dropped_from_its_old_place(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")))
    die_in_the_previous_version(table, plan, monkeypatch, at=(Ledger, "claim"))
    assert table.publisher().clean(table.data_set.table)
    assert not table.staging()
    assert table.seen() == []
    assert not table.ledger.attempts(table.data_set.table)


def test_staging_tables_are_never_in_the_database_that_readers_may_read(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []

    def look(*_: object) -> list[str]:
        found = table.cluster.every_shard(tables_of)
        places.extend(db for rows in found.values() for db, name in rows if name.startswith(table.data_set.name))
        return []

    monkeypatch.setattr(Staging, "run_checks", look)
    table.publisher().publish(table.plan(table.file(0, (1, DAY, "a"))), run_id="r")
    expected = [db for shard in table.cluster.shards for db in (shard.database, f"{shard.database}_staging")]
    assert sorted(places) == sorted(expected)


def add_a_column(table: Table) -> None:
    for shard in table.cluster.shards:
        alter = f"ALTER TABLE {{shard}}.{table.data_set.local_table} ADD COLUMN extra Int32 DEFAULT 7"
        table.cluster.on_shard(shard, Statement(alter))


def test_nothing_is_published_into_columns_that_were_changed_meanwhile(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, check = table.plan(table.file(0, (1, DAY, "a"))), Staging.run_checks

    def migrated(self: Staging, *args: Any) -> Any:
        add_a_column(table)
        return check(self, *args)

    with monkeypatch.context() as migrating:
        migrating.setattr(Staging, "run_checks", migrated)
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
            SwitchIncompleteError,
            match="Publish a snapshot that has the new columns: `trilake publish",
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
    switch = Switch.one

    def sleep_first(self: Switch, publication: Publication) -> None:
        monkeypatch.setattr(Switch, "one", switch)
        assert table.publisher().publish(new, run_id="newer").published == (MONTH,)
        switch(self, publication)

    monkeypatch.setattr(Switch, "one", sleep_first)
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
    switch = Switch.one

    def finished_by_another_first(self: Switch, publication: Publication) -> None:
        monkeypatch.setattr(Switch, "one", switch)
        assert [p.partition for p in table.publisher().finish(table.data_set.table)] == [MONTH]
        switch(self, publication)

    monkeypatch.setattr(Switch, "one", finished_by_another_first)
    plan = table.plan(table.file(0, (1, DAY, "a")), table.file(1, (2, DAY, "b")))
    assert table.publisher().publish(plan, run_id="r").total_rows == 2
    assert table.seen() == [(1, 1, "a"), (2, 2, "b")]
    assert not table.staging()


def test_a_decided_publication_whose_staging_is_lost_says_so_and_is_published_again(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a")))
    with monkeypatch.context() as dying:
        dying.setattr(Switch, "one", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    for shard in table.cluster.shards:
        for name in set(table.staging()):
            table.cluster.on_shard(shard, Statement(f"DROP TABLE {{staging}}.{name} SYNC"))
    with pytest.raises(SwitchIncompleteError, match=r"`trilake rebuild --table .* publishes the rows again"):
        table.publisher().finish(table.data_set.table)
    assert table.publisher().publish(plan, run_id="r").published == (MONTH,)
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
    drop = staging.drop_staging

    def one_shard_only(name: str, client: Any, shard: ClickHouseShard) -> None:
        if shard.number == 2:
            raise UnreachableError("shard 2 does not answer.")
        drop(name, client, shard)

    def taken_for_dead(*_: object) -> list[str]:
        ((attempt, _table),) = table.ledger.attempts(table.data_set.table)
        lose_connection(table, attempt)
        with monkeypatch.context() as broken:
            broken.setattr(publisher, "drop_staging", one_shard_only)
            assert table.publisher().clean(table.data_set.table) == []
        return []

    with monkeypatch.context() as late:
        late.setattr(Staging, "run_checks", taken_for_dead)
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
        dying.setattr(Switch, "one", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        dying.setattr(Publisher, "_try_to_clean", lambda *_: None)
        both = replace(stuck, partitions=stuck.partitions + fine.partitions)
        for plan in (both,) if attempts == 1 else (stuck, fine):
            with pytest.raises(KeyboardInterrupt):
                table.publisher().publish(plan, run_id="r")
    assert len(table.ledger.attempts(table.data_set.table)) == attempts
    for name in {name for name in table.staging() if name.endswith("_201301")}:
        table.cluster.every_shard(Statement(f"DROP TABLE {{staging}}.{name} SYNC"))
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
        for plan, dies_at in ((decided, (Switch, "one")), (undecided, (Ledger, "claim"))):
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
        dying.setattr(Switch, "one", die)
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(table.plan(table.file(0, (1, DAY, "a"))), run_id="r")
        for name in set(table.staging()):
            table.cluster.every_shard(Statement(f"DROP TABLE {{staging}}.{name} SYNC"))
        dying.setattr(Ledger, "claim", die)
        plan = table.plan(table.file(1, (2, date(2013, 2, 1), "b")), partition="2013-02")
        with pytest.raises(KeyboardInterrupt):
            table.publisher().publish(plan, run_id="r")
    assert table.staging()
    with pytest.raises(SwitchIncompleteError, match="staging table does not exist any more"):
        task_result(FinishPublicationsOperator(task_id="finish", table=table.data_set.table))
    assert not table.staging()
