"""What is submitted to vps_2: a SparkApplication (sparkoperator.k8s.io/v1beta2), built from what a job needs to say."""

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
SERVICE_ACCOUNT = "spark"
# The Secret that holds the jobs' connections (AIRFLOW_CONN_*). The submitter names it and never reads it.
JOBS_SECRET = "trilake-jobs"  # noqa: S105

# After this an application that nobody deleted (a lost worker, a kept failure) is cleared away by the operator.
TIME_TO_LIVE = timedelta(hours=24)

# spark-operator derives a service (`<name>-ui-svc`) and Spark a pod per executor from it: both are DNS labels (63).
MAX_NAME = 50
# The operator derives the driver's pod from the name, and some tools the name from the pod, by this suffix.
DRIVER_SUFFIX = "-driver"
MAX_LABEL = 63

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")

# The image's user; the same restrictions that the namespace's pod security (restricted) demands.
_SECURITY_CONTEXT = {
    "runAsNonRoot": True,
    "runAsUser": 185,
    "runAsGroup": 185,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}

# What every job's session needs and holds no address and no secret: those come from the environment of the driver.
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
        # A task's log shows the job's own lines; Spark's are some hundred a minute, and its progress bar is noise.
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
        """An application's state. One that a later operator may bring is UNKNOWN: neither begun nor over."""
        text = ((application.get("status") or {}).get("applicationState") or {}).get("state") or ""
        try:
            return cls(text)
        except ValueError:
            return cls.UNKNOWN

    @property
    def over(self) -> bool:
        """Whether nothing more becomes of an application that is not to be restarted (as ours are)."""
        return self in (ApplicationState.COMPLETED, ApplicationState.FAILED, ApplicationState.SUBMISSION_FAILED)

    @property
    def started(self) -> bool:
        """Whether its driver has been seen running."""
        return self in (
            ApplicationState.RUNNING,
            ApplicationState.SUCCEEDING,
            ApplicationState.FAILING,
            ApplicationState.COMPLETED,
            ApplicationState.FAILED,
        )


@dataclass(frozen=True)
class Profile:
    """How much a job gets. Memory is the JVM's heap, in Kubernetes' and Spark's own notation (``2g``).

    :param executors: how many to start with; with `max_executors` above it, Spark asks for more while work waits.
    """

    driver_cores: int
    driver_memory: str
    executors: int
    executor_cores: int
    executor_memory: str
    max_executors: int


SHUFFLE_PARTITIONS_PER_CORE = 8

# A driver mostly waits: it asks Kubernetes for half a core and may use a whole one.
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

    :param name: at most 50 lower-case letters, digits and dashes, a letter first; `application_name` makes one.
    :param job: a module of ``spark_jobs/``, without ``.py``.
    :param version: of the job code, as `trilake.spark.versions.push` returned it.
    :param arguments: the job's own. They are readable to everyone who may read the application: never a secret.
    :param profile: small, medium or large (`PROFILES`).
    :param labels: on the application and on both kinds of pods; values are made to fit (`label_value`).
    :param annotations: on the application alone; any text.
    :param event_log: a folder (s3a), or None for no event log.
    :param time_to_live: how long a finished application stays if nobody deletes it.
    :param spark_conf: more settings, over the ones every job gets. Never a secret.
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
                f"{self.name!r} cannot name a SparkApplication.",
                hint=f"Use at most {MAX_NAME} lower-case letters, digits and dashes, without {DRIVER_SUFFIX!r}.",
            )
        if self.profile not in PROFILES:
            raise ConfigurationError(
                f"Job {self.job}: there is no profile {self.profile!r}.", hint=f"Use one of {', '.join(PROFILES)}."
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.job):
            raise ConfigurationError(f"{self.job!r} is not a job.", hint="Name a module of spark_jobs/, without .py.")

    def manifest(self) -> dict[str, Any]:
        """The application as Kubernetes takes it."""
        profile = PROFILES[self.profile]
        labels = {key: label_value(value) for key, value in self.labels.items()}
        # The application's and its pods' one way to credentials: by name, so they are in no manifest, log or event log
        both: dict[str, Any] = {
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
            # Only Airflow decides about a retry, and it gives the retry a new name.
            "restartPolicy": {"type": "Never"},
            "timeToLiveSeconds": int(self.time_to_live.total_seconds()),
            "sparkConf": self._conf(),
            "driver": {
                "cores": profile.driver_cores,
                "coreRequest": _DRIVER_CORE_REQUEST,
                "memory": profile.driver_memory,
                "serviceAccount": self.service_account,
                **both,
            },
            "executor": {
                "instances": profile.executors,
                "cores": profile.executor_cores,
                "memory": profile.executor_memory,
                **both,
            },
        }
        if profile.max_executors > profile.executors:
            spec["dynamicAllocation"] = {
                "enabled": True,
                "initialExecutors": profile.executors,
                "minExecutors": 1,  # one stays warm between two stages
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
        copy: dict[str, Any] = json.loads(json.dumps(manifest))  # no part is shared with another manifest
        return copy

    def _conf(self) -> dict[str, str]:
        conf = dict(SPARK_CONF)
        profile = PROFILES[self.profile]
        # Spark's own 200 would cost a small job more than its work; adaptive execution joins what is too small, and
        # cannot split what was never apart.
        cores = profile.max_executors * profile.executor_cores
        conf["spark.sql.shuffle.partitions"] = str(SHUFFLE_PARTITIONS_PER_CORE * cores)
        # An executor that has ended stays until its driver goes, as a pod that takes nothing: its log and why it ended.
        conf["spark.kubernetes.executor.deleteOnTermination"] = "false"
        conf["spark.eventLog.enabled"] = "true" if self.event_log else "false"
        if self.event_log:
            conf |= {**EVENT_LOG_CONF, "spark.eventLog.dir": self.event_log}
        return {**conf, **self.spark_conf}


def application_name(*, dag_id: str, task_id: str, run_id: str, map_index: int = -1, number: int = 1) -> str:
    """The name of a task's `number`-th submission: readable in front, unique by a hash of all of it behind."""
    if number < 1:
        raise ValueError(f"submissions are counted from 1, not {number}")
    tail = f"-{instance_digest(dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=map_index)}-{number}"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{dag_id}-{task_id}".lower()).strip("-")
    slug = slug.replace(DRIVER_SUFFIX, "-drv")
    slug = re.sub(r"^[^a-z]+", "", slug)[: MAX_NAME - len(tail)].strip("-") or "task"
    return slug + tail


def instance_digest(*, dag_id: str, task_id: str, run_id: str, map_index: int = -1) -> str:
    """Ten hexadecimal digits that stand for one task instance, whatever its try."""
    return hashlib.sha256(json.dumps([dag_id, task_id, run_id, map_index]).encode()).hexdigest()[:10]


def label_value(text: str) -> str:
    """`text` as a label's value (at most 63 of ``A-Z a-z 0-9 - _ .``, ending in letters or digits).

    What had to change gets a hash at its end, so that two different texts stay two different labels.
    """
    if len(text) <= MAX_LABEL and _LABEL_VALUE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[: MAX_LABEL - len(digest) - 1].strip("-_.")
    return f"{stem}-{digest}" if stem else digest
