"""The platform's life with Airflow on it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support import airflow_access
from support.airflow_access import Browser, dags_of, log_in, status_with, wait_for
from support.platform_state import Kept, pids, states
from support.running_platform import Platform
from trilake.platform import airflow_users
from trilake.platform.airflow_api import AirflowApi
from trilake.platform.airflow_users import AirflowUserError
from trilake.platform.embedded import postgres, processes
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.home import SERVICES
from trilake.postgres.connection import connect

pytestmark = pytest.mark.slow
AIRFLOW = [service for service in SERVICES if service.startswith("airflow")]
RUNNING = dict.fromkeys(SERVICES, "running")


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


@pytest.fixture
def kept(platform: Platform) -> Iterator[Kept]:
    kept = Kept(platform)
    yield kept
    platform.up()
    kept.drop()


def test_every_service_runs_and_a_second_up_starts_nothing(platform: Platform) -> None:
    assert states(platform) == RUNNING
    before = pids(platform)
    platform.up()
    assert pids(platform) == before


def test_an_up_without_airflow_leaves_airflow_running(platform: Platform) -> None:
    before = pids(platform)
    done = platform.trilake("up", "--without-airflow")
    assert done.returncode == 0, done.stderr
    assert pids(platform) == before


def test_the_idle_platform_stays_below_2_5_gib(platform: Platform) -> None:
    document = json.loads(platform.trilake("status", "--json").stdout)
    assert all(service["pid"] and service["memory"] > 1 << 20 for service in document["services"])
    assert document["memory"] < 2.5 * (1 << 30)


@pytest.mark.nightly
def test_airflow_comes_back_with_a_killed_database(platform: Platform, kept: Kept) -> None:
    pid = pids(platform)["postgres"]
    assert pid
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)
    platform.up()
    assert states(platform) == RUNNING
    kept.check()


@pytest.mark.nightly
def test_killed_airflow_processes_come_back_and_leave_no_orphan(platform: Platform, kept: Kept) -> None:
    before = pids(platform)
    for service in AIRFLOW:
        pid = before[service]
        assert pid
        os.kill(pid, signal.SIGKILL)
    old = {process.pid for process, service in processes.find(platform.home).items() if service in AIRFLOW}
    platform.up()
    assert states(platform) == dict.fromkeys(SERVICES, "running")
    assert not old & {process.pid for process in processes.find(platform.home)}
    assert {name: pid for name, pid in pids(platform).items() if name not in AIRFLOW} == {
        name: pid for name, pid in before.items() if name not in AIRFLOW
    }


def test_the_services_environment_is_not_the_callers(platform: Platform) -> None:
    """A variable that happens to be set in the shell does not reach the services; the secrets reach those meant."""
    platform.up()
    password = platform.home.secrets()["postgres_airflow"]
    checked = set()
    for process, service in processes.find(platform.home).items():
        try:
            if process.name() == "postgres":
                continue
            environment = Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue  # a short-lived child has ended meanwhile
        assert "PYTEST_CURRENT_TEST" not in environment
        assert (password in environment) == (service in AIRFLOW), service
        checked.add(service)
    assert checked >= set(AIRFLOW)


# --- users and roles

OF_ROLE = """
SELECT p.name, v.name FROM ab_role r JOIN ab_permission_view_role pvr ON pvr.role_id = r.id
JOIN ab_permission_view pv ON pv.id = pvr.permission_view_id JOIN ab_permission p ON p.id = pv.permission_id
JOIN ab_view_menu v ON v.id = pv.view_menu_id WHERE r.name = %s AND v.name NOT LIKE 'DAG:%%'
"""


def permissions(platform: Platform, role: str, *changes: str) -> set[tuple[str, str]]:
    """What Airflow's database says that a role may do, after these statements."""
    home = platform.home
    with (
        connect(postgres.endpoint(home.ports()["postgres"], home.secrets(), "airflow")) as connection,
        connection.cursor() as cursor,
    ):
        for change in changes:
            cursor.execute(change)
        cursor.execute(OF_ROLE, (role,))
        return set(cursor.fetchall())


@pytest.fixture
def two_dags(platform: Platform) -> Iterator[None]:
    file = platform.home.project / "dags" / "access_of_roles.py"
    file.write_text(airflow_access.DAGS)
    yield
    file.unlink()


@pytest.mark.usefixtures("two_dags")
def test_each_role_may_do_what_the_documents_say_and_no_more(platform: Platform) -> None:
    url, admin, password = administrator(platform.home)
    names = {role: f"one-{role.lower()}" for role in ("Agent", "Viewer", "User", "Op")}
    requests = [["set", name, role, f"password of {role}"] for role, name in names.items()]
    made = airflow_access.ask_all(platform.env, requests)
    assert [(user["name"], user["roles"], user["active"]) for user in made] == [
        (name, [role], True) for role, name in names.items()
    ]
    tokens = {role: log_in(url, name, f"password of {role}") for role, name in names.items()}
    tokens["Admin"] = log_in(url, admin, password)
    with AirflowApi(url, admin, password) as api:
        run = airflow_access.finished_run(api)
    assert airflow_access.SEEN in dags_of(url, tokens["Agent"])
    assert airflow_access.HIDDEN not in dags_of(url, tokens["Agent"])
    assert airflow_access.wrong_answers(url, tokens, run) == []
    agents = {("can_read", "Trilake agents"), ("can_create", "Trilake agents")}
    assert permissions(platform, "Agent") >= agents
    assert all(("can_read", "Trilake agents") in permissions(platform, role) for role in airflow_access.PEOPLE)
    assert ("can_create", "Trilake agents") not in permissions(platform, "Op")


def test_a_user_who_is_deactivated_is_refused_with_old_tokens_and_sessions_also_after_coming_back(
    platform: Platform,
) -> None:
    url, *_ = administrator(platform.home)
    airflow_users.ask(platform.env, ["set", "leaver", "Viewer", "first"])
    token, browser = log_in(url, "leaver", "first"), Browser(url, "leaver", "first")
    assert status_with(url, token) == 200
    assert browser.is_logged_in()
    assert airflow_users.ask(platform.env, ["deactivate", "leaver"])["active"] is False
    assert not browser.is_logged_in()
    assert not log_in(url, "leaver", "first")
    wait_for(lambda: status_with(url, token) == airflow_access.REFUSED, "the end of the token", 60)
    back = airflow_users.ask(platform.env, ["set", "leaver", "Agent", None])
    assert (back["roles"], back["active"]) == (["Agent"], True)
    assert log_in(url, "leaver", "first")  # null kept the password
    assert status_with(url, token) == airflow_access.REFUSED
    assert not browser.is_logged_in()
    listed = {user["name"]: user for user in airflow_users.ask(platform.env, ["list"])}
    assert listed["leaver"]["last_login"]
    assert listed["admin"]["roles"] == ["Admin"]


def test_a_request_about_a_user_that_cannot_be_right_is_refused_by_name(platform: Platform) -> None:
    requests = {
        ("set", "admin", "Viewer", "x"): "admin is the administrator",
        ("set", "a b", "Viewer", "x"): "'a b' is not a valid name",
        ("set", "new", "Nobody", "x"): "no role 'Nobody' for users. Roles: Admin, Agent, ",
        ("set", "new", "Public", "x"): "no role 'Public'",
        ("set", "new-and-without", "Viewer", None): "no password",
        ("set", "new", "Viewer", ""): "is empty",
        ("deactivate", "no-such-user"): "no user 'no-such-user'",
    }
    answers = airflow_access.ask_all(platform.env, list(requests))
    assert [says for says, answer in zip(requests.values(), answers, strict=True) if says not in answer] == []
    with pytest.raises(AirflowUserError, match="admin is the administrator of Airflow") as refused:
        airflow_users.ask(platform.env, ["deactivate", "admin"])
    assert refused.value.hint


def test_the_set_up_repairs_roles_and_the_administrator_and_keeps_what_operators_added(platform: Platform) -> None:
    url, admin, password = administrator(platform.home)
    before = {role: permissions(platform, role) for role in ("Agent", "Viewer", "User", "Op")}
    give = (
        "INSERT INTO ab_permission_view_role (id, permission_view_id, role_id) "
        "SELECT nextval('ab_permission_view_role_id_seq'), pv.id, r.id FROM ab_role r, ab_permission_view pv "
        "JOIN ab_permission p ON p.id = pv.permission_id JOIN ab_view_menu v ON v.id = pv.view_menu_id "
        "WHERE r.name = '{0}' AND p.name = '{1}' AND v.name = '{2}'"
    )
    changed = permissions(
        platform,
        "Viewer",
        "DELETE FROM ab_permission_view_role USING ab_role r WHERE role_id = r.id AND r.name = 'Viewer'",
        give.format("User", "can_create", "Assets"),
        give.format("Agent", "can_create", "DAG Runs"),
        give.format("Viewer", "can_read", "Providers"),
        "UPDATE ab_user SET password = 'another', active = false WHERE username = 'admin'",
    )
    assert changed == {("can_read", "Providers")}
    assert ("can_create", "Assets") in permissions(platform, "User")
    platform.up()
    assert permissions(platform, "Viewer") == before["Viewer"] | {("can_read", "Providers")}
    assert {role: permissions(platform, role) for role in ("Agent", "User", "Op")} == {
        role: before[role] for role in ("Agent", "User", "Op")
    }
    assert log_in(url, admin, password)
