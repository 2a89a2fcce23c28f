"""`trilake access` on a platform with Airflow: as a user calls it, and as a person logs in with its file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.airflow_access import REFUSED, log_in, status_with, wait_for
from support.running_platform import Platform
from trilake.platform import airflow_users
from trilake.postgres.connection import connect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


@pytest.fixture
def name(platform: Platform) -> Iterator[str]:
    found = f"t{secrets.token_hex(4)}"
    yield found
    if any(user["name"] == found and user["active"] for user in airflow_users.ask(platform.env, ["list"])):
        airflow_users.ask(platform.env, ["deactivate", found])
    with connect(platform.endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM access WHERE name = %s", (found,))


@pytest.mark.parametrize(("role", "in_airflow"), [("agent", "Agent"), ("engineer", "Op")])
def test_a_person_logs_in_with_its_file_and_no_more_after_its_revocation(
    platform: Platform, tmp_path: Path, name: str, role: str, in_airflow: str
) -> None:
    file = tmp_path / f"{name}.access"
    chosen = ["--airflow", in_airflow] if role == "engineer" else []
    command = ["access", "add", name, "--role", role, *chosen, "--out", str(file), "--embedded"]
    added = platform.trilake(*command, "--json")
    assert added.returncode == 0, added.stderr
    assert (json.loads(added.stdout)["state"], json.loads(added.stdout)["airflow"]) == ("active", in_airflow)
    given = json.loads(file.read_text())["airflow"]
    assert given["password"] not in added.stdout + added.stderr
    token = log_in(given["url"], name, given["password"])
    assert status_with(given["url"], token) == 200
    again = platform.trilake(*command)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "is never overwritten" in again.stderr
    (listed,) = [one for one in json.loads(platform.trilake("access", "list", "--embedded", "--json").stdout)
                 if one["name"] == name]  # fmt: skip
    assert (listed["role"], listed["state"], "hashes" in listed) == (role, "active", False)

    revoked = platform.trilake("access", "revoke", name, "--embedded", "--json")
    assert revoked.returncode == 0, revoked.stderr
    assert json.loads(revoked.stdout)["state"] == "revoked"
    wait_for(lambda: status_with(given["url"], token) == REFUSED, "the token's end", 60)
    assert not log_in(given["url"], name, given["password"])


def test_what_this_platform_does_not_have_is_said(platform: Platform, tmp_path: Path, name: str) -> None:
    out = str(tmp_path / "a")
    told = platform.trilake("access", "add", name, "--role", "engineer", "--out", out, "--embedded").stdout
    assert [line.split(":")[1].strip() for line in told.splitlines() if line.startswith("Not here:")] == [
        "VPN",
        "ClickHouse",
        "S3 and PostgreSQL",
    ]
    assert set(json.loads(Path(out).read_text())) == {"name", "role", "airflow"}
