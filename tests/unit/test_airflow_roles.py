"""Airflow's roles, made from those that Flask-AppBuilder brings. tests/embedded/ asks a running Airflow."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trilake.platform.airflow_roles import AGENTS, Permission, is_taken
from trilake.platform.airflow_security import ROLES

PEOPLE = ("Viewer", "User", "Op", "Admin")


def test_an_agent_reads_what_its_dags_did_and_nothing_else() -> None:
    assert {resource for action, resource in ROLES["Agent"] if action == "can_read"} == {
        "DAG Runs",
        "Task Instances",
        "Task Logs",
        "XComs",
        "Website",
        AGENTS,
    }
    assert {permission for permission in ROLES["Agent"] if permission[0] != "can_read"} == {("can_create", AGENTS)}


@pytest.mark.parametrize("permission", [("can_delete", "DAGs"), ("can_create", "Assets")])
def test_a_user_cannot_delete_a_dag_or_say_that_something_was_published(permission: Permission) -> None:
    assert permission not in ROLES["User"]
    assert is_taken("User", permission)
    assert all(permission in ROLES[role] and not is_taken(role, permission) for role in ("Op", "Admin"))


@pytest.mark.parametrize("role", PEOPLE)
def test_people_see_the_pages_of_plugins_and_what_agents_did(role: str) -> None:
    assert ROLES[role] >= {("can_read", "Plugins"), ("can_read", AGENTS)}


def test_each_role_of_people_may_do_what_the_one_before_may() -> None:
    for lower, higher in pairwise(PEOPLE):
        assert ROLES[lower] < ROLES[higher]


def test_an_operator_may_add_to_other_roles_and_a_dag_to_the_agents() -> None:
    for role in (*PEOPLE, "Analysts"):
        assert not is_taken(role, ("can_read", "Providers"))
    assert not is_taken("Agent", ("can_read", "DAG:flights"))
    assert is_taken("Agent", ("can_read", "DAGs"))
    assert is_taken("Agent", ("can_create", "DAG Runs"))
