"""Builds the SparkApplication (sparkoperator.k8s.io/v1beta2) that is submitted to vps_2 for one run of a job."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from trilake.errors import ConfigurationError
from trilake.lake.data_set import WAREHOUSE
from trilake.spark.event_log import EVENT_LOG, EVENT_LOG_CONF

API_GROUP = "sparkoperator.k8s.io"
API_VERSION = "v1beta2"
PLURAL = "sparkapplications"

SPARK_VERSION = "4.1.4"
IMAGE = f"trilake/spark:{SPARK_VERSION}"
MAIN_FILE = "local:///opt/trilake/run_job.py"

NAMESPACE = "spark"
# Of agents' applications on the hosts. Its Secret `JOBS_SECRET` has other keys, which can only read the lake.
AGENTS_NAMESPACE = "agents"
SERVICE_ACCOUNT = "spark"
# The Secret that holds the jobs' connections (AIRFLOW_CONN_*). The submitter names it and never reads it.
JOBS_SECRET = "trilake-jobs"  # noqa: S105

# After this time the operator deletes an application that still exists: its worker was lost, or a failure was kept.
TIME_TO_LIVE = timedelta(hours=24)

# spark-operator derives the name of a service (`<name>-ui-svc`) from it, and Spark the name of each executor's pod.
# Both are DNS labels, which have at most 63 characters.
MAX_NAME = 50
# The operator adds this suffix to the name to get the driver's pod. Some tools remove it to get the name.
DRIVER_SUFFIX = "-driver"
MAX_LABEL = 63

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")

# The image's user, and the restrictions that the namespace's pod security (restricted) requires.
_SECURITY_CONTEXT = {
    "runAsNonRoot": True,
    "runAsUser": 185,
    "runAsGroup": 185,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}

# Settings that every job's session needs. They have no address and no secret: the driver's environment has those.
SPARK_CONF: Mapping[str, str] = MappingProxyType(
    {
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "jdbc",
        "spark.sql.catalog.lake.jdbc.schema-version": "V1",
        "spark.sql.catalog.lake.io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
        "spark.sql.catalog.lake.warehouse": WAREHOUSE,
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.adaptive.enabled": "true",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        # A task's log should show the job's own lines. Spark would add hundreds of lines a minute and a progress bar.
        "spark.log.level": "WARN",
        "spark.ui.showConsoleProgress": "false",
    }
)


class ApplicationState(StrEnum):
    """Every state that spark-operator gives an application (v1beta2, 2.5)."""

    NEW = ""
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SUBMISSION_FAILED = "SUBMISSION_FAILED"
    PENDING_RERUN = "PENDING_RERUN"
    INVALIDATING = "INVALIDATING"
    SUCCEEDING = "SUCCEEDING"
    FAILING = "FAILING"
    SUSPENDING = "SUSPENDING"
    SUSPENDED = "SUSPENDED"
    RESUMING = "RESUMING"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def of(cls, application: Mapping[str, Any]) -> ApplicationState:
        """An application's state. A state that only a later operator has is UNKNOWN: neither started nor over."""
        text = ((application.get("status") or {}).get("applicationState") or {}).get("state") or ""
        try:
            return cls(text)
        except ValueError:
            return cls.UNKNOWN

    @property
    def over(self) -> bool:
        """Whether the state is final. This holds for applications that are never restarted, such as Trilake's."""
        return self in (ApplicationState.COMPLETED, ApplicationState.FAILED, ApplicationState.SUBMISSION_FAILED)

    @property
    def started(self) -> bool:
        """Whether the operator has seen the driver running."""
        return self in (
            ApplicationState.RUNNING,
            ApplicationState.SUCCEEDING,
            ApplicationState.FAILING,
            ApplicationState.COMPLETED,
            ApplicationState.FAILED,
        )


@dataclass(frozen=True)
class Profile:
    """The resources of a job. Memory is the JVM's heap, in the notation of Kubernetes and Spark (``2g``).

    :param executors: how many to start with. If `max_executors` is higher, Spark asks for more while tasks wait.
    """

    driver_cores: int
    driver_memory: str
    executors: int
    executor_cores: int
    executor_memory: str
    max_executors: int


SHUFFLE_PARTITIONS_PER_CORE = 8

# A driver mostly waits, so it requests half a core from Kubernetes. It may use a full core.
_DRIVER_CORE_REQUEST = "500m"

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "small": Profile(1, "1g", executors=1, executor_cores=1, executor_memory="1g", max_executors=1),
        "medium": Profile(1, "2g", executors=2, executor_cores=2, executor_memory="4g", max_executors=4),
        "large": Profile(2, "4g", executors=2, executor_cores=4, executor_memory="8g", max_executors=16),
    }
)


@dataclass(frozen=True)
class SparkApplication:
    """One run of one job.

    :param name: at most 50 lower-case letters, digits and dashes; the first is a letter. `application_name` makes one.
    :param job: a module of ``spark_jobs/``, without ``.py``.
    :param version: version of the job code, from `trilake.spark.versions.push`.
    :param arguments: arguments of the job. Everyone who can read the application can read them: never a secret.
    :param profile: small, medium or large (`PROFILES`).
    :param labels: for the application, the driver and the executors. Values are made valid with `label_value`.
    :param annotations: for the application only; any text.
    :param event_log: a folder (s3a), or None for no event log.
    :param time_to_live: how long a finished application stays if it is not deleted earlier.
    :param spark_conf: more settings. They override those that every job gets. Never a secret.
    """

    name: str
    job: str
    version: str
    arguments: Sequence[str] = ()
    profile: str = "small"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    image: str = IMAGE
    service_account: str = SERVICE_ACCOUNT
    secret: str = JOBS_SECRET
    event_log: str | None = EVENT_LOG
    time_to_live: timedelta = TIME_TO_LIVE
    spark_conf: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME or not _NAME.fullmatch(self.name) or DRIVER_SUFFIX in self.name:
            raise ConfigurationError(
                f"{self.name!r} is not a valid name for a SparkApplication.",
                hint=f"Use at most {MAX_NAME} lower-case letters, digits and dashes, without {DRIVER_SUFFIX!r}.",
            )
        if self.profile not in PROFILES:
            raise ConfigurationError(
                f"Job {self.job}: there is no profile {self.profile!r}.", hint=f"Use one of {', '.join(PROFILES)}."
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.job):
            raise ConfigurationError(f"{self.job!r} is not a job.", hint="Name a module of spark_jobs/, without .py.")

    def manifest(self) -> dict[str, Any]:
        """The application as a Kubernetes object."""
        profile = PROFILES[self.profile]
        labels = {key: label_value(value) for key, value in self.labels.items()}
        # The pods get credentials by the Secret's name only, so no manifest, log or event log contains them.
        pod: dict[str, Any] = {
            "labels": labels,
            "envFrom": [{"secretRef": {"name": self.secret}}],
            "securityContext": _SECURITY_CONTEXT,
        }
        spec: dict[str, Any] = {
            "type": "Python",
            "pythonVersion": "3",
            "mode": "cluster",
            "sparkVersion": SPARK_VERSION,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "mainApplicationFile": MAIN_FILE,
            "arguments": ["--version", self.version, "--job", self.job, "--", *self.arguments],
            # Only Airflow retries, and each retry gets a new name.
            "restartPolicy": {"type": "Never"},
            "timeToLiveSeconds": int(self.time_to_live.total_seconds()),
            "sparkConf": self._conf(),
            "driver": {
                "cores": profile.driver_cores,
                "coreRequest": _DRIVER_CORE_REQUEST,
                "memory": profile.driver_memory,
                "serviceAccount": self.service_account,
                **pod,
            },
            "executor": {
                "instances": profile.executors,
                "cores": profile.executor_cores,
                "memory": profile.executor_memory,
                **pod,
            },
        }
        if profile.max_executors > profile.executors:
            spec["dynamicAllocation"] = {
                "enabled": True,
                "initialExecutors": profile.executors,
                "minExecutors": 1,  # the next stage starts faster if one executor stays
                "maxExecutors": profile.max_executors,
            }
        manifest = {
            "apiVersion": f"{API_GROUP}/{API_VERSION}",
            "kind": "SparkApplication",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": dict(self.annotations),
            },
            "spec": spec,
        }
        copy: dict[str, Any] = json.loads(json.dumps(manifest))  # so that two manifests share no object
        return copy

    def _conf(self) -> dict[str, str]:
        conf = dict(SPARK_CONF)
        profile = PROFILES[self.profile]
        # Spark's default of 200 partitions would cost a small job more than its work. Adaptive execution can join small
        # partitions, so this number can be generous. It cannot split a partition that is too large.
        cores = profile.max_executors * profile.executor_cores
        conf["spark.sql.shuffle.partitions"] = str(SHUFFLE_PARTITIONS_PER_CORE * cores)
        # The pod of an ended executor stays as long as its driver, to show its log and why it ended. It uses nothing.
        conf["spark.kubernetes.executor.deleteOnTermination"] = "false"
        conf["spark.eventLog.enabled"] = "true" if self.event_log else "false"
        if self.event_log:
            conf |= {**EVENT_LOG_CONF, "spark.eventLog.dir": self.event_log}
        return {**conf, **self.spark_conf}


def application_name(*, dag_id: str, task_id: str, run_id: str, map_index: int = -1, number: int = 1) -> str:
    """The name of a task's `number`-th submission: readable words, then a hash that makes it unique."""
    if number < 1:
        raise ValueError(f"submissions are counted from 1, not {number}")
    tail = f"-{instance_digest(dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=map_index)}-{number}"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{dag_id}-{task_id}".lower()).strip("-")
    slug = slug.replace(DRIVER_SUFFIX, "-drv")
    slug = re.sub(r"^[^a-z]+", "", slug)[: MAX_NAME - len(tail)].strip("-") or "task"
    return slug + tail


def instance_digest(*, dag_id: str, task_id: str, run_id: str, map_index: int = -1) -> str:
    """Ten hexadecimal digits that identify one task instance. They are the same for all its tries."""
    return hashlib.sha256(json.dumps([dag_id, task_id, run_id, map_index]).encode()).hexdigest()[:10]


def label_value(text: str) -> str:
    """`text` as a label's value: at most 63 of ``A-Z a-z 0-9 - _ .``, with a letter or digit at both ends.

    A text that had to change gets a hash at its end, so that different texts stay different labels.
    """
    if len(text) <= MAX_LABEL and _LABEL_VALUE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[: MAX_LABEL - len(digest) - 1].strip("-_.")
    return f"{stem}-{digest}" if stem else digest
