"""Runs of DAGs, as the tests start, hinder and read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from cluster import Cluster, await_true

from trilake import s3
from trilake.endpoints import Endpoints
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi, Task

# Where a test has two of them run, or takes one from the other, they share two cores with everything else.
SMALL: dict[str, Any] = {
    "driver": {"coreRequest": "100m", "memory": "512m"},
    "executor": {"coreRequest": "100m", "memory": "512m"},
}
# A driver's JVM, its Python and its executors, on a machine that does much besides.
# These limits end what hangs. A machine that others use may be ten times slower than one that is free.
STARTED_S = 600
ENDED_S = 900
SENT_S = 300


@dataclass(frozen=True)
class Run:
    """A run of a DAG, and its task `task_id`."""

    api: AirflowApi
    cluster: Cluster
    dag_id: str
    run_id: str
    task_id: str = "probe"

    @property
    def task(self) -> Task:
        return next(task for task in self.api.tasks(self.dag_id, self.run_id) if task.task_id == self.task_id)

    @property
    def log(self) -> list[str]:
        return self.read_log(400)

    def read_log(self, lines: int) -> list[str]:
        """The end of the log of the task's current try."""
        return self.api.last_lines(self.dag_id, self.run_id, self.task, lines)

    def result(self) -> Any:
        return self.api.xcom(self.dag_id, self.run_id, self.task_id)

    def await_task(self, *states: str, seconds: float = STARTED_S) -> Task:
        return await_true(
            lambda: task if (task := self.task).state in states else None, seconds, f"{self.run_id}: {states}"
        )

    def await_running(self, executors: int = 1) -> None:
        """Until the driver and so many executors run."""

        def running() -> bool:
            assert self.api.run(self.dag_id, self.run_id)["state"] not in FINAL_STATES, "\n".join(self.log[-60:])
            pods = self.cluster.pods(self.run_id, "driver"), self.cluster.pods(self.run_id, "executor")
            return bool(pods[0]) and len(pods[1]) >= executors

        await_true(running, STARTED_S, f"{self.run_id}: a driver and {executors} executors")

    def await_log(self, text: str, seconds: float = STARTED_S) -> None:
        """Until the driver has said it."""

        def said() -> bool:
            drivers = self.cluster.pods(self.run_id, "driver")
            return bool(drivers) and text in self.cluster.kubectl("logs", drivers[0])

        await_true(said, seconds, f"{self.run_id}: {text!r} in the driver's log")

    def await_log_of_task(self, text: str, seconds: float = STARTED_S) -> None:
        """Until it is in the log of the task's current try."""
        await_true(lambda: any(text in line for line in self.log), seconds, f"{self.run_id}: {text!r} in its log")

    def await_end(self, state: str = "success", seconds: float = ENDED_S) -> None:
        """Until the run has ended, as expected."""
        found = await_true(
            lambda: s if (s := str(self.api.run(self.dag_id, self.run_id)["state"])) in FINAL_STATES else None,
            seconds,
            f"{self.run_id} of {self.dag_id} to end",
        )
        # the end of its log is sent, and to be read, when its state is known
        await_true(lambda: not self._at_work(), SENT_S, f"the process of {self.task_id} of {self.run_id} to end")
        assert found == state, "\n".join(self.log[-80:])

    def _at_work(self) -> bool:
        path = f"/api/v2/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{self.task_id}"
        instance = str(self.api._call("GET", path)["id"])
        return any(
            instance in word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()
        )

    def set_state(self, state: str) -> None:
        """As a person does in the UI."""
        path = f"/api/v2/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{self.task_id}"
        self.api._call("PATCH", path, json={"new_state": state})


@dataclass(frozen=True)
class Airflow:
    """The platform's Airflow, with the cluster that its jobs run on."""

    api: AirflowApi
    cluster: Cluster
    endpoints: Endpoints

    def probe(self, *steps: list[Any], dag_id: str = "probe", spec: dict[str, Any] | None = None) -> Run:
        """Start a run of tests/kubernetes/project/dags/probes.py."""
        conf = {"steps": list(steps), "spec": SMALL if spec is None else spec}
        return Run(self.api, self.cluster, dag_id, self.api.trigger(dag_id, conf))

    def open_gate(self, name: str) -> None:
        """Let the jobs go on that await it."""
        s3.client(self.endpoints.s3).put_object(Bucket="artifacts", Key=f"gates/{name}", Body=b"")

    @contextmanager
    def gate(self, name: str) -> Iterator[str]:
        """A gate that is open at the end, so that no job waits for ever."""
        store = s3.client(self.endpoints.s3)
        store.delete_object(Bucket="artifacts", Key=f"gates/{name}")
        try:
            yield name
        finally:
            self.open_gate(name)
