"""Waits in the triggerer for a SparkApplication, and copies its driver's log to the task's log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from aiohttp import ClientError
from airflow.triggers.base import BaseTrigger, TriggerEvent
from kubernetes_asyncio.client.exceptions import ApiException

from trilake.errors import TrilakeError
from trilake.hooks.spark import (
    SparkApplicationHook,
    SparkSubmission,
    driver_pod,
    error_message,
    is_transient,
    log_read,
    newest,
    refusal,
)
from trilake.spark.application import ApplicationState

Outcome = Literal["completed", "failed", "gone", "not_started", "too_long", "error"]

# The trigger waits this long for an API server that is down (a restart, an upgrade). A running job goes on meanwhile.
_UNREACHABLE_SECONDS = 900.0
# If the triggerer is killed, the task's log may have this many seconds of the driver's log twice.
_NOTE_SECONDS = 30.0
# Airflow gives on_kill 30 s in total.
_KILL_SECONDS = 25.0


class SparkApplicationTrigger(BaseTrigger):
    """Fires once: when the application is over, gone, or out of time.

    :param submission: `SparkSubmission.to_dict` of the application.
    :param poll_interval: seconds between two checks.
    :param start_by: when it must run, in seconds since 1970.
    :param end_by: when it must have ended, in seconds since 1970; None: no limit.
    :param get_logs: copy the driver's log to the task's log.
    :param connection_extras: extra fields of the connection, if known; not serialized with the trigger.
    """

    def __init__(
        self,
        *,
        submission: dict[str, Any],
        kubernetes_conn_id: str,
        poll_interval: float,
        start_by: float,
        end_by: float | None = None,
        get_logs: bool = True,
        connection_extras: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.submission = submission
        self.kubernetes_conn_id = kubernetes_conn_id
        self.poll_interval = poll_interval
        self.start_by = start_by
        self.end_by = end_by
        self.get_logs = get_logs
        self._hook = SparkApplicationHook(
            kubernetes_conn_id, namespace=submission["namespace"], connection_extras=connection_extras
        )
        self._read = ""
        self._noted = ""
        self._logged_problems: set[str] = set()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "submission": self.submission,
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "poll_interval": self.poll_interval,
                "start_by": self.start_by,
                "end_by": self.end_by,
                "get_logs": self.get_logs,
            },
        )

    @property
    def name(self) -> str:
        return SparkSubmission(**self.submission).name

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await self.wait())  # type: ignore[no-untyped-call]

    async def wait(self) -> dict[str, Any]:
        """Waits for the end. Returns the event's payload, see `_event`."""
        answered = time.monotonic()
        state: ApplicationState | None = None
        noted_at = time.monotonic()
        while True:
            try:
                application = await self._hook.get(self.name)
                if application is None:
                    return self._event("gone", state)
                if state is None:
                    self._read = self._noted = log_read(application)  # another triggerer may have begun
                before, state = state, ApplicationState.of(application)
                await self._copy_log(application, state)
                if state != before:
                    self.log.info("SparkApplication %s is %s", self.name, state or "new")
                answered = time.monotonic()
                if state.over:
                    return await self._over(application, state)
                if late := self._late(state):
                    return self._event(late, state, pod_problems=await self._hook.pod_problems(self.name))
                if time.monotonic() - noted_at > _NOTE_SECONDS:
                    await self._note_log_read()
                    await self._log_pod_problems()
                    noted_at = time.monotonic()
            except (TrilakeError, ApiException, ClientError, OSError) as e:
                if isinstance(e, ApiException) and not is_transient(e):
                    # Missing permissions or an invalid token: trying again does not help.
                    return self._event("error", state, error=f"Kubernetes refuses: {refusal(e)}")
                if time.monotonic() - answered > _UNREACHABLE_SECONDS:
                    return self._event("error", state, error=str(e))
                self.log.warning("SparkApplication %s cannot be checked at the moment: %s", self.name, e)
            await asyncio.sleep(self.poll_interval)

    def _late(self, state: ApplicationState) -> Outcome | None:
        if self.end_by is not None and time.time() > self.end_by:
            return "too_long"
        return "not_started" if not state.started and time.time() > self.start_by else None

    async def _over(self, application: dict[str, Any], state: ApplicationState) -> dict[str, Any]:
        await self._note_log_read()
        if state is ApplicationState.COMPLETED:
            return self._event("completed", state)
        pod = driver_pod(application)
        return self._event(
            "failed",
            state,
            error=error_message(application),
            tail=await self._hook.last_lines(pod) if pod else [],
            pod_problems=await self._hook.pod_problems(self.name),
        )

    def _event(
        self,
        outcome: Outcome,
        state: ApplicationState | None,
        *,
        error: str = "",
        tail: list[str] | None = None,
        pod_problems: list[str] | None = None,
    ) -> dict[str, Any]:
        """The event for the operator. All its parts are small."""
        return {
            "submission": self.submission,
            "outcome": outcome,
            "state": str(state or ""),
            "error": error,
            "tail": tail or [],
            "pod_problems": pod_problems or [],
        }

    # --- the log

    async def _copy_log(self, application: dict[str, Any], state: ApplicationState) -> None:
        pod = driver_pod(application)
        if not self.get_logs or not pod or not state.started:
            return
        async for moment, text in self._hook.log_lines(pod, self._read):
            self.log.info("%s", text)
            self._read = moment

    async def _log_pod_problems(self) -> None:
        """Logs why pods do not start: a job waits forever for an executor without a node, and Spark reports nothing."""
        for problem in await self._hook.pod_problems(self.name):
            if problem not in self._logged_problems:
                self.log.warning("Pod %s", problem)
                self._logged_problems.add(problem)

    async def _note_log_read(self) -> None:
        """Records on the application how far its log was read, so that another triggerer continues from there."""
        if self._read != self._noted and await self._hook.note_log_read(self.name, self._read):
            self._noted = self._read

    async def cleanup(self) -> None:
        try:
            await self._note_log_read()
        except Exception as e:  # some log lines may come twice; that must not stop the triggerer's shutdown
            self.log.warning("The position in the driver's log could not be saved: %s", e)

    async def on_kill(self) -> None:
        """Deletes the application after a person has stopped the task, if it still belongs to this submission."""
        submission = SparkSubmission(**self.submission)
        if await self._hook.end(submission.name, owner=submission.owner, seconds=_KILL_SECONDS):
            self.log.info("SparkApplication %s was deleted with its task", submission.name)


class SparkApplicationsTrigger(BaseTrigger):
    """Fires once: when all of the applications are completed, when one has failed or is gone, or at the deadline.

    :param name: the name of one application. Set either `name` or `selector`.
    :param selector: a label selector. It waits for all applications that match, and at least one. Of a task's tries the
        last application counts.
    :param seen: applications that were seen before: name -> state.
    :param poll_interval: seconds between two checks.
    :param deadline: in seconds since 1970.
    """

    def __init__(
        self,
        *,
        name: str | None,
        selector: str | None,
        kubernetes_conn_id: str,
        namespace: str | None,
        poll_interval: float,
        deadline: float,
        seen: dict[str, str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name
        self.selector = selector
        self.kubernetes_conn_id = kubernetes_conn_id
        self.namespace = namespace
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.seen = dict(seen or {})
        self._hook = SparkApplicationHook(kubernetes_conn_id, namespace=namespace)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "name": self.name,
                "selector": self.selector,
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "namespace": self.namespace,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "seen": self.seen,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await self.wait())  # type: ignore[no-untyped-call]

    async def wait(self) -> dict[str, Any]:
        """The event of `look`. At the deadline it is ``waiting``, with ``error`` if Kubernetes does not answer."""
        while True:
            try:
                event = await self.look()
            except (TrilakeError, ApiException, ClientError, OSError) as e:
                if isinstance(e, ApiException) and not is_transient(e):
                    return self._event("error", error=f"Kubernetes refuses: {refusal(e)}")
                event = self._event("waiting", error=str(e))
                self.log.warning("SparkApplications cannot be checked at the moment: %s", e)
            left = self.deadline - time.time()
            if event["outcome"] != "waiting" or left <= 0:
                return event
            await asyncio.sleep(min(self.poll_interval, left))

    async def look(self) -> dict[str, Any]:
        """Checks once. The event has ``outcome`` (completed, failed, gone or waiting) and ``states`` by name. If an
        application failed, it also has ``name``, ``error``, ``tail`` and ``pod_problems``, as in
        `SparkApplicationTrigger`.
        """
        applications: list[Any]
        if self.name is not None:
            current = await self._hook.get(self.name)
            applications = [current] if current else []
        else:
            applications = newest(await self._hook.find(str(self.selector)))
        states = {application["metadata"]["name"]: ApplicationState.of(application) for application in applications}
        for name, state in states.items():
            if self.seen.get(name) != state:
                self.log.info("SparkApplication %s is %s", name, state or "new")
        # An application that is gone does not come back under its name. With labels, a later try may create another.
        gone = [name for name, state in self.seen.items() if name not in states and state != ApplicationState.COMPLETED]
        self.seen |= {name: str(state) for name, state in states.items()}
        for application in applications:
            if states[name := application["metadata"]["name"]] in (
                ApplicationState.FAILED,
                ApplicationState.SUBMISSION_FAILED,
            ):
                pod = driver_pod(application)
                return self._event(
                    "failed",
                    name=name,
                    error=error_message(application),
                    tail=await self._hook.last_lines(pod) if pod else [],
                    pod_problems=await self._hook.pod_problems(name),
                )
        if gone and self.name is not None:
            return self._event("gone", name=gone[0])
        # An application that was seen COMPLETED may have been deleted since.
        known = [state for name, state in self.seen.items() if name not in gone]
        completed = bool(known) and all(state == ApplicationState.COMPLETED for state in known)
        return self._event("completed" if completed else "waiting")

    def _event(
        self,
        outcome: Outcome | Literal["waiting"],
        *,
        name: str = "",
        error: str = "",
        tail: list[str] | None = None,
        pod_problems: list[str] | None = None,
    ) -> dict[str, Any]:
        problem = {"name": name, "error": error, "tail": tail or [], "pod_problems": pod_problems or []}
        return {"outcome": outcome, "states": self.seen, **problem}
