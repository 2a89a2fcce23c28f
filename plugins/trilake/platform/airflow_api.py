"""A client for the parts of Airflow's REST API that the command line needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trilake.errors import TrilakeError, UnreachableError

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

TIMEOUT_S = 30
# A machine that is busy with Spark can leave the API server without CPU for longer than one timeout.
BUSY_S = 120
FINAL_STATES = frozenset({"success", "failed"})
# How long Airflow may take to notice a DAG or to create a run that is due.
NOTICE_S = 60


class AirflowError(TrilakeError):
    """Airflow refused a request, or cannot import a DAG."""


@dataclass(frozen=True)
class Task:
    """One task of a run, in its current state."""

    dag_id: str
    task_id: str
    state: str
    seconds: float
    tries: int


class AirflowApi:
    """A logged-in client. It is a context manager.

    :param url: the address of the UI, such as ``http://127.0.0.1:8080``.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        import httpx

        self.url = url
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        token = self._call("POST", "/auth/token", json={"username": user, "password": password})["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> AirflowApi:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Wait until Airflow has parsed these DAGs.

        :raises AirflowError: one cannot be imported, or does not appear in time.
        """
        deadline = time.monotonic() + NOTICE_S
        while True:
            parsed_dags = {dag["dag_id"] for dag in self._call("GET", "/api/v2/dags", params={"limit": 1000})["dags"]}
            missing = [dag_id for dag_id in dag_ids if dag_id not in parsed_dags]
            if not missing:
                return
            for broken in self._call("GET", "/api/v2/importErrors")["import_errors"]:
                last_line = broken["stack_trace"].strip().splitlines()[-1]
                raise AirflowError(f"{broken['filename']} cannot be imported: {last_line}")
            if time.monotonic() > deadline:
                raise AirflowError(
                    f"Airflow does not know {', '.join(missing)} after {NOTICE_S} s.",
                    hint="See `trilake logs airflow-dag-processor`.",
                )
            time.sleep(0.5)

    def unpause(self, dag_id: str) -> bool:
        """Let a DAG run. True if it was paused until now."""
        was_paused: bool = self._call("GET", f"/api/v2/dags/{dag_id}")["is_paused"]
        if was_paused:
            self._call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})
        return was_paused

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, run_id: str | None = None) -> str:
        """Start a run and return its id.

        :param run_id: None: Airflow makes one.
        """
        body = {"logical_date": None, "conf": dict(conf or {}), **({"dag_run_id": run_id} if run_id else {})}
        return str(self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def runs(self, dag_id: str, since: datetime) -> list[dict[str, Any]]:
        """The runs that were queued since then, oldest first."""
        answer = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": 50})
        recent = [run for run in answer["dag_runs"] if _at_or_after(run["queued_at"], since)]
        return sorted(recent, key=lambda run: str(run["queued_at"]))

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        dag_run: dict[str, Any] = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")
        return dag_run

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        """The tasks of a run, in the order they were started."""
        listed = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        listed.sort(key=lambda task: (task["start_date"] is None, task["start_date"] or "", task["task_id"]))
        return [
            Task(dag_id, task["task_id"], task["state"] or "waiting", _seconds(task), task["try_number"])
            for task in listed
        ]

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What a task returned."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self._call("GET", path, params={"deserialize": True})["value"]

    def last_lines(self, dag_id: str, run_id: str, task: Task, lines: int = 15) -> list[str]:
        """The end of a task's log."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task.task_id}/logs/{max(task.tries, 1)}"
        content = self._call("GET", path, params={"full_content": True}).get("content") or []
        return [line for entry in content for line in _text(entry).splitlines()][-lines:]

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        import httpx

        until = time.monotonic() + BUSY_S
        while True:
            try:
                answer: httpx.Response = self._client.request(method, path, **arguments)
                break
            except httpx.HTTPError as e:
                # only a read is repeated: the server may already have processed a write
                if method == "GET" and isinstance(e, httpx.ReadTimeout) and time.monotonic() < until:
                    log.warning("Airflow at %s has not answered for %s s. Trying again.", self.url, TIMEOUT_S)
                    continue
                raise UnreachableError(f"Airflow does not answer at {self.url} ({type(e).__name__}).") from None
        if answer.is_error:
            try:
                detail = answer.json().get("detail", "")
            except ValueError:
                detail = ""
            raise AirflowError(f"Airflow refused {method} {path}: {answer.status_code} {detail}".strip())
        return answer.json()


def _at_or_after(moment: str | None, since: datetime) -> bool:
    return moment is not None and datetime.fromisoformat(moment) >= since


def _text(entry: Any) -> str:
    """A structured log line as text: the event, then the type and message of each error."""
    if not isinstance(entry, dict):
        return str(entry)
    lines = [str(entry.get("event", ""))]
    lines += [f"{error.get('exc_type')}: {error.get('exc_value')}" for error in entry.get("error_detail") or ()]
    return "\n".join(line for line in lines if not line.startswith("::"))


def _seconds(task: Mapping[str, Any]) -> float:
    """Seconds that the task took, or has run so far. Airflow's `duration` leaves out the time a task was deferred."""
    if not task["start_date"]:
        return 0.0
    start = datetime.fromisoformat(task["start_date"])
    end = datetime.fromisoformat(task["end_date"]) if task["end_date"] else datetime.now(start.tzinfo)
    return max((end - start).total_seconds(), 0.0)
