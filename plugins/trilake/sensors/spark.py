"""Waits for Spark applications that other tasks have submitted."""

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

# The trigger ends the wait and reports the states. Airflow's own timeout comes later, as a fallback.
_TRIGGER_SLACK = timedelta(minutes=5)


class SparkApplicationFailedError(SparkApplicationError, AirflowFailException):
    """An application has failed, or is gone. This cannot change, so the task is not retried."""


class SparkApplicationNotCompletedError(TrilakeError, AirflowSensorTimeout):
    """The timeout was reached. Like every sensor timeout, it is not retried."""


class SparkApplicationSensor(BaseSensorOperator):
    """Succeeds when Spark applications are COMPLETED. Fails at once when one is FAILED or SUBMISSION_FAILED; the error
    has the reason, the problems of its pods and the driver's last lines. In every other state it waits.

    With `application`, it waits for one application, which may not exist yet. If the application is deleted before it
    has completed, the sensor fails. With `labels`, it waits for all applications that have them, and at least one. Of a
    task's tries the last application counts. The submitter must keep its applications until the sensor has seen them:
    set ``delete_on_termination=False`` in `SparkApplicationOperator`.

    `poke_interval`, `timeout` (seconds or timedelta) and `soft_fail` work as in every sensor. When it waits in the
    triggerer, `mode` and backoff have no effect.

    :param application: name of the application; templated.
    :param labels: such as ``{"trilake/dag": "flights", "trilake/run": "{{ run_id }}"}``, which
        `SparkApplicationOperator` sets; templated. Values are converted to valid labels in the same way.
    :param namespace: None: the namespace of the connection; templated.
    :param deferrable: wait in the triggerer.
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
                f"Task {self.task_id} needs either application or labels.",
                hint="Set application to a name, or set labels; not both.",
            )
        self.application = application
        self.labels = dict(labels) if labels else None
        self.namespace = namespace
        self.kubernetes_conn_id = kubernetes_conn_id
        self.deferrable = deferrable

    def execute(self, context: Context) -> None:
        """:raises SparkApplicationFailedError: one has failed, or is gone.
        :raises SparkApplicationNotCompletedError: the timeout was reached.
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
        """Continues after the wait in the triggerer."""
        self._trigger.seen = dict(event["states"])
        if not self._is_completed(event):
            self._late(event["error"])
        self.log.info("Completed: %s", ", ".join(event["states"]))

    def poke(self, context: Context) -> bool:
        """Whether all are completed. Logs each change of state."""
        return self._is_completed(asyncio.run(self._trigger.look()))

    def _is_completed(self, event: Mapping[str, Any]) -> bool:
        """:raises SparkApplicationFailedError: an application has failed or is gone."""
        outcome, name = event["outcome"], event["name"]
        state = event["states"].get(name) or "new"
        if outcome == "failed":
            self._fail(SparkApplicationFailedError(explained(f"SparkApplication {name} is {state}.", event)))
        if outcome == "gone":
            message = f"SparkApplication {name} is gone: it was {state} when it was seen last."
            hint = "Keep it with delete_on_termination=False. The log of the submitting task has its outcome."
            self._fail(SparkApplicationFailedError(message, hint=hint))
        if outcome == "error":
            self._fail(SparkApplicationFailedError(f"{self._target} cannot be checked. {event['error']}"))
        return bool(outcome == "completed")

    def _late(self, error: str) -> NoReturn:
        states = [f"{name} is {state or 'new'}" for name, state in self._trigger.seen.items()]
        why = error or ", ".join(states) or "there was none"
        self._fail(
            SparkApplicationNotCompletedError(f"{self._target} not COMPLETED within {self.timeout:.0f} s: {why}.")
        )

    def _fail(self, error: TrilakeError) -> NoReturn:
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(str(error)) from error  # the task's log shows the reason
        raise error

    @property
    def _target(self) -> str:
        return f"SparkApplication {self.application}" if self.application else f"SparkApplications with {self.labels}"

    @cached_property
    def _trigger(self) -> SparkApplicationsTrigger:
        """Created on first use, after the templates are rendered."""
        selector = ",".join(f"{key}={label_value(value)}" for key, value in (self.labels or {}).items())
        return SparkApplicationsTrigger(
            name=self.application,
            selector=selector or None,
            kubernetes_conn_id=self.kubernetes_conn_id,
            namespace=self.namespace,
            poll_interval=self.poke_interval,
            deadline=time.time() + self.timeout,
        )
