"""Runs a Spark job on Kubernetes. No two applications of a task run at a time, and none is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.operators.spark_kubernetes import SparkKubernetesOperator
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes_asyncio.client.exceptions import ApiException

from trilake import s3
from trilake.assets import published
from trilake.endpoints import KUBERNETES_CONNECTION, S3_CONNECTION, S3Endpoint
from trilake.errors import ConfigurationError, TrilakeError
from trilake.hooks.spark import INPUTS, OWNER, SparkApplicationHook, SparkSubmission, is_adoptable
from trilake.hooks.submission import SubmissionStore
from trilake.hooks.task_instance import INSTANCE_LABEL, TaskInstance
from trilake.lake.data_set import ARTIFACTS_BUCKET, DataSet
from trilake.operators.window import START, WindowedOperator
from trilake.spark import event_log, versions
from trilake.spark.application import ApplicationState, SparkApplication
from trilake.triggers.spark import SparkApplicationTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# Where a task instance keeps its submission between tries.
STATE_KEY = "spark_application"

# The official operator's default. It covers the image pull and the wait for a node.
STARTUP_TIMEOUT_SECONDS = 600
# A window that takes longer than a day never catches up with its schedule.
RUN_TIMEOUT_SECONDS = 24 * 3600
# One day less than the lake's maintenance keeps files without a snapshot (`trilake.spark.maintenance.ORPHANS_STAY`).
LONGEST_RUN_SECONDS = 2 * 24 * 3600
# Airflow's own limit on a deferred task comes this long after ours, because it fails the task without a cleanup.
_DEFER_SLACK_SECONDS = 300
# on_kill has little time. Once the application is deleted, Kubernetes removes the rest.
_KILL_SECONDS = 20.0

Result = TypeVar("Result")

# What to use instead of an option of the official operator that would have no effect.
_MANIFEST_HINT = (
    "The operator writes the manifest itself, from job, profile, spark_conf and jobs_version. For a manifest of your "
    "own use the official SparkKubernetesOperator."
)
_INSTEAD = {
    "image": "All jobs use the platform's image. A job's code is in spark_jobs/ and needs no image of its own.",
    "code_path": "Give job=, the name of a module of spark_jobs/.",
    "name": "The name follows from the DAG, the task and the run.",
    "random_name_suffix": "The name follows from the DAG, the task and the run.",
    "reattach_on_restart": "A later try always adopts an application that runs on the same inputs.",
    "container_resources": "Choose a profile (small, medium, large), or give spark_conf.",
    "labels": "The labels name the DAG, the task and the run.",
}


class SparkApplicationError(TrilakeError, AirflowException):
    """A Spark job failed, was deleted or never started. The message has all that is known about it."""


class SparkApplicationOperator(WindowedOperator, SparkKubernetesOperator):
    """Runs a job of ``spark_jobs/`` as a SparkApplication.

    The job gets ``--run``, ``--data-set``, ``--start`` and ``--end`` (the window that it works on), `arguments`, and
    ``--result``. The job writes a JSON object to ``--result``, an object in S3. The task's XCom has each of its keys,
    and also ``application``, ``state``, ``seconds`` and ``spark`` (`trilake.spark.event_log.SparkMetrics` of the event
    log). If the job commits, ``task.output["snapshot_id"]`` is its snapshot. If the job publishes, set
    ``outlets=[trilake.assets.published(data_set)]``: the outlet gets an event for each partition.

    The operator records a submission before it creates the application. A try after a lost worker or scheduler adopts
    the application if it still runs on the same inputs, and deletes it otherwise. So no two run at a time. A try that
    is killed only deletes the application that it owns.

    :param job: the module's name.
    :param data_set: what the job makes; with a grain, the task works on a window of its partitions. A run with
        the param ``"force": true`` commits although many lines were refused (`DataSet.max_refused`). The snapshot names
        the user.
    :param arguments: further arguments for the job. Everyone who may read the application can read them: never put a
        secret here.
    :param profile: small, medium or large, see `trilake.spark.application.PROFILES`.
    :param jobs_version: version of the job code; None: the version that was deployed with the DAG, else the one pushed
        last.
    :param namespace: None: the namespace of the connection.
    :param spark_conf: Spark settings that override the defaults. Never put a secret here.
    :param startup_timeout_seconds: time limit until the driver runs.
    :param run_timeout_seconds: time limit for the whole run, at most two days; a shorter `execution_timeout` applies
        first.
    :param delete_on_termination: False keeps the application, with its pod and log, for its time to live (24 h).
    """

    template_fields: Sequence[str] = (  # type: ignore[assignment]
        "job",
        "arguments",
        "profile",
        "jobs_version",
        "spark_conf",
        "namespace",
        "kubernetes_conn_id",
        "aws_conn_id",
        *WindowedOperator.template_fields,
    )
    template_fields_renderers = {"arguments": "json", "spark_conf": "json"}
    # An argument that ends in .json is not a template file.
    template_ext: Sequence[str] = ()  # type: ignore[assignment]

    def __init__(
        self,
        *,
        job: str,
        data_set: DataSet | None = None,
        arguments: Sequence[str] = (),
        start: str | None = START,
        end: str | None = None,
        profile: str = "small",
        jobs_version: str | None = None,
        namespace: str | None = None,
        spark_conf: Mapping[str, str] | None = None,
        kubernetes_conn_id: str = KUBERNETES_CONNECTION,
        aws_conn_id: str = S3_CONNECTION,
        deferrable: bool = True,
        poll_interval: float = 2,
        startup_timeout_seconds: int = STARTUP_TIMEOUT_SECONDS,
        run_timeout_seconds: int = RUN_TIMEOUT_SECONDS,
        get_logs: bool = True,
        delete_on_termination: bool = True,
        do_xcom_push: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        _refuse_ignored(job, kwargs)
        if run_timeout_seconds > LONGEST_RUN_SECONDS:
            raise ConfigurationError(
                f"Job {job} has run_timeout_seconds={run_timeout_seconds}. That is too long: the lake's maintenance "
                "would remove files that the job has not committed yet.",
                hint=f"Set at most {LONGEST_RUN_SECONDS} s, and split the window into smaller runs.",
            )
        super().__init__(
            data_set=data_set,
            start=start,
            end=end,
            kubernetes_conn_id=kubernetes_conn_id,
            deferrable=deferrable,
            poll_interval=poll_interval,
            startup_timeout_seconds=startup_timeout_seconds,
            get_logs=get_logs,
            delete_on_termination=delete_on_termination,
            do_xcom_push=do_xcom_push,
            **kwargs,
        )
        self.job = job
        self.arguments = arguments  # type: ignore[assignment]
        self.profile = profile
        self.jobs_version = jobs_version
        # Set again here, because the official operator replaces None by its own default.
        self.namespace = namespace
        self.kubernetes_conn_id: str = kubernetes_conn_id
        self.spark_conf = spark_conf
        self.aws_conn_id = aws_conn_id
        self.run_timeout_seconds = run_timeout_seconds
        self._submission: SparkSubmission | None = None
        self._killed = False

    # --- the task

    def execute(self, context: Context) -> Any:
        """Submits the job, and waits in the triggerer (or here, with ``deferrable=False``).

        :raises SparkApplicationError: the job failed, was deleted or did not start.
        :raises ConfigurationError: the version, window, profile or connection does not exist; nothing was submitted.
        """
        submission = self._submit(context)
        now = time.time()
        end_by = now + self.run_timeout_seconds
        started = context["ti"].start_date
        if self.execution_timeout is not None and started is not None:
            end_by = min(end_by, started.timestamp() + self.execution_timeout.total_seconds())
        trigger = SparkApplicationTrigger(
            submission=submission.to_dict(),
            kubernetes_conn_id=self.kubernetes_conn_id,
            poll_interval=self.poll_interval,
            start_by=now + self.startup_timeout_seconds,
            end_by=end_by,
            get_logs=self.get_logs,
            connection_extras=self._connection_extras,
        )
        if self.deferrable:
            limit = timedelta(seconds=max(0.0, end_by - now) + _DEFER_SLACK_SECONDS)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=limit)
        return self.execute_complete(context, asyncio.run(trigger.wait()))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Reads the job's result, and deletes the application."""
        mine = self._submission = SparkSubmission(**event["submission"])
        application = asyncio.run(self.applications.get(mine.name))
        if event["outcome"] != "completed":
            # A failed application no longer runs. One that we stop may still run: wait until its pods are gone.
            self._end(mine, wait=event["outcome"] != "failed")
            self._fail(mine, application, event)
        outcome = {
            **self._result(self.result_uri(context, mine.name)),
            "application": mine.name,
            "state": event["state"],
            "seconds": _seconds(application),
        }
        outcome["spark"] = self._metrics(_application_id(application))
        self._tell_published(context, outcome.get("published") or {})
        self._end(mine, wait=False)
        self._store(context).write(replace(mine, done=True))
        return outcome

    def on_kill(self) -> None:
        """Deletes this submission's application, unless another try has adopted it."""
        # After the signal handler, `execute` continues. If it creates an application then, `_check_still_ours` deletes
        # that application.
        self._killed = True
        submission = self._submission
        if submission is None:
            return
        # In a thread, because this thread may be running an event loop.
        with ThreadPoolExecutor(1) as pool:
            deleted = pool.submit(
                asyncio.run, self.applications.end(submission.name, owner=submission.owner, seconds=_KILL_SECONDS)
            ).result()
        if deleted:
            self.log.info("SparkApplication %s was deleted with its task", submission.name)

    def _tell_published(self, context: Context, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Emits an event for each partition that the driver has published, on the outlets of those data sets."""
        for outlet in self.outlets:
            for name, report in reports.items():
                if outlet == published(DataSet(name)):
                    partitions = [*report["published"], *report["current"]]
                    context["outlet_events"][outlet].add_partitions(partitions)

    # --- submission

    def _submit(self, context: Context) -> SparkSubmission:
        version = self._version()
        arguments = self._arguments(context)
        inputs = self._inputs(arguments)
        earlier = self._store(context).read()
        adopted = self._clear_the_way(context, earlier, inputs)
        if adopted is not None:
            self._check_still_ours(context, adopted)
            return adopted
        namespace = asyncio.run(self.applications.find_namespace())
        number = earlier.number if earlier else 0
        while True:
            number += 1
            name = TaskInstance.of(context).application_name(number)
            submission = self._submission = SparkSubmission(number, uuid.uuid4().hex, inputs, name, namespace)
            # Recorded before it is created, so that a later try knows which application to look for.
            self._store(context).write(submission)
            manifest = self._manifest(context, submission, version, arguments)
            if asyncio.run(self.applications.create(manifest)) is not None:
                self.log.info("Submitted SparkApplication %s: job %s, version %s", submission.name, self.job, version)
                self._check_still_ours(context, submission)
                return submission
            self.log.warning("Another SparkApplication has the name %s; trying the next number", submission.name)

    def _clear_the_way(self, context: Context, earlier: SparkSubmission | None, inputs: str) -> SparkSubmission | None:
        """Adopts the earlier application if it runs on the same inputs. Deletes all others of this task instance."""
        adopted = None
        selector = f"{INSTANCE_LABEL}={TaskInstance.of(context).digest}"
        for application in asyncio.run(self.applications.find(selector)):
            name, state = application["metadata"]["name"], ApplicationState.of(application)
            if earlier and not earlier.done and is_adoptable(application, earlier.name, inputs):
                namespace = application["metadata"]["namespace"]
                submission = SparkSubmission(earlier.number, uuid.uuid4().hex, inputs, name, namespace)
                self._submission = submission
                self._store(context).write(submission)
                if self._adopt(submission):
                    self.log.info("SparkApplication %s is %s: this try adopts it", name, state or "new")
                    adopted = submission
                    continue
            if state.over and not self.delete_on_termination:
                continue
            self.log.info("SparkApplication %s of an earlier try is %s: deleting it first", name, state or "new")
            asyncio.run(self.applications.end(name))
        # The application of a killed try may be gone while its pods still run.
        others_than = adopted.name if adopted else ""
        asyncio.run(self.applications.await_no_pods(selector, others_than=others_than))
        return adopted

    def _adopt(self, submission: SparkSubmission) -> bool:
        # Its status may change between our read and our patch: then try again. An application that is gone or being
        # deleted cannot be adopted.
        while (application := asyncio.run(self.applications.get(submission.name))) is not None:
            if not is_adoptable(application, submission.name, submission.inputs):
                return False
            if asyncio.run(self.applications.adopt(application, submission.owner)):
                return True
        return False

    def _check_still_ours(self, context: Context, submission: SparkSubmission) -> None:
        """Deletes the application if another try has taken over, or if this task was killed, during the submission."""
        kept = self._store(context).read()
        if self._killed or (kept and kept.owner != submission.owner):
            asyncio.run(self.applications.end(submission.name, owner=submission.owner))
            why = "this task was killed" if self._killed else "another try of this task has taken over"
            raise SparkApplicationError(
                f"SparkApplication {submission.name} was deleted: {why} while this try submitted or adopted it."
            )

    def _manifest(
        self, context: Context, submission: SparkSubmission, version: str, arguments: Sequence[str]
    ) -> dict[str, Any]:
        return SparkApplication(
            name=submission.name,
            job=self.job,
            version=version,
            arguments=[*arguments, "--result", self.result_uri(context, submission.name)],
            profile=self.profile,
            labels=TaskInstance.of(context).labels(),
            annotations={OWNER: submission.owner, INPUTS: submission.inputs},
            namespace=submission.namespace,
            spark_conf=self.spark_conf or {},
        ).manifest()

    def _arguments(self, context: Context) -> list[str]:
        arguments = ["--run", TaskInstance.of(context).run]
        if self.data_set is not None:
            arguments += ["--data-set", self.data_set.to_json()]
            if self.data_set.grain is not None:
                partitions = self.window(context).partitions
                arguments += ["--start", partitions[0], "--end", partitions[-1]]
                if context["params"].get("force") is True:
                    user = getattr(context["dag_run"], "triggering_user_name", None)
                    arguments += ["--accept-refused", user or "a run without a user"]
        return arguments + [str(argument) for argument in self.arguments]

    def _inputs(self, arguments: Sequence[str]) -> str:
        """Digest of the inputs. The version pushed last is not part of it: a running application keeps its code."""
        inputs = [self.job, self.jobs_version or "", self.profile, dict(self.spark_conf or {}), list(arguments)]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]

    def _version(self) -> str:
        client = self._s3
        # The version that was deployed with this DAG, so that a run keeps its code as it keeps its DAG.
        version = self.jobs_version or versions.of_bundle(self.dag.fileloc) or versions.current(client)
        jobs = versions.jobs(client, version)
        if self.job not in jobs:
            raise ConfigurationError(
                f"Version {version} of the job code has no job {self.job!r}.",
                hint=f"It has {', '.join(jobs)}. If the job is new, push it with `trilake jobs push`.",
            )
        return version

    # --- what is kept between tries

    def _store(self, context: Context) -> SubmissionStore[SparkSubmission]:
        return SubmissionStore(context, STATE_KEY, SparkSubmission)

    # --- the end

    def _end(self, submission: SparkSubmission, *, wait: bool) -> None:
        """Deletes the application. If that fails, it only logs a warning: the job's outcome is more important."""
        if not self.delete_on_termination:
            self.log.info("SparkApplication %s is kept", submission.name)
            return
        try:
            if not asyncio.run(self.applications.end(submission.name, owner=submission.owner, wait=wait)):
                self.log.warning("SparkApplication %s belongs to another try now; it is not deleted", submission.name)
        except (TrilakeError, ApiException) as e:
            self.log.warning("SparkApplication %s could not be deleted: %s", submission.name, e)

    def _fail(
        self, submission: SparkSubmission, application: dict[str, Any] | None, event: Mapping[str, Any]
    ) -> NoReturn:
        seconds = _seconds(application)
        after = f" after {seconds} s" if seconds is not None else ""
        what = {
            "failed": f"is {event['state']}{after}",
            "gone": f"is gone: another process or person deleted it while it was {event['state'] or 'new'}",
            "not_started": f"did not start within {self.startup_timeout_seconds} s: it is {event['state'] or 'new'}",
            "too_long": f"reached its time limit: it was {event['state'] or 'new'}",
            "error": "cannot be watched",
        }[event["outcome"]]
        raise SparkApplicationError(
            explained(
                f"SparkApplication {submission.name} (job {self.job}, namespace {submission.namespace}) {what}.", event
            )
        )

    def result_uri(self, context: Context, name: str) -> str:
        """Where the job of an application writes its result."""
        return f"s3://{ARTIFACTS_BUCKET}/runs/{name}/result.json"

    def _result(self, uri: str) -> dict[str, Any]:
        """What the job wrote to ``--result``; empty if it wrote nothing."""
        client = self._s3
        bucket, key = s3.split_uri(uri)
        try:
            return dict(json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read()))
        except client.exceptions.NoSuchKey:
            return {}
        except (TypeError, ValueError):
            raise TrilakeError(
                f"{uri} is not a JSON object.", hint="The job must write json.dumps of a dictionary."
            ) from None

    def _metrics(self, application_id: str | None) -> dict[str, Any]:
        """Spark's metrics from the event log. Empty if it cannot be read: the job itself has succeeded."""
        try:
            metrics = event_log.read(self._s3, application_id) if application_id else None
        except Exception as e:
            self.log.warning("The event log of %s cannot be read (%s)", application_id, type(e).__name__)
            return {}
        if metrics is None:
            self.log.info("There is no event log of %s", application_id or "this application")
            return {}
        self.log.info("Spark: %s", metrics)
        return metrics.to_dict()

    # --- connections

    @cached_property
    def _s3(self) -> Any:
        return s3.client(S3Endpoint.from_connection(BaseHook.get_connection(self.aws_conn_id)))

    @cached_property
    def _connection_extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = BaseHook.get_connection(self.kubernetes_conn_id).extra_dejson
        return extras

    @cached_property
    def applications(self) -> SparkApplicationHook:
        """The hook of the connection. It has all it needs from Airflow, so that on_kill can use it at any time."""
        return SparkApplicationHook(
            self.kubernetes_conn_id, namespace=self.namespace, connection_extras=self._connection_extras
        )


def explained(what: str, event: Mapping[str, Any]) -> str:
    """An error message: `what` happened to an application, and below it the reasons from the trigger's event."""
    lines = [what]
    if event["error"]:
        lines.append(f"Reason: {event['error']}")
    lines += [f"Pod {problem}" for problem in event.get("pod_problems") or []]
    if event["tail"]:
        lines += ["The driver's last lines:", *(f"  {line}" for line in event["tail"])]
    return "\n".join(lines)


@cache
def _ignored_options() -> frozenset[str]:
    """Options of the official operator, and of its base, the pod operator, that this operator does not use."""

    def options(operator: type) -> set[str]:
        return set(inspect.signature(operator.__init__).parameters)  # type: ignore[misc]

    inherited = options(SparkKubernetesOperator) | options(KubernetesPodOperator)
    return frozenset(inherited - options(SparkApplicationOperator) - options(BaseOperator))


def _refuse_ignored(job: str, options: Mapping[str, Any]) -> None:
    """:raises ConfigurationError: an option of the official operator would have no effect."""
    if ignored := sorted(_ignored_options() & set(options)):
        raise ConfigurationError(
            f"SparkApplicationOperator (job {job}) does not use {', '.join(ignored)} of SparkKubernetesOperator.",
            hint=next((_INSTEAD[name] for name in ignored if name in _INSTEAD), _MANIFEST_HINT),
        )


def _application_id(application: Mapping[str, Any] | None) -> str | None:
    """Spark's own id, from the status of the SparkApplication."""
    spark_id = ((application or {}).get("status") or {}).get("sparkApplicationId")
    return str(spark_id) if spark_id else None


def _seconds(application: Mapping[str, Any] | None) -> float | None:
    """Seconds from the submission to the driver's end; None: unknown."""
    status = (application or {}).get("status") or {}
    first, last = status.get("lastSubmissionAttemptTime"), status.get("terminationTime")
    if not first or not last:
        return None
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
