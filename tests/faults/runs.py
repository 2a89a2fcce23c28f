"""Runs of DAGs through the platform's scheduler, seen in Airflow's database, which answers while all else fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from trilake.errors import TrilakeError
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi, Task
from trilake.platform.embedded import platform as lifecycle
from trilake.platform.embedded import postgres
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.home import SERVICES, Home
from trilake.platform.embedded.processes import Supervisor
from trilake.postgres.connection import connect

T = TypeVar("T")

_POLL_S = 0.02
# A run, with a fault of half a minute, the lost task's heartbeat (60 s) and three retries, on a machine that is busy.
RUN_S = 900
# The DAG's own is longer than a person would wait who stands by.
_PATIENCE_S = 60
UNFINISHED = ("queued", "running", "scheduled")


@dataclass(frozen=True)
class Try:
    """A try of a task that did not succeed.

    :param log: what its log says, as the UI shows it.
    """

    task: str
    number: int
    state: str
    log: str


@dataclass(frozen=True)
class Runs:
    home: Home

    @contextmanager
    def api(self) -> Iterator[AirflowApi]:
        with AirflowApi(*administrator(self.home)) as api:
            yield api

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, *, run_id: str | None = None) -> str:
        with self.api() as api:
            api.wait_for_dags(dag_id)
            api.unpause(dag_id)
            return api.trigger(dag_id, conf, run_id=run_id)

    def ids(self, dag_id: str) -> set[str]:
        """Of all its runs."""
        return {str(run_id) for (run_id,) in self._ask("SELECT run_id FROM dag_run WHERE dag_id = %s", (dag_id,))}

    def appears(self, dag_id: str, before: set[str]) -> str:
        """The run that the DAG's schedule starts, beside those that were there before; gives its id."""
        with self.api() as api:
            api.wait_for_dags(dag_id)
            api.unpause(dag_id)
        return self._await(lambda: next(iter(self.ids(dag_id) - before), None), RUN_S, f"a run of {dag_id}")

    def await_moment(self, dag_id: str, run_id: str, task_id: str, seconds: float) -> tuple[str, str]:
        """When the task's first try has been at work for so long. Gives its instance's id and its state by then."""

        def begun() -> Any:
            rows = self._ask(
                "SELECT id::text, extract(epoch FROM now() - start_date) FROM task_instance WHERE dag_id = %s "
                "AND run_id = %s AND task_id = %s AND state NOT IN ('scheduled', 'queued')",
                (dag_id, run_id, task_id),
            )
            return rows[0] if rows and rows[0][1] is not None else None

        identity, job_lock = self._await(begun, RUN_S, f"{dag_id}.{task_id} of {run_id} to begin")
        time.sleep(max(0.0, seconds - float(job_lock)))
        return str(identity), str(self._ask("SELECT state FROM task_instance WHERE id = %s", (identity,))[0][0])

    def await_end(self, dag_id: str, run_id: str, seconds: float = RUN_S) -> str:
        """Its last state. On the way what dies is brought up, and what waits for minutes is cleared: a person would."""

        def ended() -> str | None:
            (found,) = self._ask("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", (dag_id, run_id))[0]
            if found in FINAL_STATES:
                return str(found)
            self._bring_up_what_died()
            self._clear_what_waits(dag_id, run_id)
            time.sleep(0.5)
            return None

        return self._await(ended, seconds, f"{run_id} of {dag_id} to end")

    def await_quiet(self, seconds: float = RUN_S) -> None:
        """When no DAG runs: not what events started, either."""

        def quiet() -> bool:
            time.sleep(0.3)
            return not self._ask("SELECT 1 FROM dag_run WHERE state = ANY(%s)", (list(UNFINISHED),))

        self._await(quiet, seconds, "all runs to end")

    def seconds(self, dag_id: str, run_id: str) -> dict[str, float]:
        """How long each task took."""
        return {
            task: float(took)
            for task, took in self._ask(
                "SELECT task_id, extract(epoch FROM end_date - start_date) FROM task_instance "
                "WHERE dag_id = %s AND run_id = %s",
                (dag_id, run_id),
            )
        }

    def failed_tries(self, dag_id: str, run_id: str) -> list[Try]:
        """Every try that began and did not succeed, with its log."""
        rows = self._ask(
            "SELECT task_id, try_number, state FROM task_instance_history WHERE dag_id = %s AND run_id = %s "
            "AND hostname <> '' UNION SELECT task_id, try_number, state FROM task_instance "
            "WHERE dag_id = %s AND run_id = %s AND hostname <> '' ORDER BY 1, 2",
            (dag_id, run_id, dag_id, run_id),
        )
        failed = [row for row in rows if row[2] != "success"]
        with self.api() as api:
            return [
                Try(task, number, str(state), _said(api.last_lines(dag_id, run_id, _at(dag_id, task, number), 400)))
                for task, number, state in failed
            ]

    def _bring_up_what_died(self) -> None:
        """What a fault has killed later, such as a scheduler that finds no database."""
        states = Supervisor(self.home).states()
        if dead := [name for name in SERVICES if name not in states or not states[name].running]:
            print(f"{', '.join(dead)}: dead, and brought up")
            lifecycle.up(self.home)

    def _clear_what_waits(self, dag_id: str, run_id: str) -> None:
        waiting = self._ask(
            "SELECT task_id FROM task_instance WHERE dag_id = %s AND run_id = %s AND state = 'up_for_retry' "
            "AND end_date < now() - interval '1 s' * %s",
            (dag_id, run_id, _PATIENCE_S),
        )
        if waiting:
            with self.api() as api:
                body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task for (task,) in waiting],
                        "only_failed": False}  # fmt: skip
                api._call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)

    def _await(self, look: Callable[[], T | None], seconds: float, what: str) -> T:
        until = time.monotonic() + seconds
        while True:
            try:
                if found := look():
                    return found
            except TrilakeError:  # the server that we ask was killed, perhaps
                if time.monotonic() > until:
                    raise
            if time.monotonic() > until:
                raise TimeoutError(f"Waited {seconds:.0f} s for {what}.")
            time.sleep(_POLL_S)

    def _ask(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        endpoint = postgres.endpoint(self.home.ports()["postgres"], self.home.secrets(), "airflow")
        with connect(endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())


def _said(lines: list[str]) -> str:
    """Without where the log lies: the name of a bucket says nothing of a fault."""
    return "\n".join(line for line in lines if not line.endswith(".log"))


def _at(dag_id: str, task: str, number: int) -> Task:
    return Task(dag_id, task, "", 0.0, number)
