"""`trilake overlay`: k8s/ with a deployment's addresses and the jobs' connections."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from trilake.endpoints import (
    LAKE_CONNECTION,
    S3_CONNECTION,
    Endpoints,
    EnvironmentConnection,
    PostgresEndpoint,
    S3Endpoint,
)
from trilake.errors import ConfigurationError
from trilake.platform.hosts import environment
from trilake.platform.hosts.environment import EnvironmentFileError
from trilake.platform.hosts.overlay import write_overlay

K8S = Path(__file__).parents[2] / "k8s"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    environment.write(tmp_path / ".env", environment.replica_settings("10.77.9.0/24"))
    return environment.read(tmp_path / ".env")


def test_jobs_enter_everything_as_spark(env: dict[str, str], tmp_path: Path) -> None:
    overlay = write_overlay(K8S, "replica", env, tmp_path / "k8s")
    assert (overlay / "hosts.env").read_text() == "vps_1=10.77.9.11\nvps_2=10.77.9.12\nvps_3=10.77.9.13\n"
    jobs = dict(line.split("=", 1) for line in (overlay / "jobs.env").read_text().splitlines())
    endpoints = Endpoints.from_environment(jobs)
    assert (endpoints.s3.access_key_id, endpoints.s3.secret_access_key) == ("spark", env["S3_SPARK_SECRET"])
    assert endpoints.clickhouse.user == "etl_writer"
    # of Kubernetes, of Airflow and of the stores' administrators a job knows nothing
    assert not any("KUBERNETES" in name for name in jobs)
    others = {v for k, v in env.items() if k.endswith(("SECRET", "PASSWORD", "KEY", "TOKEN"))} - {
        env[k] for k in ("S3_SPARK_SECRET", "OLTP_PASSWORD", "LAKE_PASSWORD", "CLICKHOUSE_ETL_PASSWORD")
    }
    assert not [secret for secret in others if secret in "".join(jobs.values())]
    assert stat.S_IMODE((overlay / "jobs.env").stat().st_mode) == 0o600


def test_agents_queries_enter_the_lake_with_keys_of_their_own_and_nothing_else(
    env: dict[str, str], tmp_path: Path
) -> None:
    overlay = write_overlay(K8S, "replica", env, tmp_path / "k8s")
    given = dict(line.split("=", 1) for line in (overlay / "agents.env").read_text().splitlines())
    assert set(given) == {"AIRFLOW_CONN_AWS_DEFAULT", "AIRFLOW_CONN_POSTGRES_LAKE"}
    s3 = S3Endpoint.from_connection(EnvironmentConnection.read(S3_CONNECTION, given))
    lake = PostgresEndpoint.from_connection(EnvironmentConnection.read(LAKE_CONNECTION, given))
    assert (s3.access_key_id, s3.secret_access_key) == ("agents-spark", env["S3_AGENTS_SPARK_SECRET"])
    assert (lake.database, lake.user, lake.password) == ("lake", "lake_ro", env["LAKE_RO_PASSWORD"])
    assert stat.S_IMODE((overlay / "agents.env").stat().st_mode) == 0o600


def test_it_replaces_what_it_wrote_and_nothing_else(env: dict[str, str], tmp_path: Path) -> None:
    write_overlay(K8S, "replica", env, tmp_path / "k8s")
    overlay = write_overlay(K8S, "replica", {**env, "VPS_1_ADDRESS": "10.1.1.1"}, tmp_path / "k8s")
    assert (overlay / "hosts.env").read_text().startswith("vps_1=10.1.1.1\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not empty and is not a copy of k8s/"):
        write_overlay(K8S, "replica", env, tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "mine"


def test_an_overlay_that_is_not_there_is_told_with_those_that_are(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no overlay vps_9\. It has replica, vps_2"):
        write_overlay(K8S, "vps_9", env, tmp_path / "k8s")


def test_a_missing_secret_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    del env["S3_SPARK_SECRET"]
    with pytest.raises(EnvironmentFileError, match="S3_SPARK_SECRET"):
        write_overlay(K8S, "replica", env, tmp_path / "k8s")
    assert not (tmp_path / "k8s").exists()
