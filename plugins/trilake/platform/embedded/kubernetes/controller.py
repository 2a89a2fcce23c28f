"""The work of spark-operator: it takes each application through its states, in one asyncio task for each application.

New -> SUBMITTED -> RUNNING -> SUCCEEDING or FAILING -> COMPLETED or FAILED. SUBMISSION_FAILED and PENDING_RERUN also
occur, depending on the restart policy. A state is saved before its step begins, and every step can be repeated, so a
controller that starts continues where the last one was killed.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from trilake.platform.embedded.kubernetes.cluster import KubernetesObjects, Record
from trilake.platform.embedded.kubernetes.configuration import ClusterConfiguration
from trilake.platform.embedded.kubernetes.drivers import Driver
from trilake.platform.embedded.kubernetes.objects import (
    driver_pod,
    now,
    set_running,
    set_terminated,
    set_waiting,
    time_text,
)
from trilake.platform.embedded.kubernetes.submission import (
    ContainerConfigError,
    SubmissionError,
    memory_bytes,
    prepare,
    write_files,
)

log = logging.getLogger(__name__)
# The wait after a file could not be written or a process could not be started
_AGAIN_SECONDS = 2.0


class Controller:
    """Runs the applications of a cluster from `start` to `stop`."""

    def __init__(self, cluster: KubernetesObjects, configuration: ClusterConfiguration) -> None:
        self._cluster = cluster
        self._configuration = configuration
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = _Places(configuration.max_running)
        # applications whose driver was started but has not written its process file yet
        self._starting: set[str] = set()
        # set when an application's current driver has ended; then following its log ends
        self._ended: dict[str, asyncio.Event] = {}

    def start(self) -> None:
        """Continue every stored application. Drivers that still run are found again."""
        # running drivers get their places before others wait for one
        for record in sorted(self._cluster.records(), key=lambda r: r.state != "RUNNING"):
            if record.gone or "deletionTimestamp" in record.application["metadata"]:
                self._start_walk(record, self._end)
                continue
            if record.state == "RUNNING":
                self._places.take(record.uid)
            self.take_on(record)

    async def stop(self) -> None:
        """End every driver, as when a cluster is switched off. The next `start` marks their applications as failed."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        grace = self._configuration.grace_seconds
        drivers = [(Driver(r.attempt_folder), r.uid in self._starting) for r in self._cluster.records() if r.pod]
        await asyncio.gather(
            *(driver.end(grace_seconds=grace, never_start=never_start) for driver, never_start in drivers)
        )

    def take_on(self, record: Record) -> None:
        """Start to take an application through its states."""
        self._start_walk(record, self._walk)

    def delete(self, record: Record, *, foreground: bool = False) -> None:
        """Delete an application: its driver ends, then its pod is removed.

        :param foreground: the application can be read until its pod is removed.
        """
        if "deletionTimestamp" in record.application["metadata"]:
            return
        if foreground:
            record.application["metadata"]["deletionTimestamp"] = now()
            self._cluster.save(record, "sparkapplications")
        else:
            self._cluster.forget_application(record)
        self._start_walk(record, self._end)

    async def delete_pod(self, record: Record) -> None:
        """End the driver and remove its pod. The task of the application notices the end by itself."""
        pod = self._pod(record)
        pod["metadata"].setdefault("deletionTimestamp", now())
        self._cluster.save(record, "pods")
        await Driver(record.attempt_folder).end(grace_seconds=self._configuration.grace_seconds, never_start=True)
        await self._cluster.until(lambda: record.state not in ("SUBMITTED", "RUNNING") or record.pod is not pod)
        if record.pod is pod:
            self._cluster.forget_pod(record)

    def driver_ended(self, record: Record) -> asyncio.Event:
        """Set once the driver of the current attempt has ended."""
        ended = self._ended.setdefault(record.uid, asyncio.Event())
        if record.pod is None or record.pod["status"]["phase"] in ("Succeeded", "Failed"):
            ended.set()
        return ended

    # --- one application

    def _start_walk(self, record: Record, walk: Callable[[Record], Awaitable[None]]) -> None:
        previous = self._tasks.get(record.uid)

        async def next_walk() -> None:
            if previous is not None:
                previous.cancel()
                await asyncio.gather(previous, return_exceptions=True)
            try:
                await self._walk_until_done(walk, record)
            except Exception:
                # an error in one application must not stop the others; the next start tries it again
                log.exception("%s: its controller stopped in state %r", record.name, record.state)

        self._tasks[record.uid] = asyncio.create_task(next_walk(), name=record.name)

    @staticmethod
    async def _walk_until_done(walk: Callable[[Record], Awaitable[None]], record: Record) -> None:
        """Call `walk`, and again after an OSError (a full disk, no new process): every step can be repeated."""
        while True:
            try:
                return await walk(record)
            except OSError as e:
                log.warning("%s: tried again in state %r: %s", record.name, record.state, e)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _walk(self, record: Record) -> None:
        while True:
            match record.state:
                case "" | "PENDING_RERUN":
                    await self._submit(record)
                case "SUBMITTED":
                    await self._run(record)
                case "RUNNING":
                    await self._await_driver(record)
                case "SUCCEEDING":
                    if record.application["spec"]["restartPolicy"]["type"] == "Always":
                        self._rerun(record)
                    else:
                        self._set(record, "COMPLETED", "SparkApplicationCompleted", "completed")
                case "FAILING" | "SUBMISSION_FAILED":
                    await self._retry_or_fail(record)
                case _:
                    await self._expire(record)
                    return

    async def _submit(self, record: Record) -> None:
        status = record.status
        # a deleted application of the same name may still have its pod
        await self._cluster.until(lambda: self._cluster.pod(self._pod_name(record)) in (None, record))
        status["lastSubmissionAttemptTime"] = now()
        status["terminationTime"] = None
        status["submissionAttempts"] = int(status.get("submissionAttempts", 0)) + 1
        try:
            self._check(record)
        except SubmissionError as e:
            status.setdefault("driverInfo", {})
            self._set(record, "SUBMISSION_FAILED", "SparkApplicationSubmissionFailed", f"failed to submit: {e}", str(e))
            return
        status |= {
            "sparkApplicationId": f"spark-{uuid.uuid4().hex}",
            "submissionID": str(uuid.uuid4()),
            "driverInfo": {"podName": self._pod_name(record)},
            "executionAttempts": int(status.get("executionAttempts", 0)) + 1,
            "executorState": {},
        }
        record.pod = driver_pod(record.application)
        self._ended[record.uid] = asyncio.Event()
        record.attempt_folder.mkdir(exist_ok=True, mode=0o700)
        attempt = status["executionAttempts"]
        self._set(record, "SUBMITTED", "SparkApplicationSubmitted", f"was submitted (attempt {attempt})")
        self._cluster.save(record, "pods", "ADDED")

    def _check(self, record: Record) -> None:
        """The checks that spark-submit makes before it creates a driver."""
        spec = record.application["spec"]
        for role in ("driver", "executor"):
            memory_bytes(spec[role]["memory"])
        command = self._configuration.submit_command[0]
        if shutil.which(command) is None:
            raise SubmissionError(f"{command}: no such command")

    async def _run(self, record: Record) -> None:
        pod, driver = self._pod(record), Driver(record.attempt_folder)
        if driver.process is None:
            if not self._places.free:
                count = self._configuration.max_running
                self._cluster.note(
                    record, pod, "FailedScheduling", f"0/1 nodes are available: {count} drivers run", warning=True
                )
                self._cluster.save(record)
            await self._places.wait(record.uid)
            try:
                submission = prepare(
                    record.application, record.status["sparkApplicationId"], driver.folder, self._configuration
                )
            except ContainerConfigError as e:
                self._places.leave(record.uid)
                set_waiting(pod, "CreateContainerConfigError", str(e))
                self._cluster.note(record, pod, "Failed", f"Error: {e}", warning=True)
                self._cluster.save(record, "pods")
                # Wait until the application is deleted: this server reads its Secrets only at its start.
                await asyncio.Event().wait()
                return
            self._cluster.note(record, pod, "Scheduled", f"Successfully assigned {pod['metadata']['name']}")
            set_waiting(pod, "ContainerCreating")
            self._cluster.save(record, "pods")
            write_files(submission, driver.folder)
            self._starting.add(record.uid)
            driver.start(submission.command, submission.environment, log_bytes=self._configuration.log_bytes)
            await driver.started()
            self._starting.discard(record.uid)
        else:
            self._places.take(record.uid)
        set_running(pod)
        self._cluster.note(record, pod, "Started", "Started container spark-kubernetes-driver")
        self._cluster.save(record, "pods")
        self._set(record, "RUNNING", "SparkDriverRunning", f"driver {pod['metadata']['name']} is running")

    async def _await_driver(self, record: Record) -> None:
        pod, driver = self._pod(record), Driver(record.attempt_folder)
        try:
            driver_exit = await driver.finished()
        finally:
            self._places.leave(record.uid)
        set_terminated(pod, driver_exit.exit_code, driver_exit.finished)
        self._cluster.save(record, "pods")
        self.driver_ended(record).set()
        shutil.rmtree(driver.folder / "scratch", ignore_errors=True)
        record.status["terminationTime"] = time_text(driver_exit.finished)
        if driver_exit.exit_code == 0:
            self._set(record, "SUCCEEDING", "SparkDriverCompleted", f"driver {pod['metadata']['name']} completed")
            return
        error = f"driver container failed with ExitCode: {driver_exit.exit_code}, Reason: Error"
        self._set(record, "FAILING", "SparkDriverFailed", f"driver {pod['metadata']['name']} failed", error)

    async def _retry_or_fail(self, record: Record) -> None:
        status, restart = record.status, record.application["spec"]["restartPolicy"]
        submitting = record.state == "SUBMISSION_FAILED"
        kind = "onSubmissionFailure" if submitting else "onFailure"
        attempts = int(status.get("submissionAttempts" if submitting else "executionAttempts", 0))
        retry = restart["type"] == "Always" or (
            restart["type"] == "OnFailure" and attempts <= int(restart.get(f"{kind}Retries", 0))
        )
        error = status["applicationState"].get("errorMessage", "")
        if not retry:
            status.setdefault("terminationTime", now())
            status["terminationTime"] = status["terminationTime"] or now()
            self._set(record, "FAILED", "SparkApplicationFailed", f"failed: {error}", error)
            return
        # The wait is counted from the last submission, and grows with the number of attempts.
        last_submission = datetime.fromisoformat(status["lastSubmissionAttemptTime"]).timestamp()
        interval = int(restart.get(f"{kind}RetryInterval", 5))
        await asyncio.sleep(max(0.0, last_submission + interval * int(status["submissionAttempts"]) - time.time()))
        self._rerun(record)

    def _rerun(self, record: Record) -> None:
        self._cluster.forget_pod(record)
        shutil.rmtree(record.attempt_folder, ignore_errors=True)
        self._set(record, "PENDING_RERUN", "SparkApplicationPendingRerun", "is pending rerun")

    async def _expire(self, record: Record) -> None:
        seconds = record.application["spec"].get("timeToLiveSeconds")
        if seconds is None:
            return
        end_time = datetime.fromisoformat(record.status["terminationTime"]).timestamp()
        await asyncio.sleep(max(0.0, end_time + int(seconds) - time.time()))
        self._cluster.forget_application(record)
        self._cluster.forget(record)

    async def _end(self, record: Record) -> None:
        if record.pod is not None:
            record.pod["metadata"].setdefault("deletionTimestamp", now())
            self._cluster.save(record, "pods")
            driver = Driver(record.attempt_folder)
            if driver.folder.is_dir():
                await driver.end(grace_seconds=self._configuration.grace_seconds, never_start=True)
        self._places.leave(record.uid)
        self.driver_ended(record).set()
        if not record.gone:
            self._cluster.forget_application(record)
        self._cluster.forget(record)
        self._ended.pop(record.uid, None)
        self._tasks.pop(record.uid, None)

    def _set(self, record: Record, state: str, reason: str, message: str, error: str = "") -> None:
        record.status["applicationState"] = {"state": state, **({"errorMessage": error} if error else {})}
        warning = state in ("SUBMISSION_FAILED", "FAILING", "FAILED")
        event_message = f"SparkApplication {record.name} {message}"
        self._cluster.note(record, record.application, reason, event_message, warning=warning)
        self._cluster.save(record, "sparkapplications")

    @staticmethod
    def _pod_name(record: Record) -> str:
        return str(record.application["spec"]["driver"].get("podName") or f"{record.name}-driver")

    @staticmethod
    def _pod(record: Record) -> dict[str, Any]:
        if record.pod is None:
            raise LookupError(f"{record.name} has no pod in state {record.state!r}")
        return record.pod


class _Places:
    """Limits how many drivers run at once: first come, first served."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: set[str] = set()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> bool:
        return len(self._taken) < self._count and not self._waiting

    def take(self, uid: str) -> None:
        """Take a place even if none is free: the driver already runs."""
        self._taken.add(uid)

    async def wait(self, uid: str) -> None:
        if uid in self._taken or self.free:
            self.take(uid)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((uid, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting = deque(waiting for waiting in self._waiting if waiting[1] is not turn)
            self.leave(uid)
            raise

    def leave(self, uid: str) -> None:
        self._taken.discard(uid)
        while self._waiting and len(self._taken) < self._count:
            next_uid, turn = self._waiting.popleft()
            if not turn.done():
                self._taken.add(next_uid)
                turn.set_result(None)
