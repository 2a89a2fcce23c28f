"""Real Spark, from the operator to the job's result; few tests, for each start costs seconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.airflow_task import Lines, ObjectStore, Task, object_store
from support.kubernetes_api import KubernetesServer, await_true, kubernetes_server
from support.spark_session import QUICK_JVM
from trilake.operators.spark import SparkApplicationError
from trilake.platform.embedded import jars, java
from trilake.platform.embedded.kubernetes.driver_process import session_members
from trilake.spark import versions
from trilake.triggers.spark import SparkApplicationTrigger

# Reads and writes S3 by the connection that the Secret brings, runs Python on the executors' side, tells its result.
JOB = """
import json, os, sys
from urllib.parse import urlsplit

from trilake.endpoints import EnvironmentConnection, S3Endpoint


def main(arguments):
    import boto3
    from pyspark.sql import SparkSession

    s3 = S3Endpoint.from_connection(EnvironmentConnection.read("aws_default"))
    conf = {"endpoint": s3.url, "endpoint.region": s3.region, "connection.ssl.enabled": "false",
            "access.key": s3.access_key_id, "secret.key": s3.secret_access_key}
    builder = SparkSession.builder
    for key, value in conf.items():
        builder = builder.config("spark.hadoop.fs.s3a." + key, value)
    spark = builder.getOrCreate()
    if "fail" in arguments:
        spark.sql("select no_such_column from values (1) as t(a)").show()
    if "linger" in arguments:
        spark.range(2).rdd.map(lambda row: __import__("time").sleep(600)).collect()
    spark.range(1000).write.mode("overwrite").parquet("s3a://lake/numbers")
    total = spark.read.parquet("s3a://lake/numbers").rdd.map(lambda row: row.id).sum()
    print("the sum is", total, "in", spark.conf.get("spark.sql.session.timeZone"), flush=True)
    where = urlsplit(arguments[arguments.index("--result") + 1])
    client = boto3.client("s3", endpoint_url=s3.url, aws_access_key_id=s3.access_key_id,
                          aws_secret_access_key=s3.secret_access_key, region_name=s3.region)
    client.put_object(Bucket=where.netloc, Key=where.path[1:], Body=json.dumps({"total": total}))
    spark.stop()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    project = tmp_path_factory.mktemp("project")
    (project / "spark_jobs").mkdir()
    (project / "spark_jobs" / "sum_numbers.py").write_text(JOB)
    with object_store("artifacts", "lake", "spark-events") as store:
        versions.push(store.client, project)
        yield store


@pytest.fixture(scope="module")
def server(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    found = java.ensure()
    options: dict[str, Any] = {
        "spark_submit": [],
        "java_home": str(found.home),
        "jars": str(jars.ensure("spark", lambda: found)),
        "secrets": {"trilake-jobs": {"AIRFLOW_CONN_AWS_DEFAULT": store.connection}},
    }
    with kubernetes_server(tmp_path_factory.mktemp("kubernetes"), **options) as server:
        yield server


@pytest.fixture
def task(
    server: KubernetesServer, store: ObjectStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Task:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", store.connection)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", server.connection)
    return Task(f"manual__{request.node.name}", {"job": "sum_numbers", "spark_conf": QUICK_JVM})


@pytest.mark.slow
def test_a_job_computes_on_s3_and_tells_its_result(
    task: Task, server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    monkeypatch.setattr(SparkApplicationTrigger, "log", lines, raising=False)
    _, trigger = task.submit()
    outcome = task.complete(trigger)
    assert outcome["total"] == sum(range(1000))
    assert lines.count("the sum is 499500 in UTC") == 1
    # a machine that is slow has it warn with whole stacks of calls
    own = [line for line in lines if " INFO " in line or " DEBUG " in line]
    assert len(own) < 40, "Spark's own lines flood the task's log"
    assert "shut sesame" not in json.dumps([list(lines), server.log])


@pytest.mark.nightly
def test_a_job_that_fails_says_why(task: Task) -> None:
    _, trigger = task.submit("fail")
    with pytest.raises(SparkApplicationError, match="no_such_column") as error:
        task.complete(trigger)
    assert "shut sesame" not in str(error.value)


@pytest.mark.nightly
def test_a_killed_job_leaves_no_process(task: Task, server: KubernetesServer) -> None:
    """Its Python workers are in process groups of their own."""
    _, trigger = task.submit("linger")
    uid = await_true(lambda: server.get(task.name)["metadata"]["uid"])
    path = server.folder / "data" / "applications" / uid / "attempt-1" / "process.json"
    await_true(path.exists)
    leader = json.loads(path.read_text())["pid"]
    # watcher, JVM, the job's Python, pyspark's daemon and its two workers
    await_true(lambda: len(_named(leader, "pyspark.daemon")) >= 2, 280)
    groups = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[2] for pid in session_members(leader)}
    assert len(groups) > 1
    asyncio.run(trigger.on_kill())
    assert session_members(leader) == []
    assert server.request("GET", server.applications(task.name)).status_code == 404


def _named(leader: int, text: str) -> list[int]:
    return [pid for pid in session_members(leader) if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
