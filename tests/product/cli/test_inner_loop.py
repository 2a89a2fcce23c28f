"""`trilake new dataset` and `trilake run`, as a data engineer uses them, and what they leave behind: nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.running_platform import PROJECT, Platform
from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints
from trilake.lake.catalog import open_catalog
from trilake.lake.data_set import BUCKETS, RAW_BUCKET
from trilake.platform.airflow_api import AirflowApi
from trilake.platform.embedded.airflow import administrator
from trilake.postgres.connection import connect

pytestmark = pytest.mark.slow

# of this run alone: on a platform that is kept, the one before has its table
NAME = f"parcels_{os.getpid()}"
JOB = f"{NAME}_curate"
MONTH = "2013-02"
# Two good rows, one of them twice; three lines that are refused for three reasons.
CSV = """id,happened_at,amount,note
1,2013-02-01T00:00:00Z,1.5,first
2,2013-02-28T23:59:59Z,,
2,2013-02-28T23:59:59Z,,
3,2013-03-01T00:00:00Z,1,too late
x,2013-02-01T00:00:00Z,1,no number
4,2013-02-01T00:00:00Z,1
"""
RUN_TIMEOUT_S = 600
# Spark on a busy machine
TIMEOUT_S = 280


@pytest.fixture(scope="module")
def project(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The platform's project with a data set just made, and a file of it in S3."""
    folder = Path(platform.home.project)
    made = platform.trilake("new", "dataset", NAME)
    assert made.returncode == 0, made.stderr
    file = tmp_path_factory.mktemp("put") / "parcels.csv"
    file.write_text(CSV)
    put = platform.trilake("put", NAME, MONTH, str(file))
    assert put.returncode == 0, put.stderr
    yield folder
    s3.client(platform.endpoints.s3).delete_object(Bucket=RAW_BUCKET, Key=f"{NAME}/{MONTH}/parcels.csv")
    for line in made.stdout.splitlines():
        if line.startswith("wrote "):
            (folder / line.removeprefix("wrote ")).unlink(missing_ok=True)
    shutil.rmtree(folder / "sql" / "clickhouse" / NAME, ignore_errors=True)


def dry_run(platform: Platform, *arguments: str, month: str = MONTH) -> dict[str, Any]:
    done = platform.trilake("run", JOB, "--partition", month, "--json", *arguments, timeout=TIMEOUT_S)
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "exit_code": done.returncode}


def state(platform: Platform) -> dict[str, Any]:
    """Everything that a run could leave: objects, rows of the lake's database, tables, files of the home."""
    endpoints: Endpoints = platform.endpoints
    client = s3.client(endpoints.s3)
    found: dict[str, Any] = {}
    for bucket in BUCKETS:
        if bucket != "logs":  # Airflow writes those all the time
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            found[bucket] = {item["Key"]: item.get("ETag") for page in pages for item in page.get("Contents", ())}
    open_catalog(endpoints.lake, endpoints.s3).close()  # a catalog makes its tables when it is first opened
    with connect(endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT catalog_name, table_namespace, table_name, metadata_location FROM iceberg_tables")
        found["tables"] = sorted(cursor.fetchall())
        cursor.execute("SELECT * FROM iceberg_namespace_properties")
        found["namespaces"] = sorted(map(str, cursor.fetchall()))
        cursor.execute("SELECT * FROM publications")
        found["publications"] = sorted(map(str, cursor.fetchall()))
    with Cluster(endpoints.clickhouse) as cluster:
        sql = "SELECT database, name FROM system.tables WHERE database != 'system' ORDER BY ALL"
        found["clickhouse"] = cluster.any_host(Statement(sql))
    found["run"] = sorted(path.name for path in platform.home.run.iterdir())
    return found


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_the_generated_tests_pass_as_they_are(platform: Platform, project: Path) -> None:
    shutil.copy(PROJECT / "tests" / "spark" / "conftest.py", project / "tests" / "spark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(PROJECT / "pyproject.toml")]
    command += ["--rootdir", str(project), "-o", "pythonpath=spark_jobs", str(project / "tests" / "spark")]
    path = f"{PROJECT / 'plugins'}:{project / 'spark_jobs'}"
    environment = {**platform.env, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=project, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_dry_run_tells_what_became_of_every_line_and_leaves_nothing(platform: Platform, project: Path) -> None:
    assert project
    before = state(platform)
    told = dry_run(platform)
    assert told["counts"] == {MONTH: {"rows_in": 6, "curated": 2, "quarantined": 3, "duplicates": 1}}
    refused = {one["reason"]: one for one in told["refused"]}
    assert {reason: one["rows"] for reason, one in refused.items()} == {
        "outside_window": 1,
        "type of id": 1,
        "field count": 1,
    }
    assert refused["type of id"]["examples"] == [
        {"file": f"{NAME}/{MONTH}/parcels.csv", "raw": "x,2013-02-01T00:00:00Z,1,no number"}
    ]
    assert told["columns"]["happened_on"] == "date"
    assert (told["trouble"], told["exit_code"]) == ([], 0)
    assert told["difference"] is None, "ClickHouse has no such table yet"
    assert state(platform) == before


def _error(platform: Platform, *arguments: str) -> str:
    done = platform.trilake("run", *arguments, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_partition_without_input_is_named(platform: Platform, project: Path) -> None:
    assert project
    assert f"s3://raw/{NAME}/2013-07/ is empty" in _error(platform, JOB, "--partition", "2013-07")


@pytest.mark.nightly
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_what_the_commit_would_refuse_of_the_input_does_not_fit_here_either(
    platform: Platform, project: Path, tmp_path: Path
) -> None:
    file, month = tmp_path / "long.csv", "2013-05"
    file.write_text(f"{CSV.splitlines()[0]}\n1,2013-05-01T00:00:00Z,1,{'a' * 9 * 2**20}\n")
    assert platform.trilake("put", NAME, month, str(file)).returncode == 0
    try:
        told = _error(platform, JOB, "--partition", month)
    finally:
        key = f"{NAME}/{month}/long.csv"
        s3.client(platform.endpoints.s3).delete_object(Bucket=RAW_BUCKET, Key=key)
    assert f"{NAME}/{month}/long.csv has lines of more than 8 MiB" in told


def test_an_unknown_job_and_a_wrong_partition_are_refused_at_once(platform: Platform, project: Path) -> None:
    assert project
    assert "There is no job nowhere in spark_jobs/" in _error(platform, "nowhere", "--partition", MONTH)
    assert "'February' is not a month" in _error(platform, JOB, "--partition", "February")


@pytest.mark.nightly
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_job_that_raises_shows_its_own_frames_alone(platform: Platform, project: Path) -> None:
    job = project / "spark_jobs" / f"{JOB}.py"
    text = job.read_text()
    job.write_text(text.replace('rows.select("id"', 'rows.select("no_such_column"'))
    try:
        told = _error(platform, JOB, "--partition", MONTH)
    finally:
        job.write_text(text)
    frames = [line.strip() for line in told.splitlines() if ".py:" in line]
    assert [frame.split(":")[0] for frame in frames] == [f"spark_jobs/{JOB}.py"] * 2, told
    assert "curate(raw.rows)" in told
    assert "no_such_column" in told
    assert "java" not in told.lower()


@pytest.mark.nightly
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_job_that_writes_past_its_commit_is_refused_by_the_catalog(platform: Platform, project: Path) -> None:
    job = project / "spark_jobs" / f"{JOB}.py"
    text = job.read_text()
    before = state(platform)
    sneaking = '        job.spark.sql("CREATE NAMESPACE lake.sneaked")\n        job.commit('
    job.write_text(text.replace("        job.commit(", sneaking))
    try:
        told = _error(platform, JOB, "--partition", MONTH)
    finally:
        job.write_text(text)
    assert "CREATE NAMESPACE lake.sneaked" in told
    assert state(platform) == before


@pytest.mark.timeout(RUN_TIMEOUT_S + 3 * TIMEOUT_S)
@pytest.mark.nightly
def test_what_was_written_runs_through_the_scheduler_and_a_dry_run_tells_the_difference(
    whole_platform: Platform, project: Path
) -> None:
    platform = whole_platform
    up = platform.trilake("up", timeout=300)
    assert up.returncode == 0, up.stderr
    url, user, password = administrator(platform.home)
    with AirflowApi(url, user, password) as api:
        api.wait_for_dags(NAME)
        api.unpause(NAME)
        run_id = api.trigger(NAME, {"start": MONTH})
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while (at := api.run(NAME, run_id)["state"]) not in ("success", "failed"):
            assert time.monotonic() < deadline, api.tasks(NAME, run_id)
            time.sleep(1)
        failed = [task for task in api.tasks(NAME, run_id) if task.state == "failed"]
        assert at == "success", [api.last_lines(NAME, run_id, task, 40) for task in failed]
    asked = platform.trilake("sql", "--json", f"SELECT id, amount, note FROM {NAME} ORDER BY id")
    assert json.loads(asked.stdout) == [
        {"id": 1, "amount": 1.5, "note": "first"},
        {"id": 2, "amount": None, "note": None},
    ]

    # the same code over the same input changes nothing; a job that computes otherwise, and a table that does not fit it
    same = dry_run(platform)["difference"]
    assert (same["both"], same["only_here"], same["only_there"]) == (2, 0, 0)
    job = project / "spark_jobs" / f"{JOB}.py"
    text = job.read_text()
    try:
        job.write_text(text.replace('"amount", "note"', '(F.col("amount") * 2).alias("amount"), "note"'))
        other = dry_run(platform)["difference"]
        sample = dry_run(platform, "--limit", "1")
        job.write_text(text.replace('"amount",', 'F.col("amount").cast("int").alias("amount"),'))
        unfit = dry_run(platform)
    finally:
        job.write_text(text)
    assert (other["both"], other["only_here"], other["only_there"]) == (1, 1, 1)
    assert [other["examples"][side][0]["amount"] for side in ("only_here", "only_there")] == [3.0, 1.5]
    assert sample["counts"][MONTH]["rows_in"] == 1
    assert (sample["difference"]["only_here"], sample["difference"]["only_there"]) == (1, None)
    assert unfit["trouble"] == ["amount: the job makes int, the table has Nullable(Float64)"]
    assert unfit["exit_code"] == 1
    assert "amount" not in unfit["difference"]["columns"]
