"""vps_1 loses its disk while a DAG runs. `make restore` brings all of it back, and Airflow finishes the run.

`TRILAKE_MOMENTS` says at how many random moments of a run this happens, and `TRILAKE_SEED` chooses them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from backups import Backups, Timer
from hosts_network import Network, await_true
from vpn_client import Client, profile_of
from whole_replica import FLIGHTS, HEALTHY_S, Replica, source_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(14400)]
MOMENTS = int(os.environ.get("TRILAKE_MOMENTS", "2"))
SEED = int(os.environ.get("TRILAKE_SEED", str(random.randrange(1_000_000))))
MONTHS = [f"2013-{month:02}" for month in range(1, 13)]
TRILAKE = ("run", "--rm", "--no-deps", "-T", "setup-tables", "trilake")


@pytest.fixture(scope="module")
def backups(replica: Replica, tmp_path_factory: pytest.TempPathFactory) -> Backups:
    if not shutil.which("restic") or os.geteuid() != 0:
        pytest.skip("restic is not installed, or this is not root")
    made = Backups(replica, tmp_path_factory.mktemp("backups"))
    made.run("restic", "init")
    made.run("docker/host/backup", "--base")
    return made


@pytest.fixture(scope="module")
def seconds_of_a_run(replica: Replica, published: dict[str, Any]) -> float:
    """How long the last run of flights took that nothing disturbed."""
    with replica.api() as api:
        took = [
            (datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["start_date"])).total_seconds()
            for run in api.runs(FLIGHTS, datetime.fromisoformat("2020-01-01T00:00:00+00:00"))
            if run["state"] == "success"
        ]
    return min(took)


@pytest.fixture(scope="module")
def profiles(replica: Replica, network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of a person who may come in through the VPN, and of one who was shut out."""
    folder, at = tmp_path_factory.mktemp("profiles"), f"{datetime.now(UTC):%H%M%S}"
    made = profile_of(network, folder, f"welcome-{at}", "admin"), profile_of(network, folder, f"gone-{at}", "admin")
    network.vpn.revoke(f"gone-{at}")
    return made


def test_at_any_moment_of_a_run_vps_1_comes_back_with_all_that_the_last_backup_has(
    replica: Replica, backups: Backups, seconds_of_a_run: float, profiles: tuple[str, str], client: Client
) -> None:
    """At every second moment it is lost again while Airflow still works on the restored run."""
    print(f"TRILAKE_SEED={SEED}")
    chance = random.Random(SEED)
    run, month, months = "", "", set(replica.held()["lake"])
    for number in range(MOMENTS):
        with backups.timer() as timer:
            await_true(lambda: timer.made, HEALTHY_S, "a backup")
            if not run:
                month = next((m for m in MONTHS if m not in months), MONTHS[number % 12])
                run = replica.start(FLIGHTS, {"start": month, "end": month})
            moment = chance.uniform(0, seconds_of_a_run)
            time.sleep(moment)
            states = backups.states_of(run)
            timer.kill()
            lost_at = backups.lose()
        figures = {"moment": number, "seed": SEED, "month": month, "after_s": round(moment, 1), "state": states}
        figures |= come_back(replica, backups, timer, lost_at)
        figures["run_came_back"] = ("run", FLIGHTS, run) in backups.facts()
        if not figures["run_came_back"]:  # it was triggered after the last backup
            run = replica.start(FLIGHTS, {"start": month, "end": month})
        if number == MOMENTS - 1 or number % 2:
            replica.await_end(FLIGHTS, run)
            figures["tries"] = tries(replica, run)
            months.add(month)
            figures["named_files"] = check_everything(replica, backups, months)
            run = ""
        tell(figures)
    welcome, gone = profiles
    client.connect(welcome)
    client.disconnect()
    assert client.is_refused(gone)


def come_back(replica: Replica, backups: Backups, timer: Timer, lost_at: datetime) -> dict[str, Any]:
    """`make restore` and `up`: what was acknowledged before the last backup is there. Returns figures."""
    assert not timer.failed
    must_be_there, last = timer.must_be_there(), datetime.fromisoformat(timer.made[-1]["until"])
    began = time.monotonic()
    output = backups.restore()
    restored_s = time.monotonic() - began
    assert "Stopped on vps_2" in output
    assert backups.missing(must_be_there) == set()
    assert {fact[0] for fact in must_be_there} == {"metadata", "publication", "run", "task", "object"}
    lost = sorted(fact for fact in backups.missing(timer.last) if fact not in must_be_there)
    assert all(timer.seen[fact] >= last for fact in lost if fact[0] != "object")
    stopped = next(line for line in output.splitlines() if line.startswith("Stopped on vps_2"))
    replica.compose("up", "--detach", "--no-build", seconds=900)
    replica.await_healthy()
    healthy_s = time.monotonic() - began
    print(replica.run_inside("overall_views"))
    return {
        "backups": len(timer.made),
        "since_last_backup_s": round((lost_at - last).total_seconds(), 1),
        "facts_that_had_to_be_there": len(must_be_there),
        "lost": [" ".join(fact) for fact in lost],
        "restore_s": backups.result("restore")["seconds"],
        "make_restore_s": round(restored_s, 1),
        "healthy_after_s": round(healthy_s, 1),
        "jobs": stopped,
    }


def check_everything(replica: Replica, backups: Backups, months: set[str]) -> int:
    """Catalog, ledger, files, shards and mart agree with the source. Returns the files that current snapshots name."""
    await_true(lambda: not replica.left_in_kubernetes(), HEALTHY_S, "nothing to be left in Kubernetes")
    found = replica.held()
    assert set(found["lake"]) == months
    source = source_of(months)
    check_all_counts(found, source.months, source.cancelled, source.carriers)
    assert replica.compose(*TRILAKE, "rebuild", "--check", "--checksums", "--json", seconds=600) == "[]"
    return backups.check_named_files()


def tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures))
    if path := os.environ.get("TRILAKE_FIGURES"):
        with Path(path).open("a") as file:
            file.write(json.dumps(figures) + "\n")


def check_all_counts(found: dict[str, Any], months: dict[str, int], cancelled: int, carriers: int) -> None:
    """The lake, both shards, each host's readers and the mart have the source's rows, and nothing is left over."""
    assert found["lake"] == months
    shards = [{month: rows for month, rows, _ in held} for held in found["shards"].values()]
    assert {month: sum(shard.get(month, 0) for shard in shards) for month in months} == months
    assert found["strays"] == {"1": 0, "2": 0}
    rows = [sum(months.values()), cancelled, carriers]
    assert found["over_all"] == {"1": [rows], "2": [rows]}
    assert found["dimensions"] == {"1": [[16, 1458, 3322]], "2": [[16, 1458, 3322]]}
    assert found["mart"][1:] == rows[:2]
    assert (found["quarantined"], found["staging"], found["switching"]) == (0, [], 0)


def tries(replica: Replica, run: str) -> dict[str, int]:
    """The tasks that needed more than one try."""
    with replica.api() as api:
        return {task.task_id: task.tries for task in api.tasks(FLIGHTS, run) if task.tries > 1}
