"""A secret that is well-formed and not the one that the data was made with: the job says so in one line, and ends."""

from __future__ import annotations

import subprocess

import pytest
from whole_replica import Replica

from support.network_flows import PROJECT

WRONG = "deadbeef" * 6


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("job", "variable", "says"),
    [
        ("setup-databases", "POSTGRES_SUPERUSER_PASSWORD", 'password authentication failed for user "postgres"'),
        ("setup-s3", "S3_ROOT_SECRET", "S3_ROOT_SECRET must be the one that the service s3 was started with"),
        ("setup-airflow", "AIRFLOW_DB_PASSWORD", 'password authentication failed for user "airflow"'),
        ("setup-tables", "LAKE_PASSWORD", 'password authentication failed for user "lake"'),
        ("setup-tables", "CLICKHOUSE_ETL_PASSWORD", "etl_writer: Authentication failed"),
        ("setup-deploy", "S3_AIRFLOW_SECRET", "S3 refuses HeadObject on http://vps-1:7070/artifacts/jobs/"),
    ],
)
def test_a_wrong_secret_is_one_line_that_names_whose_it_is(
    replica: Replica, job: str, variable: str, says: str
) -> None:
    known = ["compose", "--project-directory", str(PROJECT), "--project-name", replica.project]
    command = ["docker", *known, "run", "--rm", "-T", "--no-deps", "--env", f"{variable}={WRONG}", job]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 1
    # beside Compose's own of the container, and what went well before
    *before, told = [line for line in done.stderr.splitlines() if line.strip()]
    assert told.startswith("trilake: "), done.stderr
    assert says in told
    assert not [line for line in before if "Traceback" in line or line.startswith("trilake: ")]
    assert WRONG not in done.stdout + done.stderr
