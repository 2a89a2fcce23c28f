"""Wait for Spark applications that others have submitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException

from trilake.endpoints import KUBERNETES_CONNECTION
from trilake.errors import ConfigurationError, TrilakeError
from trilake.operators.spark import SparkApplicationError, explained
from trilake.spark.application import label_value
from trilake.triggers.spark import SparkApplicationsTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# The trigger ends the wait, and says what it saw; Airflow's own limit is for one that does not.
_TRIGGER_SLACK = timedelta(minutes=5)


class SparkApplicationFailedError(SparkApplicationError, AirflowFailException):
    """An application that was waited for has failed, or is gone. It stays so: this is not tried again."""


class SparkApplicationNotCompletedError(TrilakeError, AirflowSensorTimeout):
    """The time is over. As every sensor's timeout, it is not tried again."""


class SparkApplicationSensor(BaseSensorOperator):
    """Succeeds when Spark applications are COMPLETED; fails at once when one is FAILED or SUBMISSION_FAILED, with the
    reason, its pods' pod_problems and its driver's last lines. In every other state, known or not, it waits.

    By name: of one application, which may not be there yet; one that is deleted before it is completed is an error. By
    labels: of all that have them, and at least one; of a task's tries the last application counts. Whoever submits has
    to leave them to be seen: `SparkApplicationOperator` does so with ``delete_on_termination=False``.

    `poke_interval`, `timeout` (seconds or timedelta) and `soft_fail` are those of every sensor; when it waits outside
    the worker, there is no `mode` and no backoff.

    :param application: its name; templated.
    :param labels: such as ``{"trilake/dag": "flights", "trilake/run": "{{ run_id }}"}``, by which
        `SparkApplicationOperator` marks its own; templated. Values are made to fit as that does it.
    :param namespace: None: the one of the connection; templated.
    :param deferrable: wait outside the worker.
    """

    template_fields: Sequence[str] = ("application", "labels", "namespace", "kubernetes_conn_id")
    template_fields_renderers = {"labels": "json"}
    ui_color = "#fed7aa"

    def __init__(
        self,
        *,
        application: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        kubernetes_conn_id: str = KUBERNETES_CONNECTION,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bool(application) == bool(labels):
            raise ConfigurationError(
                f"Task {self.task_id} does not know which application it waits for.",
                hint="Give application, its name, or labels.",
            )
        self.application = application
        self.labels = dict(labels) if labels else None
        self.namespace = namespace
        self.kubernetes_conn_id = kubernetes_conn_id
        self.deferrable = deferrable

    def execute(self, context: Context) -> None:
        """:raises SparkApplicationFailedError: one has failed, or is gone.
        :raises SparkApplicationNotCompletedError: the time is over.
        """
        if not self.deferrable:
            try:
                super().execute(context)
            except AirflowSensorTimeout:
                self._late("")
            return
        self.defer(
            trigger=self._trigger,
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _TRIGGER_SLACK,
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """After the wait outside."""
        self._trigger.seen = dict(event["states"])
        if not self._is_completed(event):
            self._late(event["error"])
        self.log.info("Completed: %s", ", ".join(event["states"]))

    def poke(self, context: Context) -> bool:
        """Whether they are completed; says in the log in which state they are, when that changes."""
        return self._is_completed(asyncio.run(self._trigger.look()))

    def _is_completed(self, event: Mapping[str, Any]) -> bool:
        """:raises SparkApplicationFailedError: it will not be."""
        outcome, name = event["outcome"], event["name"]
        state = event["states"].get(name) or "new"
        if outcome == "failed":
            self._fail(SparkApplicationFailedError(explained(f"SparkApplication {name} is {state}.", event)))
        if outcome == "gone":
            what = f"SparkApplication {name} is gone: it was {state} when it was seen last."
            hint = "Keep it until it was seen (delete_on_termination=False); who made it knows what became of it."
            self._fail(SparkApplicationFailedError(what, hint=hint))
        if outcome == "error":
            self._fail(SparkApplicationFailedError(f"{self._asked} cannot be waited for. {event['error']}"))
        return bool(outcome == "completed")

    def _late(self, error: str) -> NoReturn:
        states = [f"{name} is {state or 'new'}" for name, state in self._trigger.seen.items()]
        why = error or ", ".join(states) or "there was none"
        self._fail(
            SparkApplicationNotCompletedError(f"{self._asked} not COMPLETED within {self.timeout:.0f} s: {why}.")
        )

    def _fail(self, error: TrilakeError) -> NoReturn:
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(str(error)) from error  # the reason stands in the task's log
        raise error

    @property
    def _asked(self) -> str:
        return f"SparkApplication {self.application}" if self.application else f"SparkApplications with {self.labels}"

    @cached_property
    def _trigger(self) -> SparkApplicationsTrigger:
        """Made when it is asked for: what it waits for is templated."""
        selector = ",".join(f"{key}={label_value(value)}" for key, value in (self.labels or {}).items())
        return SparkApplicationsTrigger(
            name=self.application,
            selector=selector or None,
            kubernetes_conn_id=self.kubernetes_conn_id,
            namespace=self.namespace,
            poll_interval=self.poke_interval,
            deadline=time.time() + self.timeout,
        )
