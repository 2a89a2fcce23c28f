"""A dry run: a job runs on this machine against the embedded platform, without Airflow, and changes nothing there.

Spark gets the settings that the job's SparkApplication would have on this platform. The job ends at its commit
(`trilake.spark.dry_run`). Every commit to the lake is a transaction in PostgreSQL, and the connection to it is
read-only: a job that writes without `Job` gets an error too.
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
# The JVM lives for seconds: optimizing code that runs once costs more time than it saves.
_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class JobFailedError(TrilakeError):
    """The job raised an error, or its driver ended before the job started."""


@dataclass(frozen=True)
class Task:
    """The parameters of a SparkApplicationOperator that describe the job."""

    job: str
    data_set: DataSet
    arguments: tuple[str, ...] = ()
    profile: str = "small"
    spark_conf: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DryRunResult:
    """The rows and counts that the job would commit.

    :param columns: name and Spark's type of each column, in the job's order.
    :param inputs: the objects that the job read.
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
    """A temporary folder for one dry run. It also removes the folders of dry runs that were killed."""
    for leftover in home.run.glob(f"{_PREFIX}*"):
        pid = leftover.name.removeprefix(_PREFIX).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=home.run) as folder:
        yield Path(folder)


def run(home: Home, endpoints: Endpoints, task: Task, window: Window, folder: Path, *, limit: int = 0) -> DryRunResult:
    """Run the job over the window. It writes only files in `folder`.

    :param limit: how many lines of each partition to read; 0 means all.
    :raises JobFailedError: the job raised an error; the message has the stack frames in the project's files.
    :raises ConfigurationError: the project has no jobs, or the platform was never started.
    """
    _, jobs_zip = versions.build(home.project)
    (folder / dry_run_driver.ARCHIVE).write_bytes(jobs_zip)
    _ensure_catalog(endpoints)
    configuration = ClusterConfiguration.read(home.config("kubernetes.json"))
    archive_of_classes = _class_archive(home, configuration)
    code = _drive(_submission(home, configuration, task, window, folder, archive_of_classes, limit), folder)
    if (new_archive := folder / _CLASSES).exists():
        archive_of_classes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new_archive.replace(archive_of_classes)
    if code:
        raise _failure(task.job, code, folder)
    try:
        document = json.loads((folder / RESULT_FILE).read_text())
    except FileNotFoundError:
        raise JobFailedError(
            f"Job {task.job} ended without a commit, so there is nothing to compare.",
            hint="Call `Job.commit` in the job: a dry run shows what it would have committed.",
        ) from None
    counts = {name: Counts(**count) for name, count in document["counts"].items()}
    return DryRunResult(counts, document["columns"], document["inputs"], document["refused"], folder / ROWS_FOLDER)


def _ensure_catalog(endpoints: Endpoints) -> None:
    """Create Iceberg's two tables. The first process that opens the catalog creates them; a read-only job cannot."""
    from trilake.lake.catalog import open_catalog
    from trilake.postgres.connection import connect

    with connect(endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('iceberg_tables') IS NULL")
        row = cursor.fetchone()
    if row and row[0]:
        open_catalog(endpoints.lake, endpoints.s3).close()


def _class_archive(home: Home, configuration: ClusterConfiguration) -> Path:
    """The path of the JVM's class data archive: Spark's classes, loaded and verified (230 MB).

    It saves a third of a short run's work. The JVM ignores an archive of other classes, so its name depends on Java,
    Spark and the jars.
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
    class_sharing = (
        f"-XX:SharedArchiveFile={classes}" if classes.exists() else f"-XX:ArchiveClassesAtExit={folder / _CLASSES}"
    )
    application["spec"]["driver"]["javaOptions"] = f"{_JAVA_OPTIONS} {class_sharing}"
    application["spec"] |= {"mainApplicationFile": dry_run_driver.__file__, "arguments": arguments}
    prepared = submission.prepare(application, folder.name, folder, configuration)
    submission.write_files(prepared, folder)
    # by these, `trilake down` finds a driver whose parent was killed
    prepared.environment.update({HOME_MARKER: str(home.path), SERVICE_MARKER: DRIVER, "PGOPTIONS": _READ_ONLY})
    return prepared


def _drive(prepared: submission.SubmitCommand, folder: Path) -> int:
    """Run the driver and return its exit code. On return or error, the driver and its child processes have ended."""
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
        output = "\n  ".join(last_lines(folder / _LOG, _LOG_LINES) or ["(nothing)"])
        return JobFailedError(f"Job {job}: the driver ended with exit code {code}. Its last output:\n  {output}")
    if error["ours"]:
        return JobFailedError(f"Job {job}: {error['message']}", hint=error["hint"])
    lines = [f"Job {job} failed."]
    for frame in error["frames"]:
        lines += [f"  {frame['file']}:{frame['line']} {frame['in']}".rstrip(), f"    {frame['code']}"]
    return JobFailedError("\n".join([*lines, f"{error['type']}: {error['message']}"]))
