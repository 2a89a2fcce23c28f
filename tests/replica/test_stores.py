"""S3 and PostgreSQL of the replica let each identity do what the tables say, and nothing else: every cell is tried."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from flows import PROJECT
from hosts_network import why_no_docker
from whole_replica import INSIDE, Replica

from trilake.hosts.store import RIGHTS


@pytest.fixture(scope="module")
def stores() -> Replica:
    """The stores alone have to be up."""
    if why := why_no_docker():
        pytest.skip(why)
    if not (project := os.environ.get("TRILAKE_REPLICA")):
        pytest.skip("TRILAKE_REPLICA names no replica that runs: `make replica`, then its Compose project's name")
    return Replica(project)


def run_as(stores: Replica, job: str, program: str) -> Any:
    """What a program prints that has the secrets of one of the set-up jobs."""
    text = (INSIDE / f"{program}.py").read_text()
    told = stores.compose("run", "--rm", "--no-deps", "-T", job, "python", "-", stdin=text, seconds=300)
    return json.loads(told.splitlines()[-1])


def test_each_identity_of_s3_may_in_each_bucket_what_the_table_says_and_nothing_beside_it(stores: Replica) -> None:
    found = run_as(stores, "setup-s3", "s3_rights")
    assert found["rights"] == {bucket: dict(rights) for bucket, rights in RIGHTS.items()}
    assert found["beyond"] == []
    assert not found["wrong_secret"]
    assert not found["nobody"]


def test_each_user_of_postgresql_enters_its_own_database_with_its_password_and_nothing_else(stores: Replica) -> None:
    found = run_as(stores, "setup-databases", "postgres_rights")
    own = {"airflow@5433/airflow", "oltp@5432/oltp", "lake@5432/lake"}
    superuser = {f"postgres@5433/{name}" for name in ("airflow", "postgres", "template1")}
    superuser |= {f"postgres@5432/{name}" for name in ("oltp", "lake", "postgres", "template1")}
    assert {name for name, entered in found.items() if entered} == own | superuser
    assert len(found) == 2 * 5 * (4 * 2 + 1)


def test_the_documents_table_of_rights_is_the_one_that_is_set_up() -> None:
    text = (PROJECT / "docs" / "hosts.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| (\w*) ?\| (\w*) ?\| (\w*) ?\| (\w*) ?\|$", text, re.MULTILINE)
    identities = ("airflow", "spark", "clickhouse", "agents")
    found = {row[0]: {who: may for who, may in zip(identities, row[1:], strict=True) if may} for row in rows}
    assert {bucket: rights for bucket, rights in found.items() if bucket in RIGHTS} == RIGHTS
