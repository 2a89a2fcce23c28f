"""A job run on this machine against the embedded platform, without Airflow and without a trace: a dry run.

Spark gets the settings that the job's SparkApplication would have on this platform. It commits nothing: the job ends
at its commit (`trilake.spark.dry_run`), and PostgreSQL, where every commit to the lake is decided, is opened
read-only, so that a job which writes past `Job` is refused as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake import DataSet, Window
from trilake.platform.embedded import dry_run_driver
from trilake.platform.embedded.home import Home
from trilake.platform.embedded.kubernetes import submission
from trilake.platform.embedded.kubernetes.configuration import ClusterConfiguration
from trilake.platform.embedded.kubernetes.driver_process import session_members
from trilake.platform.embedded.processes import DRIVER, HOME_MARKER, SERVICE_MARKER, last_lines
from trilake.spark import versions
from trilake.spark.application import SparkApplication
from trilake.spark.counts import Counts
from trilake.spark.dry_run import RESULT_FILE, ROWS_FOLDER

_READ_ONLY = "-c default_transaction_read_only=on"
_LOG = "driver.log"
_LOG_LINES = 15
_PREFIX = "dry-run-"
_CLASSES = "classes.jsa"
_NO_VERSION = "0" * 16
# A JVM that lives for seconds: compiling well what runs once costs more than it saves.
_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class JobFailedError(TrilakeError):
    """The job raised, or its driver did not come to it."""


@dataclass(frozen=True)
class Task:
    """What a SparkApplicationOperator says of a job."""

    job: str
    data_set: DataSet
    arguments: tuple[str, ...] = ()
    profile: str = "small"
    spark_conf: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DryRunResult:
    """What the job would commit.

    :param columns: name and Spark's type of each column, in the job's order.
    :param inputs: the objects that were read.
    :param refused: ``data_set``, ``reason``, ``rows`` and ``examples`` (``file``, ``raw``), the most frequent first.
    :param rows: a folder of Parquet files.
    """

    counts: Mapping[str, Counts]
    columns: Mapping[str, str]
    inputs: Sequence[str]
    refused: Sequence[Mapping[str, Any]]
    rows: Path


@contextmanager
def scratch(home: Home) -> Iterator[Path]:
    """A folder for one dry run. What one that was killed has left goes when the next one begins."""
    for left in home.run.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=home.run) as folder:
        yield Path(folder)


def run(home: Home, endpoints: Endpoints, task: Task, window: Window, folder: Path, *, limit: int = 0) -> DryRunResult:
    """Run the job over the window. Nothing is written but files in `folder`.

    :param limit: lines read of each partition; 0: all.
    :raises JobFailedError: the job raised; the message has its frames in the project's files.
    :raises ConfigurationError: the project has no jobs, or the platform was never started.
    """
    _, archive = versions.build(home.project)
    (folder / dry_run_driver.ARCHIVE).write_bytes(archive)
    _ensure_catalog(endpoints)
    configuration = ClusterConfiguration.read(home.config("kubernetes.json"))
    archive_of_classes = _class_archive(home, configuration)
    code = _drive(_submission(home, configuration, task, window, folder, archive_of_classes, limit), folder)
    if (made := folder / _CLASSES).exists():
        archive_of_classes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.replace(archive_of_classes)
    if code:
        raise _failure(task.job, code, folder)
    try:
        document = json.loads((folder / RESULT_FILE).read_text())
    except FileNotFoundError:
        raise JobFailedError(
            f"Job {task.job} ended without a commit: there is nothing to compare.",
            hint="A dry run shows what `Job.commit` would have committed.",
        ) from None
    counts = {name: Counts(**count) for name, count in document["counts"].items()}
    return DryRunResult(counts, document["columns"], document["inputs"], document["refused"], folder / ROWS_FOLDER)


def _ensure_catalog(endpoints: Endpoints) -> None:
    """Make Iceberg's own two tables. The first process that opens the catalog makes them; a read-only job cannot."""
    from trilake.lake.catalog import open_catalog
    from trilake.postgres.connection import connect

    with connect(endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('iceberg_tables') IS NULL")
        row = cursor.fetchone()
    if row and row[0]:
        open_catalog(endpoints.lake, endpoints.s3).close()


def _class_archive(home: Home, configuration: ClusterConfiguration) -> Path:
    """Spark's classes as this Java has loaded and verified them: a third of a short run's work, done once (230 MB).

    The JVM ignores an archive of other classes. The name ensures that each set of classes has its own archive.
    """
    parts = (configuration.java_home, configuration.jars, configuration.spark_home)
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
    return home.data("dry-run") / f"{digest}.jsa"


def _submission(
    home: Home,
    configuration: ClusterConfiguration,
    task: Task,
    window: Window,
    folder: Path,
    classes: Path,
    limit: int,
) -> submission.SubmitCommand:
    arguments = [
        *(str(folder), task.job),
        *("--run", "a dry run", "--data-set", task.data_set.to_json()),
        *("--start", window.partitions[0], "--end", window.partitions[-1]),
        *("--dry-run", str(folder), "--limit", str(limit)),
        *task.arguments,
    ]
    conf = {**task.spark_conf, "spark.sql.catalog.lake.jdbc.options": _READ_ONLY}
    application = SparkApplication(
        "dry-run", task.job, _NO_VERSION, profile=task.profile, spark_conf=conf, event_log=None
    ).manifest()
    sharing = (
        f"-XX:SharedArchiveFile={classes}" if classes.exists() else f"-XX:ArchiveClassesAtExit={folder / _CLASSES}"
    )
    application["spec"]["driver"]["javaOptions"] = f"{_JAVA_OPTIONS} {sharing}"
    application["spec"] |= {"mainApplicationFile": dry_run_driver.__file__, "arguments": arguments}
    prepared = submission.prepare(application, folder.name, folder, configuration)
    submission.write_files(prepared, folder)
    # `trilake down` ends it if nobody else does
    prepared.environment.update({HOME_MARKER: str(home.path), SERVICE_MARKER: DRIVER, "PGOPTIONS": _READ_ONLY})
    return prepared


def _drive(prepared: submission.SubmitCommand, folder: Path) -> int:
    """The driver's exit code. Whatever happens here, it has ended with all that it started."""
    with open(folder / _LOG, "wb") as log:
        driver = subprocess.Popen(
            prepared.command,
            env=prepared.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return driver.wait()
        finally:
            while members := session_members(driver.pid):
                for pid in members:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                driver.poll()
                time.sleep(0.02)


def _failure(job: str, code: int, folder: Path) -> JobFailedError:
    try:
        error = json.loads((folder / dry_run_driver.ERROR_FILE).read_text())
    except FileNotFoundError:
        told = "\n  ".join(last_lines(folder / _LOG, _LOG_LINES) or ["(nothing)"])
        return JobFailedError(f"Job {job}: its driver ended with exit code {code}. Its last output:\n  {told}")
    if error["ours"]:
        return JobFailedError(f"Job {job}: {error['message']}", hint=error["hint"])
    lines = [f"Job {job} failed."]
    for frame in error["frames"]:
        lines += [f"  {frame['file']}:{frame['line']} {frame['in']}".rstrip(), f"    {frame['code']}"]
    return JobFailedError("\n".join([*lines, f"{error['type']}: {error['message']}"]))
