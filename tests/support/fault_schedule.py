"""Which fault strikes what, where and when: a function of the seed and of nothing else.

Forty seeds are a round (0 to 39, 40 to 79, ...). Each round has every step of every DAG that moves rows and every kind
of fault at least once, and its first eight are eight kinds of fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal, get_args

ROUND = 40
FIRST = 8
Act = Literal["kill", "stall", "cut", "fill", "lose", "reshard"]

# What each step needs besides Airflow. lake, oltp and metadata are databases of the one PostgreSQL server.
_NEEDS: dict[tuple[str, str], set[str]] = {
    ("flights", "ingest_flights"): {"s3", "lake"},
    ("flights", "ingest_weather"): {"s3", "lake"},
    ("flights", "curate"): {"s3", "lake", "kubernetes"},
    ("flights", "publish"): {"s3", "lake", "clickhouse"},
    ("flights", "mart"): {"clickhouse", "oltp"},
    ("flights", "check"): {"clickhouse"},
    ("flights_arrivals", "take"): {"s3", "lake"},
    ("flights_arrivals", "curate"): {"s3", "lake", "kubernetes"},
    ("flights_arrivals", "publish"): {"s3", "lake", "clickhouse"},
    ("flights_arrivals", "mart"): {"clickhouse", "oltp"},
    ("flights_arrivals", "check"): {"clickhouse"},
    ("flights_report", "report"): {"clickhouse", "s3"},
    ("agent_export", "export"): {"clickhouse", "s3", "lake"},
    **{
        ("reference_snapshot", f"{verb}_{table}"): needs
        for table in ("airlines", "airports", "planes")
        for verb, needs in (("snapshot", {"oltp", "s3", "lake"}), ("publish", {"s3", "lake", "clickhouse"}))
    },
    ("publication_housekeeping", "finish"): {"clickhouse", "lake"},
    ("publication_housekeeping", "check"): {"clickhouse", "lake"},
    ("publication_housekeeping", "clear"): {"clickhouse", "lake", "oltp", "s3"},
    ("lake_maintenance", "keep_up"): {"s3", "lake", "kubernetes"},
}
STEPS = tuple(_NEEDS)
# How often a step is chosen, of those that a fault fits: the flights pass through everything, maintenance takes long.
_WEIGHTS = {
    "flights": 6,
    "flights_arrivals": 1,
    "flights_report": 3,
    "agent_export": 1,
    "reference_snapshot": 1,
    "publication_housekeeping": 3,
    "lake_maintenance": 1,
}
_MOST_MAINTENANCE = 2

_SERVERS = ("clickhouse", "s3", "postgres", "kubernetes")
_AIRFLOW = ("airflow-scheduler", "airflow-triggerer", "airflow-api-server", "airflow-dag-processor")
_CONNECTIONS = ("clickhouse", "s3", "kubernetes", "lake", "oltp", "metadata")
KINDS: tuple[tuple[Act, str], ...] = (
    *(("kill", victim) for victim in (*_SERVERS, "driver", *_AIRFLOW, "task")),
    *(("stall", victim) for victim in _CONNECTIONS),
    *(("cut", victim) for victim in _CONNECTIONS),
    ("fill", "s3"),
    ("fill", "clickhouse"),
    ("lose", "clickhouse"),
    ("reshard", "clickhouse"),
)


@dataclass(frozen=True)
class Schedule:
    """One fault in one run of a DAG.

    :param moment: when, as a part of the time that the step takes undisturbed.
    :param seconds: how long it lasts; of a service that was killed, until somebody runs `trilake up`; of one whose data
        was lost, until somebody also runs `trilake rebuild`; of rows that move to one shard, until they move back.
    """

    seed: int
    dag: str
    task: str
    moment: float
    act: Act
    victim: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.seed}-{self.act}-{self.victim}-{self.seconds:.0f}s-in-{self.dag}.{self.task}-at-{self.moment:.2f}"
        )


def schedules(first: int, count: int) -> Iterator[Schedule]:
    """Those of `count` seeds in a row."""
    return map(schedule, range(first, first + count))


def schedule(seed: int) -> Schedule:
    """What the seed stands for, always."""
    (dag, task), (act, victim) = _round(seed // ROUND)[seed % ROUND]
    random = Random(seed)
    seconds = random.uniform(0, 10) if act == "kill" else random.uniform(5, 30)
    return Schedule(seed, dag, task, random.uniform(0, 0.9), act, victim, seconds)


def fits(step: tuple[str, str], act: Act, victim: str) -> bool:
    """Whether a fault can be felt in this step."""
    needs = _NEEDS[step]
    if victim in (*_AIRFLOW, "metadata", "task"):
        return victim != "airflow-triggerer" or "kubernetes" in needs
    if act == "fill":  # who only reads or removes needs no room
        if step[1] == "clear" or step == ("publication_housekeeping", "check"):
            return False
        return victim == ("clickhouse" if step[1].startswith(("publish", "finish")) else "s3") and victim in needs
    needed = {"postgres": {"lake", "oltp"}, "driver": {"kubernetes"}}
    return bool(needs & needed.get(victim, {victim}))


@cache
def _round(number: int) -> tuple[tuple[tuple[str, str], tuple[Act, str]], ...]:
    random = Random(f"round {number}")
    while True:
        kinds = random.sample(KINDS, len(KINDS)) + random.choices(KINDS, k=ROUND - len(KINDS))
        pairs: list[tuple[tuple[str, str], tuple[Act, str]]] = []
        for kind in kinds:
            pairs.append((_step_for(kind, [step for step, _ in pairs], random), kind))
        acts = {act for _, (act, _) in pairs[:FIRST]}
        if {step for step, _ in pairs} == set(STEPS) and acts == set(get_args(Act)):
            return tuple(pairs)


def _step_for(kind: tuple[Act, str], struck: list[tuple[str, str]], random: Random) -> tuple[str, str]:
    """A step that the fault fits; one that was not struck yet, where there is one."""
    fitting = [step for step in STEPS if fits(step, *kind) and struck.count(step) < _most(step, len(struck))]
    fresh = [step for step in fitting if step not in struck]
    return random.choices(fresh or fitting, [_WEIGHTS[dag] for dag, _ in fresh or fitting])[0]


def _most(step: tuple[str, str], place: int) -> int:
    """Maintenance waits minutes before it tries again: not in the first eight, which are to be quick."""
    return ROUND if step[0] != "lake_maintenance" else _MOST_MAINTENANCE if place >= FIRST else 0
