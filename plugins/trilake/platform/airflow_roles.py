"""What Airflow's roles may do. They are the same on every platform.

Flask-AppBuilder brings the roles Viewer, User, Op and Admin, with permissions that it repairs at each start of the API
server. `permissions_of_roles` changes them and adds the role Agent. `airflow_security` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Permission = tuple[str, str]  # an action and a resource, by Flask-AppBuilder's names

ADMIN = "admin"
ADMIN_ROLE = "Admin"
AGENT = "Agent"
# A resource of Trilake's own. A plugin asks for it with `is_authorized_custom_view`.
AGENTS = "Trilake agents"

# A DAG names this role in its `access_control`, or an agent does not see it. Nothing here starts or changes a run.
_AGENT: frozenset[Permission] = frozenset(
    {("can_read", resource) for resource in ("DAG Runs", "Task Instances", "Task Logs", "XComs", "Website", AGENTS)}
) | {("can_create", AGENTS)}
_PEOPLE = ("Viewer", "User", "Op", ADMIN_ROLE)
# Without `can_read` on Plugins, the menu has no page of a plugin.
_ADDED: frozenset[Permission] = frozenset({("can_read", "Plugins"), ("can_read", AGENTS)})
# A deleted DAG loses its history. An asset event that somebody posts says that a partition was published.
TAKEN: Mapping[str, frozenset[Permission]] = {"User": frozenset({("can_delete", "DAGs"), ("can_create", "Assets")})}
# The permissions of one DAG. The DAG's `access_control` gives and takes them.
_OF_ONE_DAG = ("DAG:", "DAG Run:")


def permissions_of_roles(brought: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[Permission]]:
    """Role -> what it may do at least.

    :param brought: Flask-AppBuilder's ``ROLE_CONFIGS``.
    """
    roles = {str(config["role"]): frozenset(config["perms"]) for config in brought}
    for role in _PEOPLE:
        roles[role] = roles.get(role, frozenset()) | _ADDED
    for role, taken in TAKEN.items():
        roles[role] -= taken
    return {**roles, AGENT: _AGENT}


def is_taken(role: str, permission: Permission) -> bool:
    """Whether a role must not have this permission. An operator may give all others, to all roles but Agent."""
    if role == AGENT:
        return permission not in _AGENT and not permission[1].startswith(_OF_ONE_DAG)
    return permission in TAKEN.get(role, ())


def digest() -> str:
    """Changes with this module, so that a newer version writes its roles once."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
