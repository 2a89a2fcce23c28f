"""Publishers that die, wait, come back too late and meet each other, statement by statement, on the real servers.

`make test` plays some schedules, the same each time; `make test-schedules` plays 1,000 that are new, and a death, a
lost answer and a long sleep at every statement.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from support.publication_schedules import Actor, Fate, Stage, Step
from support.publication_table import Table, drop_tables
from trilake.clickhouse.publication.ledger import _COLUMNS, Publication, _publication
from trilake.clickhouse.publication.publisher import Publisher
from trilake.endpoints import Endpoints
from trilake.lake.plan import LoadPlan

JANUARY, FEBRUARY = "2013-01", "2013-02"
# Rows of each snapshot, by partition and bucket. Some have the same counts: those must not be taken for each other.
SNAPSHOTS: list[dict[str, tuple[int, int]]] = [
    {JANUARY: (1, 1), FEBRUARY: (1, 0)},
    {JANUARY: (1, 1), FEBRUARY: (0, 0)},
    {JANUARY: (0, 0), FEBRUARY: (0, 1)},
    {JANUARY: (2, 0), FEBRUARY: (1, 0)},
]
# As many schedules as are asked for, and new ones; else a few that are the same each time.
ASKED = int(os.environ.get("TRILAKE_SCHEDULES", "0"))
USUAL = 10
# Else of all statements one in so many; tests that differ in one thing share them.
STRIDE = 16

Rows = tuple[tuple[int, str], ...]


@dataclass
class World:
    """A table, its publishers, and what its readers may see."""

    stage: Stage
    table: Table
    plans: list[LoadPlan]
    tally: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        self.actors: list[Actor] = []
        self.late: list[Step] = []
        self.faults = 0
        self.history: list[str] = []
        # by partition and shard: rows, and the lowest fence that they can be of
        self.seen: dict[tuple[str, int], Rows] = {}
        self.fences: Counter[tuple[str, int]] = Counter()
        self.table.clear(self.stage.connection)
        self.read()

    def end(self) -> None:
        for actor in self.actors:
            if actor.alive:
                actor.die()
        self.tally["schedules"] += 1

    # --- actors

    def publish(self, snapshot: int, partitions: tuple[str, ...], *, force: bool = False) -> Actor:
        whole = self.plans[snapshot]
        plan = replace(whole, partitions=tuple(p for p in whole.partitions if p.partition in partitions))
        actor = self.act(
            f"{'forces' if force else 'publishes'} {snapshot + 1} of {'+'.join(partitions)}",
            lambda publisher: publisher.publish(plan, run_id="forced" if force else "r", force=force),
        )
        return actor

    def finish(self) -> Actor:
        return self.act("finishes", lambda publisher: publisher.finish(self.table.data_set.table))

    def clean(self) -> Actor:
        return self.act("cleans", lambda publisher: publisher.clean(self.table.data_set.table))

    def act(self, what: str, work: Any) -> Actor:
        publisher = Publisher(self.stage.cluster(), self.table.ledger)
        number = len(self.actors)

        attempt = f"{self.table.data_set.name[2:]}{number:04x}"
        self.actors.append(actor := Actor(f"{number} {what}", attempt, lambda: work(publisher)))
        self.tally["actors"] += 1
        return actor

    @property
    def alive(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.alive]

    # --- steps

    def step(self, actor: Actor, branch: int = 0, fate: Fate = Fate.GO) -> None:
        step = actor.step(branch, fate)
        self.tally[fate] += 1
        self.history.append(f"{step}" + (f" [{fate}]" if fate is not Fate.GO else ""))
        if fate is not Fate.GO:
            self.faults += 1
        if fate is Fate.DEATH_IN_FLIGHT and step.server == "clickhouse":
            self.late.append(step)
        self.look(step)
        if actor.error and not self.faults:
            raise AssertionError(f"{actor.name} failed though nothing did: {actor.error}") from actor.error

    def run(self, actor: Actor) -> Actor:
        """To its end. Where it waits for another, that one goes on first."""
        while actor.alive:
            before = len(actor.waiting), actor.waiting[0].sql
            self.step(actor)
            if actor.alive and (len(actor.waiting), actor.waiting[-1].sql) == before:
                for other in self.alive:
                    if other is not actor and other.alive:
                        self.step(other)
        return actor

    def lose_connections(self, actor: Actor) -> None:
        """PostgreSQL has restarted, as this one will find."""
        actor.lose_connections()
        self.faults += 1
        self.history.append(f"{actor.name}: [its connections are lost]")
        self.tally["connections lost"] += 1

    def deliver(self, index: int = 0) -> None:
        """A statement of the dead arrives."""
        step = self.late.pop(index % len(self.late))
        self.history.append(f"{step} [arrives late]")
        self.tally["arrived late"] += 1
        try:
            step.send()
        except Exception as e:
            self.history[-1] += f" {str(e)[:60]}"
        self.look(step)

    def settle(self) -> None:
        """All come to their ends, somebody cleans up, and all must be as the ledger says."""
        while self.alive:
            for actor in self.alive:
                if actor.alive:
                    self.step(actor)
        while self.late:
            self.deliver()
        for last in (self.finish(), self.clean()):
            assert self.run(last).error is None, last.error
        assert not self.table.staging(), "staging is left"
        assert not self.table.ledger.attempts(self.table.data_set.table), "an attempt is left"
        assert not self.table.ledger.switching(self.table.data_set.table), "a switch is left"
        self.read()
        self.check()

    # --- what readers see, and what the ledger says

    def look(self, step: Step) -> None:
        if step.sql.startswith("ALTER"):
            self.read()
        elif step.sql != "COMMIT":
            return
        self.check()

    def read(self) -> None:
        shards = self.table.cluster.shards
        local = self.table.data_set.local_table
        sql = " UNION ALL ".join(
            f"SELECT {s.number}, formatDateTime(d, '%Y-%m'), k, note FROM {s.database}.{local}" for s in shards
        )
        found: dict[tuple[str, int], list[tuple[int, str]]] = {(p, s.number): [] for p in SNAPSHOTS[0] for s in shards}
        for number, partition, k, note in self.stage.plain.client(shards[0]).query(sql).result_rows:
            found[partition, number].append((k, note))
        self.seen = {where: tuple(sorted(rows)) for where, rows in found.items()}

    def check(self) -> None:
        ledger = self.table.history(self.stage.connection)
        for (partition, shard), seen in self.seen.items():
            mine = [p for p in ledger if p.partition == partition]
            where = f"partition {partition}, shard {shard}"
            done = max((p.fence for p in mine if p.state == "done"), default=0)
            lowest = max(done, self.fences[partition, shard])
            shown = {p.fence: self.rows(p.snapshot_id, partition, shard) for p in mine} | {0: ()}
            can_be = [fence for fence in range(lowest, len(mine) + 1) if shown[fence] == seen]
            assert can_be, f"{where}: readers see {seen}; from fence {lowest} on the ledger has {shown}"
            self.fences[partition, shard] = can_be[0]
            for held, following in pairwise(mine):
                later = following.sequence_number > held.sequence_number
                assert later or following.run_id == "forced", f"{where}: {following} came over {held}"
            for publication in mine:
                assert publication.rows[shard] == len(shown[publication.fence]), f"{where}: {publication}"

    @staticmethod
    def rows(snapshot_id: int, partition: str, shard: int) -> Rows:
        number = snapshot_id - 1000
        return tuple((k, f"snapshot {number}") for k in range(SNAPSHOTS[number - 1][partition][shard - 1]))


class ScheduledTable(Table):
    """With plans that are made once."""

    def plans(self) -> list[LoadPlan]:
        return [self._plan(number, by_partition) for number, by_partition in enumerate(SNAPSHOTS, start=1)]

    def _plan(self, number: int, by_partition: Mapping[str, tuple[int, int]]) -> LoadPlan:
        plans = []
        for partition, counts in by_partition.items():
            day = date.fromisoformat(f"{partition}-05")
            files = [
                self.file(bucket, *((k, day, f"snapshot {number}") for k in range(rows)))
                for bucket, rows in enumerate(counts)
                if rows
            ]
            plans.append(self.plan(*files, partition=partition, sequence=number))
        return replace(plans[0], partitions=tuple(part for plan in plans for part in plan.partitions))

    def history(self, connection: Any) -> list[Publication]:
        """All that was ever decided, by fence. On a connection that stays: this is asked after every commit."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {_COLUMNS} FROM publications WHERE table_name = %s ORDER BY fence", (self.data_set.table,)
            )
            return [_publication(row) for row in cursor.fetchall()]

    def clear(self, connection: Any) -> None:
        """As if nothing had ever been published."""
        client = self.cluster.client(self.cluster.shards[0])
        for shard in self.cluster.shards:
            client.command(f"TRUNCATE TABLE {shard.database}.{self.data_set.local_table}")
        drop_tables(self.cluster, f"{self.data_set.name}_staging")
        self.forget(connection)


@pytest.fixture(scope="module")
def world(endpoints: Endpoints) -> Iterator[World]:
    with Stage(endpoints) as stage:
        table = ScheduledTable(endpoints, stage.plain)
        made = World(stage, table, table.plans())
        yield made
        table.drop()
        print("\n" + ", ".join(f"{what}: {times}" for what, times in made.tally.items()))


BOTH = (JANUARY, FEBRUARY)
MOST_ALIVE = 3
FAULTS = [fate for fate in Fate if fate is not Fate.GO]


def schedules(world: World, make: Any, first: int) -> Iterator[int]:
    """A schedule for each statement of an actor that `make` makes: the number of those that go before it.

    :param first: of the statements, where not all are taken.
    """
    for number in count() if ASKED else count(first, STRIDE):
        world.begin()
        actor = make()
        for _ in range(number):
            if actor.alive:
                world.step(actor)
        if not actor.alive:
            world.end()
            return
        yield number
        world.end()


@pytest.mark.parametrize("fate", FAULTS)
def test_a_publisher_whose_any_statement_goes_wrong_leaves_old_or_new(world: World, fate: Fate) -> None:
    def over_an_older_one() -> Actor:
        world.run(world.publish(0, (JANUARY,)))
        return world.publish(3, (JANUARY,))

    for _ in schedules(world, over_an_older_one, 4 * FAULTS.index(fate)):
        world.step(world.alive[0], fate=fate)
        world.settle()


@pytest.mark.parametrize(
    ("force", "lost"),
    [
        pytest.param(False, False, id="slow", marks=pytest.mark.nightly),
        pytest.param(False, True, id="taken for dead"),
        pytest.param(True, False, id="slow, by force"),
        pytest.param(True, True, id="taken for dead, by force", marks=pytest.mark.nightly),
    ],
)
def test_a_publisher_that_sleeps_at_any_statement_changes_nothing_that_came_after_it(
    world: World, force: bool, lost: bool
) -> None:
    """It sleeps while another publishes something newer and a third cleans up, and then goes on."""
    for _ in schedules(world, lambda: world.publish(0, BOTH, force=force), 8 * force + 4 * lost):
        (sleeper,) = world.alive
        if lost:
            world.lose_connections(sleeper)
        world.run(world.publish(1, (JANUARY,)))
        world.run(world.clean())
        world.settle()


def test_any_schedule_shows_readers_what_the_ledger_says(world: World) -> None:
    """Publishers, finishers and cleaners that meet, die, lose answers and locks, and come late, as hypothesis likes."""

    class Schedule(RuleBasedStateMachine):
        @initialize(earlier=st.booleans())
        def begin(self, earlier: bool) -> None:
            world.begin()
            if earlier:
                world.run(world.publish(0, (JANUARY,)))

        def teardown(self) -> None:
            try:
                if sys.exc_info()[0] is None:
                    world.settle()
            finally:
                world.end()

        def actor(self, index: int) -> Actor:
            alive = world.alive
            return alive[index % len(alive)]

        @precondition(lambda self: len(world.alive) < MOST_ALIVE)
        @rule(
            snapshot=st.integers(0, len(SNAPSHOTS) - 1),
            partitions=st.sampled_from([(JANUARY,), (JANUARY,), (FEBRUARY,), BOTH]),
            force=st.sampled_from([False, False, False, True]),
        )
        def publish(self, snapshot: int, partitions: tuple[str, ...], force: bool) -> None:
            world.publish(snapshot, partitions, force=force)

        @precondition(lambda self: len(world.alive) < MOST_ALIVE)
        @rule(verb=st.sampled_from(["finish", "clean"]))
        def look_after(self, verb: str) -> None:
            getattr(world, verb)()

        @precondition(lambda self: world.alive)
        @rule(index=st.integers(0, MOST_ALIVE), steps=st.integers(1, 30), branches=st.integers(0, 3))
        def go(self, index: int, steps: int, branches: int) -> None:
            actor = self.actor(index)
            for number in range(steps):
                if actor.alive:
                    world.step(actor, number * branches)

        @precondition(lambda self: world.alive)
        @rule(index=st.integers(0, MOST_ALIVE), branch=st.integers(0, 3), fate=st.sampled_from(FAULTS))
        def fail(self, index: int, branch: int, fate: Fate) -> None:
            world.step(self.actor(index), branch, fate)

        @precondition(lambda self: world.alive)
        @rule(index=st.integers(0, MOST_ALIVE))
        def lose_connections(self, index: int) -> None:
            world.lose_connections(self.actor(index))

        @precondition(lambda self: world.late)
        @rule(index=st.integers(0, 3))
        def arrive_late(self, index: int) -> None:
            world.deliver(index)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Schedule,
        settings=settings(
            max_examples=ASKED or USUAL,
            stateful_step_count=14,
            deadline=None,
            derandomize=not ASKED,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
