"""Runs a Spark job on Kubernetes: once for each try that needs it, never two at a time, and nothing left behind."""

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

# As the official operator has it: image pull and a place on a node.
STARTUP_TIMEOUT_SECONDS = 600
# A window that takes longer than a day never catches up with its schedule.
RUN_TIMEOUT_SECONDS = 24 * 3600
# A day less than the lake's upkeep leaves files that no snapshot knows yet (`trilake.spark.maintenance.ORPHANS_STAY`).
LONGEST_RUN_SECONDS = 2 * 24 * 3600
# Airflow's own time limit on a deferred task, after ours: it fails the task without asking anybody to clean up.
_DEFER_SLACK_SECONDS = 300
# on_kill is called while a process is being ended: the rest goes by itself once the application is deleted.
_KILL_SECONDS = 20.0

Result = TypeVar("Result")

# What takes the place of an official option that would have no effect.
_MANIFEST_HINT = (
    "The operator writes the manifest itself, from job, profile, spark_conf and jobs_version. For a manifest of your "
    "own use the official SparkKubernetesOperator."
)
_INSTEAD = {
    "image": "The image is the platform's. A job's code is in spark_jobs/ and needs no image of its own.",
    "code_path": "Give job=, the name of a module of spark_jobs/.",
    "name": "The name follows from the DAG, the task and the run.",
    "random_name_suffix": "The name follows from the DAG, the task and the run.",
    "reattach_on_restart": "A later try always goes on with an application that runs on the same inputs.",
    "container_resources": "Choose a profile (small, medium, large), or give spark_conf.",
    "labels": "The labels name the DAG, the task and the run.",
}


class SparkApplicationError(TrilakeError, AirflowException):
    """A Spark job that failed, was ended or never started: what is known of it, in one message."""


class SparkApplicationOperator(WindowedOperator, SparkKubernetesOperator):
    """Run a job of ``spark_jobs/`` as a SparkApplication.

    The job gets ``--run``, ``--data-set``, ``--start`` and ``--end`` (of the window that it works on), `arguments`, and
    ``--result``. What it writes to ``--result`` (a JSON object, in S3) is in the task's XCom, key by key, beside
    ``application``, ``state``, ``seconds`` and ``spark`` (the event log's `trilake.spark.event_log.SparkMetrics`):
    of a job that commits, ``task.output["snapshot_id"]`` is its snapshot. Of a job that publishes by itself,
    ``outlets=[trilake.assets.published(data_set)]`` gets an event for each partition.

    A submission is written down before it is made. A try that comes after a lost worker or scheduler adopts the
    application if it is still at work on the same inputs, and ends it otherwise; so no two run at a time. Whoever is
    killed ends its own submission alone.

    :param job: the module's name.
    :param data_set: what the job makes; with a grain, the task works on a window of its partitions.
    :param arguments: more for the job. They can be read by everyone who may read the application: never a secret.
    :param profile: small, medium or large, see `trilake.spark.application.PROFILES`.
    :param jobs_version: of the job code; None: the one pushed last.
    :param namespace: None: the one of the connection.
    :param spark_conf: settings over the usual ones. Never a secret.
    :param startup_timeout_seconds: for its driver to run.
    :param run_timeout_seconds: for all of it, two days at the most; `execution_timeout`, if shorter, comes first.
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
    # An argument that ends in .json is an argument, not a file of ours.
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
                f"Job {job} may not run for {run_timeout_seconds} s: what it has written and not committed would be "
                "taken for a dead job's.",
                hint=f"At most {LONGEST_RUN_SECONDS} s: run its window in parts.",
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
        # the official operator's default is a namespace that we do not use
        self.namespace = namespace
        self.kubernetes_conn_id: str = kubernetes_conn_id
        self.spark_conf = spark_conf
        self.aws_conn_id = aws_conn_id
        self.run_timeout_seconds = run_timeout_seconds
        self._submission: SparkSubmission | None = None
        self._killed = False

    # --- the task

    def execute(self, context: Context) -> Any:
        """Submit, and wait outside the worker (or here, with ``deferrable=False``).

        :raises SparkApplicationError: the job failed, was ended or did not start.
        :raises ConfigurationError: no such version, window, profile or connection; nothing was submitted.
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
        """Read what the job made of it, and clear up."""
        mine = self._submission = SparkSubmission(**event["submission"])
        application = asyncio.run(self.applications.get(mine.name))
        if event["outcome"] != "completed":
            # one that failed by itself is over; what we end is waited for
            self._end(mine, wait=event["outcome"] != "failed")
            self._fail(mine, application, event)
        outcome = {
            **self._result(mine.name),
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
        """End this submission's application; one that another try has adopted stays."""
        # The signal's handler returns to where it came: what is being created is created, and seen to then.
        self._killed = True
        submission = self._submission
        if submission is None:
            return
        # In a thread: the signal may have come while this one runs an event loop of its own.
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(
                asyncio.run, self.applications.end(submission.name, owner=submission.owner, seconds=_KILL_SECONDS)
            ).result()
        if ended:
            self.log.info("SparkApplication %s was deleted with its task", submission.name)

    def _tell_published(self, context: Context, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Events of the outlets that stand for what the driver has published, a partition each."""
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
            # Written down before it is created: a later try knows what to look for, whether or not it was created.
            self._store(context).write(submission)
            manifest = self._manifest(context, submission, version, arguments)
            if asyncio.run(self.applications.create(manifest)) is not None:
                self.log.info(
                    "SparkApplication %s is submitted: job %s, version %s", submission.name, self.job, version
                )
                self._check_still_ours(context, submission)
                return submission
            self.log.warning("There is another SparkApplication %s; taking the next number", submission.name)

    def _clear_the_way(self, context: Context, earlier: SparkSubmission | None, inputs: str) -> SparkSubmission | None:
        """Adopt the predecessor if it is at work on the same, and end all others of this task instance."""
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
                    self.log.info("SparkApplication %s is %s: this try goes on with it", name, state or "new")
                    adopted = submission
                    continue
            if state.over and not self.delete_on_termination:
                continue
            self.log.info("SparkApplication %s of an earlier try is %s: it is ended first", name, state or "new")
            asyncio.run(self.applications.end(name))
        # The application of a try that was killed may be gone before its pods are.
        others_than = adopted.name if adopted else ""
        asyncio.run(self.applications.await_no_pods(selector, others_than=others_than))
        return adopted

    def _adopt(self, submission: SparkSubmission) -> bool:
        # its status changes under our hands; if it is gone, or on its way out, there is nothing to adopt
        while (application := asyncio.run(self.applications.get(submission.name))) is not None:
            if not is_adoptable(application, submission.name, submission.inputs):
                return False
            if asyncio.run(self.applications.adopt(application, submission.owner)):
                return True
        return False

    def _check_still_ours(self, context: Context, submission: SparkSubmission) -> None:
        """A worker that was cut off may come back after its successor, or be killed: then this one is one too many."""
        kept = self._store(context).read()
        if self._killed or (kept and kept.owner != submission.owner):
            asyncio.run(self.applications.end(submission.name, owner=submission.owner))
            why = "this task was killed" if self._killed else "another try of this task has gone on"
            raise SparkApplicationError(
                f"SparkApplication {submission.name} was ended: {why} while it was submitted or taken over."
            )

    def _manifest(
        self, context: Context, submission: SparkSubmission, version: str, arguments: Sequence[str]
    ) -> dict[str, Any]:
        return SparkApplication(
            name=submission.name,
            job=self.job,
            version=version,
            arguments=[*arguments, "--result", _result_uri(submission.name)],
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
        return arguments + [str(argument) for argument in self.arguments]

    def _inputs(self, arguments: Sequence[str]) -> str:
        """Digest of what is asked for. The version pushed last does not count: a run in flight keeps its code."""
        asked = [self.job, self.jobs_version or "", self.profile, dict(self.spark_conf or {}), list(arguments)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def _version(self) -> str:
        client = self._s3
        # the one that was deployed with this DAG: a run that is under way keeps its code, as it keeps its DAG
        version = self.jobs_version or versions.of_bundle(self.dag.fileloc) or versions.current(client)
        known = versions.jobs(client, version)
        if self.job not in known:
            raise ConfigurationError(
                f"Version {version} of the job code has no job {self.job!r}.",
                hint=f"It has {', '.join(known)}. Push the new one with `trilake jobs push`.",
            )
        return version

    # --- what is kept between tries

    def _store(self, context: Context) -> SubmissionStore[SparkSubmission]:
        return SubmissionStore(context, STATE_KEY, SparkSubmission)

    # --- the end

    def _end(self, submission: SparkSubmission, *, wait: bool) -> None:
        """Delete the application. That it cannot be is no reason to forget what became of the job."""
        if not self.delete_on_termination:
            self.log.info("SparkApplication %s is kept", submission.name)
            return
        try:
            if not asyncio.run(self.applications.end(submission.name, owner=submission.owner, wait=wait)):
                self.log.warning("SparkApplication %s is another try's by now: it stays", submission.name)
        except (TrilakeError, ApiException) as e:
            self.log.warning("SparkApplication %s could not be cleared away: %s", submission.name, e)

    def _fail(
        self, submission: SparkSubmission, application: dict[str, Any] | None, event: Mapping[str, Any]
    ) -> NoReturn:
        seconds = _seconds(application)
        after = f" after {seconds} s" if seconds is not None else ""
        what = {
            "failed": f"is {event['state']}{after}",
            "gone": f"is gone: it was deleted by somebody else while it was {event['state'] or 'new'}",
            "not_started": f"did not start within {self.startup_timeout_seconds} s: it is {event['state'] or 'new'}",
            "too_long": f"took too long: it was {event['state'] or 'new'} when its time was over",
            "error": "cannot be waited for",
        }[event["outcome"]]
        raise SparkApplicationError(
            explained(
                f"SparkApplication {submission.name} (job {self.job}, namespace {submission.namespace}) {what}.", event
            )
        )

    def _result(self, name: str) -> dict[str, Any]:
        """What the job wrote to --result; empty if it wrote nothing."""
        client = self._s3
        bucket, key = s3.split_uri(_result_uri(name))
        try:
            return dict(json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read()))
        except client.exceptions.NoSuchKey:
            return {}
        except (TypeError, ValueError):
            raise TrilakeError(
                f"{_result_uri(name)} is not a JSON object.", hint="The job writes it by json.dumps of a dictionary."
            ) from None

    def _metrics(self, application_id: str | None) -> dict[str, Any]:
        """What the event log says; empty where there is none: that is no reason to fail what is done."""
        try:
            found = event_log.read(self._s3, application_id) if application_id else None
        except Exception as e:
            self.log.warning("The event log of %s cannot be read (%s)", application_id, type(e).__name__)
            return {}
        if found is None:
            self.log.info("There is no event log of %s", application_id or "this application")
            return {}
        self.log.info("Spark: %s", found)
        return found.to_dict()

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
        """The connection's applications. It needs nothing more of Airflow, so that on_kill can use it at any time."""
        return SparkApplicationHook(
            self.kubernetes_conn_id, namespace=self.namespace, connection_extras=self._connection_extras
        )


def explained(what: str, event: Mapping[str, Any]) -> str:
    """`what` came of an application, and under it what the trigger's event knows of the reasons."""
    lines = [what]
    if event["error"]:
        lines.append(f"Reason: {event['error']}")
    lines += [f"Pod {problem}" for problem in event.get("pod_problems") or []]
    if event["tail"]:
        lines += ["The driver's last lines:", *(f"  {line}" for line in event["tail"])]
    return "\n".join(lines)


@cache
def _ignored_options() -> frozenset[str]:
    """Options of the official operator, and of the pod operator below it, that this operator would not use."""

    def options(operator: type) -> set[str]:
        return set(inspect.signature(operator.__init__).parameters)  # type: ignore[misc]

    inherited = options(SparkKubernetesOperator) | options(KubernetesPodOperator)
    return frozenset(inherited - options(SparkApplicationOperator) - options(BaseOperator))


def _refuse_ignored(job: str, given: Mapping[str, Any]) -> None:
    """:raises ConfigurationError: an option of the official operator that would have no effect."""
    if ignored := sorted(_ignored_options() & set(given)):
        raise ConfigurationError(
            f"SparkApplicationOperator (job {job}) does not use {', '.join(ignored)} of SparkKubernetesOperator.",
            hint=next((_INSTEAD[name] for name in ignored if name in _INSTEAD), _MANIFEST_HINT),
        )


def _result_uri(name: str) -> str:
    return f"s3://{ARTIFACTS_BUCKET}/runs/{name}/result.json"


def _application_id(application: Mapping[str, Any] | None) -> str | None:
    """Spark's own, as the CR's status has it."""
    found = ((application or {}).get("status") or {}).get("sparkApplicationId")
    return str(found) if found else None


def _seconds(application: Mapping[str, Any] | None) -> float | None:
    """From submission to the driver's end."""
    status = (application or {}).get("status") or {}
    first, last = status.get("lastSubmissionAttemptTime"), status.get("terminationTime")
    if not first or not last:
        return None
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
