"""Rows that ClickHouse lost: how the loss is found, and how the rows come back. On real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from support.publication_table import Table, die
from support.published_lake import SCHEMA, SPEC, Lake
from support.running_platform import Platform
from trilake import s3
from trilake.clickhouse.cluster import Statement
from trilake.clickhouse.publication import comparison
from trilake.clickhouse.publication import rebuild as rebuilding
from trilake.clickhouse.publication.comparison import ReadersTableError, RowsLostError
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.staging import Staging
from trilake.clickhouse.publication.switch import Switch
from trilake.errors import TrilakeError
from trilake.lake.objects import plan_objects, read_objects
from trilake.operators.publications import CheckPublicationsOperator
from trilake.postgres.connection import connect
from trilake.schema.clickhouse_steps import migrate_clickhouse
from trilake.schema.steps import Step

JANUARY, FEBRUARY = "2013-01", "2013-02"


@pytest.fixture
def lake(table: Table) -> Iterator[Lake]:
    made = Lake(table)
    yield made
    made.drop()


@pytest.fixture
def published(lake: Lake) -> Lake:
    """Two months, each published from a snapshot of its own. The first one is not the current snapshot any more."""
    lake.commit(1, *(f"n{n}" for n in range(20)))
    lake.publish(JANUARY)
    lake.commit(2, *(f"m{n}" for n in range(10)))
    lake.publish(FEBRUARY)
    return lake


@pytest.fixture
def read(published: Lake) -> Iterator[Lake]:
    """The same, with the table over all shards."""
    published.show()
    yield published
    published.cluster.every_host(Statement(f"DROP TABLE IF EXISTS {readers_table(published)} SYNC"))


def readers_table(lake: Lake) -> str:
    return f"{lake.cluster.endpoint.database}.{lake.name}"


def test_a_loss_is_found_by_table_partition_shard_and_both_numbers(published: Lake) -> None:
    assert len(published.compare().compared) == 2
    published.compare(checksums=True).raise_differences()
    (expected,) = {p.rows[1] for p in published.ledger.publications(published.name) if p.partition == JANUARY}
    published.lose(JANUARY)
    with pytest.raises(RowsLostError) as raised:
        published.compare().raise_differences()
    assert f"table {published.name}, partition {JANUARY}: shard 1 holds 0 rows" in raised.value.message
    assert f"the ledger says {expected}" in raised.value.message
    assert f"trilake rebuild --table {published.name}" in str(raised.value)


def test_lost_rows_are_published_again_from_the_snapshot_of_the_ledger(published: Lake) -> None:
    before, fences = published.table.seen(), published.fences()
    published.commit(1, "a later snapshot, which nobody published")
    published.lose(JANUARY, shard=1)
    published.lose(JANUARY, shard=2)
    report = published.rebuild()
    assert [p.partition for p in report.rebuilt] == [JANUARY]
    assert published.table.seen() == before
    assert published.fences() == {**fences, JANUARY: fences[JANUARY] + 1}
    assert not published.compare(checksums=True).differences
    assert not published.table.staging()
    assert not published.ledger.attempts(published.name)


@pytest.mark.nightly
def test_without_a_loss_nothing_is_published(published: Lake) -> None:
    fences = published.fences()
    assert not published.rebuild(checksums=True).rebuilt
    assert published.fences() == fences


def test_other_values_are_found_by_the_checksum_alone(published: Lake) -> None:
    before = published.table.seen()
    first = published.cluster.shards[0]
    changed = f"ALTER TABLE {published.local} UPDATE note = 'changed by hand' WHERE d < '2013-02-01'"
    published.cluster.on_shard(first, Statement(changed, {"mutations_sync": 1}))
    assert not published.compare().differences
    (difference,) = published.compare(checksums=True).differences
    assert (difference.shard, difference.values, difference.publication.partition) == (1, True, JANUARY)
    assert not published.rebuild().rebuilt
    published.rebuild(checksums=True)
    assert published.table.seen() == before


def test_a_column_that_was_added_since_does_not_hide_other_values(published: Lake) -> None:
    published.cluster.every_shard(Statement(f"ALTER TABLE {published.local} ADD COLUMN more Int32 DEFAULT 1"))
    assert not published.compare(checksums=True).without_checksum
    published.cluster.every_shard(
        Statement(f"ALTER TABLE {published.local} MODIFY COLUMN note Nullable(FixedString(9))")
    )
    compared = published.compare(checksums=True)
    assert [p.partition for p in compared.without_checksum] == [JANUARY, FEBRUARY]
    assert not compared.differences


def test_a_publication_says_current_only_if_the_shards_hold_its_rows(published: Lake) -> None:
    before = published.table.seen()
    published.lose(FEBRUARY)
    published.publish(FEBRUARY)
    assert published.table.seen() == before
    snapshots = {p.partition: p.snapshot_id for p in published.ledger.publications(published.name)}
    published.lose(FEBRUARY)
    with pytest.raises(RowsLostError, match=f"partition {FEBRUARY}"):  # an older state cannot bring them back
        published.publish(FEBRUARY, snapshot=snapshots[JANUARY])
    published.rebuild()
    assert published.table.seen() == before


def test_a_publication_that_comes_in_between_wins(published: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    published.lose(JANUARY)
    real = Staging.write

    def another_first(self: Staging, partitions: Any) -> Any:
        written = real(self, partitions)
        monkeypatch.setattr(Staging, "write", real)
        published.commit(1, "later")
        published.publish(JANUARY)
        return written

    monkeypatch.setattr(Staging, "write", another_first)
    report = published.rebuild()
    assert not report.rebuilt
    assert [p.partition for p in report.overtaken] == [JANUARY]
    assert "later" in {row[2] for row in published.table.seen()}
    assert not published.compare(checksums=True).differences


def test_a_publication_during_the_count_is_no_loss(published: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    real = comparison._rows

    def publish_meanwhile(*arguments: Any) -> Any:
        held = real(*arguments)
        monkeypatch.setattr(comparison, "_rows", real)
        published.commit(1, "later")
        published.publish(JANUARY)
        return {shard: {} for shard in held}

    monkeypatch.setattr(comparison, "_rows", publish_meanwhile)
    compared = published.compare()
    assert {d.publication.partition for d in compared.differences} == {FEBRUARY}  # this one did not change meanwhile


@pytest.mark.parametrize(
    "step",
    [
        pytest.param((Staging, "write"), marks=pytest.mark.nightly),
        pytest.param((Staging, "run_checks"), marks=pytest.mark.nightly),
        pytest.param((Switch, "all"), marks=pytest.mark.nightly),
        (Switch, "one"),
    ],
)
def test_a_rebuild_that_died_is_completed_by_the_next(
    published: Lake, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    before = published.table.seen()
    published.lose(JANUARY)
    with monkeypatch.context() as dying:
        dying.setattr(*step, die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            published.rebuild()
    published.rebuild()
    assert published.table.seen() == before
    assert not published.table.staging()
    assert {p.state for p in published.ledger.publications(published.name)} == {"done"}
    assert not published.ledger.attempts(published.name)


def decide_and_die(published: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later state of January is decided, and its publisher dies before the first switch."""
    published.commit(1, "later")
    with monkeypatch.context() as dying:
        dying.setattr(Switch, "one", die)
        dying.setattr(Publisher, "_sweep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            published.publish(JANUARY)


def test_a_decided_publication_whose_staging_tables_were_lost_is_published_again(
    published: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_and_die(published, monkeypatch)
    for name in {*published.table.staging()}:
        published.cluster.every_shard(Statement(f"DROP TABLE IF EXISTS {{staging}}.{name} SYNC"))
    report = published.rebuild()
    assert [p.partition for p in report.unfinished] == [JANUARY]
    assert "later" in {row[2] for row in published.table.seen()}
    assert {p.state for p in published.ledger.publications(published.name)} == {"done"}


def test_a_partition_that_nobody_published_is_named_and_dropped_only_on_demand(published: Lake) -> None:
    first = published.cluster.shards[0]
    insert = f"INSERT INTO {published.local} VALUES (1, '2019-05-01', 'by hand')"
    published.cluster.on_shard(first, Statement(insert))
    assert published.rebuild().before.unknown == ((published.name, "201905", 1),)
    assert (1, 1, "by hand") in published.table.seen()
    assert not comparison.drop_unknown(published.cluster, published.ledger, published.name, "201301")
    assert comparison.drop_unknown(published.cluster, published.ledger, published.name, "201905")
    assert not published.compare().unknown
    assert not published.compare().differences


def test_a_snapshot_that_is_gone_is_named_and_the_others_are_rebuilt(published: Lake) -> None:
    published.catalog.drop_table(published.data_set.curated)
    published.iceberg = published.catalog.create_table(published.data_set.curated, SCHEMA, partition_spec=SPEC)
    published.lose(JANUARY)
    report = published.rebuild()
    with pytest.raises(TrilakeError, match=f"{published.name} {JANUARY}: the Iceberg table was dropped"):
        report.raise_failed()


def test_plain_objects_come_back_by_their_keys_and_a_changed_one_is_refused(table: Table) -> None:
    client = s3.client(table.endpoints.s3)
    key = f"{table.data_set.name}/a.csv"
    client.put_object(Bucket="raw", Key=key, Body=b"k,d,note\n1,2013-01-05,a\n2,2013-01-06,b\n")
    objects = read_objects(table.data_set, {JANUARY: {key: 2}})
    Publisher(table.cluster, table.ledger).publish(
        plan_objects(client, table.data_set, "raw", objects, version=7), run_id="run"
    )
    before = table.seen()
    lost = Statement(f"TRUNCATE TABLE {{shard}}.{table.data_set.local_table}")
    table.cluster.every_shard(lost)
    report = rebuilding.rebuild(table.endpoints, table.cluster, table.data_set.table)
    assert [p.partition for p in report.rebuilt] == [JANUARY]
    assert table.seen() == before
    (publication,) = table.ledger.publications(table.data_set.table)
    assert publication.sequence_number == 7
    table.cluster.every_shard(lost)
    client.put_object(Bucket="raw", Key=key, Body=b"k,d,note\n1,2013-01-05,a\n2,2013-01-06,c\n")
    report = rebuilding.rebuild(table.endpoints, table.cluster, table.data_set.table)
    with pytest.raises(TrilakeError, match=f"s3://raw/{key} is not the object that was counted"):
        report.raise_failed()
    assert table.seen() == []


def test_rows_that_differ_from_the_published_ones_are_not_published(published: Lake) -> None:
    with connect(published.endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE publications SET checksums = jsonb_set(checksums, '{1}', '5') WHERE table_name = %s "
            "AND partition = %s",
            (published.name, JANUARY),
        )
    published.lose(JANUARY)
    report = published.rebuild()
    with pytest.raises(TrilakeError, match="does not give the rows that were published"):
        report.raise_failed()


def test_the_task_fails_and_names_the_loss(read: Lake, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    published = read
    for name, value in platform.env.items():
        if name.startswith("AIRFLOW_CONN_"):
            monkeypatch.setenv(name, value)
    task = CheckPublicationsOperator(task_id="check", table=published.name)
    ti = SimpleNamespace(dag_id="d", task_id="check", run_id="r", map_index=-1, try_number=1)
    context: Any = {"ti": ti, "run_id": "r"}
    assert json.loads(json.dumps(task.execute(context))) == {"partitions": 2}
    published.lose(FEBRUARY, shard=2)
    with pytest.raises(RowsLostError, match=f"partition {FEBRUARY}: shard 2 holds 0 rows"):
        task.execute(context)
    published.rebuild()
    published.cluster.any_host(Statement(f"DROP TABLE {readers_table(published)} SYNC"))
    with pytest.raises(ReadersTableError, match=f"{readers_table(published)} on .* is missing"):
        task.execute(context)


def test_a_table_that_was_dropped_is_a_loss_of_its_own(published: Lake) -> None:
    published.cluster.on_shard(published.cluster.shards[1], Statement(f"DROP TABLE {published.local} SYNC"))
    differences = published.compare(checksums=True).differences
    assert [(d.publication.partition, d.shard, d.held) for d in differences] == [
        (JANUARY, 2, None),
        (FEBRUARY, 2, None),
    ]
    assert "shard 2 has no such table" in str(differences[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DROP TABLE {readers} SYNC", "is missing"),
        ("CREATE OR REPLACE TABLE {readers} AS shard_1.{local} ENGINE = Merge('shard_1', '^{local}$')", "instead of"),
        pytest.param(
            "CREATE OR REPLACE TABLE {readers} (k Int32) ENGINE = Merge('shard_1', '^{local}$')",
            "has other columns",
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["missing", "shards", "columns"],
)
def test_a_table_over_all_shards_that_is_not_what_it_should_be_is_named_and_made_again(
    read: Lake, change: str, told: str
) -> None:
    assert not comparison.readers_problems(read.cluster, read.ledger, read.name)
    local = read.data_set.local_table
    read.cluster.any_host(Statement(change.format(readers=readers_table(read), local=local)))
    (problem,) = comparison.readers_problems(read.cluster, read.ledger, read.name)
    assert problem.startswith(readers_table(read))
    assert told in problem
    migrate_clickhouse(read.cluster, [step_of(read)], dry_run=False)
    assert not comparison.readers_problems(read.cluster, read.ledger, read.name)
    assert read.cluster.any_host(Statement(f"SELECT count() FROM {readers_table(read)}")) == [(30,)]


def test_a_migration_does_not_touch_what_readers_see_while_rows_move_to_other_shards(read: Lake) -> None:
    migrate_clickhouse(read.cluster, [step_of(read)], dry_run=False)
    local = read.data_set.local_table
    change = f"CREATE OR REPLACE TABLE {readers_table(read)} AS shard_1.{local} ENGINE = Merge('shard_1', '^copies$')"
    read.cluster.any_host(Statement(change))
    migrate_clickhouse(read.cluster, [step_of(read)], dry_run=False, resharding={read.name: 2})
    assert comparison.readers_problems(read.cluster, read.ledger, read.name)
    migrate_clickhouse(read.cluster, [step_of(read)], dry_run=False)
    assert not comparison.readers_problems(read.cluster, read.ledger, read.name)


def step_of(lake: Lake) -> Step:
    """The step that creates the data set's table."""
    columns = "(k Int32, d Date, note Nullable(String))"
    ddl = f"CREATE TABLE {lake.name} {columns} ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k"
    return Step(f"clickhouse/{lake.name}/table.sql", lake.name, "clickhouse", ddl)


def test_a_table_of_which_the_ledger_knows_nothing_is_listed_and_dropped_only_by_its_name(published: Lake) -> None:
    assert not published.compare().unpublished
    rows = len(published.table.seen())
    with pytest.raises(TrilakeError, match="is running"), published.ledger.attempt("alive", published.name, "run"):
        published.ledger.forget_table(published.name)
    with pytest.raises(TrilakeError, match="was not cleaned up"):
        published.ledger.forget_table(published.name)
    published.ledger.forget("alive")
    assert published.ledger.forget_table(published.name) == 2
    assert not published.ledger.publications(published.name)
    assert len(published.table.seen()) == rows
    found = published.compare().unpublished
    assert [(name, partition_id) for name, partition_id, _ in found] == [
        (published.name, "201301"),
        (published.name, "201302"),
    ]
    assert sum(held for _, _, held in found) == rows
    published.publish(JANUARY)  # a data set that comes back begins again
    assert not published.compare().unpublished
    assert published.compare().unknown == ((published.name, "201302", 10),)


def test_a_table_whose_publication_is_not_complete_is_not_forgotten(
    published: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_and_die(published, monkeypatch)
    ((attempt, _),) = published.ledger.attempts(published.name)
    published.ledger.forget(attempt)
    with pytest.raises(TrilakeError, match=f"the publication of partition {JANUARY} is not complete"):
        published.ledger.forget_table(published.name)
    assert len(published.ledger.publications(published.name)) == 2


@pytest.mark.slow
def test_the_commands_tell_a_loss_bring_it_back_and_replace_by_force(read: Lake, platform: Platform) -> None:
    published = read
    before, here = published.table.seen(), ("--table", published.name)
    published.lose(JANUARY)
    told = platform.trilake("rebuild", "--check", *here, "--json")
    assert told.returncode == 1
    (row,) = json.loads(told.stdout)
    assert (row["partition"], row["shard"], row["clickhouse"], row["problem"]) == (
        JANUARY, 1, 0, "other number of rows",
    )  # fmt: skip
    assert "2 published partitions compared, 1 differ" in told.stderr
    done = platform.trilake("rebuild", *here, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["result"] for row in json.loads(done.stdout)] == ["rebuilt"]
    assert published.table.seen() == before
    assert platform.trilake("rebuild", "--check", "--checksums", *here).returncode == 0
    first = {p.partition: p.snapshot_id for p in published.ledger.publications(published.name)}[JANUARY]
    published.commit(1, "later")

    def publish(*options: str) -> list[dict[str, str]]:
        command = platform.trilake("publish", published.name, "--partition", JANUARY, *options, "--json")
        assert command.returncode == 0, command.stderr
        return [{row["partition"]: row["result"]} for row in json.loads(command.stdout)]

    assert publish() == [{JANUARY: "published"}]
    assert published.table.seen() != before
    assert publish("--snapshot", str(first)) == [{JANUARY: "not changed"}]
    assert publish("--snapshot", str(first), "--force") == [{JANUARY: "published"}]
    assert published.table.seen() == before
    published.cluster.any_host(Statement(f"DROP TABLE {readers_table(published)} SYNC"))
    told = platform.trilake("rebuild", "--check", *here)
    assert told.returncode == 1
    assert f"{readers_table(published)} on 127.0.0.1 is missing" in told.stderr
    refused = platform.trilake("publications", "--forget", published.name)
    assert refused.returncode == 1
    assert "This would remove 2 published partitions" in refused.stderr
    assert platform.trilake("publications", "--forget", published.name, "--yes").returncode == 0
    assert not published.ledger.publications(published.name)
    told = platform.trilake("rebuild", "--check", *here, "--json")
    assert told.returncode == 0
    assert {row["problem"] for row in json.loads(told.stdout)} == {"table is not in the ledger"}
