"""Airflow's security manager, with Trilake's roles. Flask-AppBuilder's tables are in Airflow's database.

Only processes of Airflow import this module: it imports Flask-AppBuilder, which takes a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow.providers.fab.auth_manager.models import Action, Permission, Resource, Role
from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from airflow.providers.fab.www.security_appless import ApplessAirflowSecurityManager
from sqlalchemy import select
from sqlalchemy.orm import Session

from trilake.platform import airflow_roles

ROLES = airflow_roles.permissions_of_roles(FabAirflowSecurityManagerOverride.ROLE_CONFIGS)


class _TrilakeRoles:
    """Whatever synchronises the roles writes Trilake's: the set-up, the API server's start, `airflow sync-perm`."""

    ROLE_CONFIGS = [{"role": role, "perms": sorted(permissions)} for role, permissions in ROLES.items()]
    session: Any

    def sync_roles(self) -> None:
        # Flask-AppBuilder commits each permission by itself. It finds all of them written, so this saves seconds.
        write_roles(self.session)
        super().sync_roles()  # type: ignore[misc]


class SecurityManager(_TrilakeRoles, FabAirflowSecurityManagerOverride):
    """The API server's."""


class UsersAndRoles(_TrilakeRoles, ApplessAirflowSecurityManager):
    """The same without Flask's application, for a program that only changes users and roles."""


def write_roles(session: Session) -> None:
    """Give each role what it lacks, and take what it must not have. It commits once, and can be repeated."""
    actions = {action.name: action for action in session.scalars(select(Action))}
    resources = {resource.name: resource for resource in session.scalars(select(Resource))}
    roles = {role.name: role for role in session.scalars(select(Role)).unique()}
    permissions = {
        (permission.action.name, permission.resource.name): permission
        for permission in session.scalars(select(Permission)).unique()
        if permission.action and permission.resource
    }

    def permission_of(wanted: airflow_roles.Permission) -> Permission:
        if wanted not in permissions:
            action, resource = wanted
            permissions[wanted] = Permission(
                action=_get(actions, action, Action), resource=_get(resources, resource, Resource)
            )
            session.add(permissions[wanted])
        return permissions[wanted]

    for name, wanted in ROLES.items():
        role = _get(roles, name, Role)
        session.add(role)
        has = {_name(permission) for permission in role.permissions}
        role.permissions += [permission_of(permission) for permission in sorted(wanted - has)]
        for permission in _taken(name, role.permissions):
            role.permissions.remove(permission)
    session.commit()


def _get(known: dict[str, Any], name: str, model: Any) -> Any:
    if name not in known:
        known[name] = model(name=name)
    return known[name]


def _name(permission: Permission) -> airflow_roles.Permission:
    return (permission.action.name, permission.resource.name) if permission.action and permission.resource else ("", "")


def _taken(role: str, permissions: Iterable[Permission]) -> list[Permission]:
    return [permission for permission in permissions if airflow_roles.is_taken(role, _name(permission))]
