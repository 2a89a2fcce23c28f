"""Airflow's database, its roles and its administrator, in one process, because importing Airflow takes seconds.

The process has Airflow's settings in its environment. The password is a line of JSON in its standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from trilake.platform import airflow_roles


def run(
    environment: Mapping[str, str], password: str, *, output: IO[Any] | None = None, timeout_s: float | None = None
) -> bool:
    """Run the set-up in a process of its own. False if it failed; its output says why.

    :param environment: has Airflow's settings.
    :param password: of the user admin.
    :param output: where to write what the process prints; None: where this process prints.
    :raises subprocess.TimeoutExpired: it takes longer than `timeout_s`; None waits for ever.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        env=dict(environment),
        input=json.dumps(password),
        text=True,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode == 0


def set_up(password: str) -> None:
    """Migrate the database to the installed version, write the roles, and set admin's password. It can be repeated."""
    from airflow.utils import db
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded

    providers_configuration_loaded(db.upgradedb)()
    from airflow.utils.session import create_session

    from trilake.platform.airflow_security import UsersAndRoles

    with create_session() as session:
        manager = UsersAndRoles(session=session)
        manager.sync_roles()
        _set_admin(manager, password)


def _set_admin(manager: Any, password: str) -> None:
    from trilake.platform.airflow_users import email, password_hash

    name = airflow_roles.ADMIN
    role = manager.find_role(airflow_roles.ADMIN_ROLE)
    user = manager.find_user(username=name)
    if user is None:
        manager.add_user(name, name, name, email(name), role, hashed_password=password_hash(password))
        return
    if not has_password(user.password, password):
        user.password = password_hash(password)
    if role not in user.roles:
        user.roles.append(role)
    user.active = True
    manager.session.commit()


def has_password(hashed: str | None, password: str) -> bool:
    """Whether this is the hash of the password."""
    from werkzeug.security import check_password_hash

    return check_password_hash(hashed or "", password)


def main() -> int:
    """Read the password from standard input and set Airflow up."""
    set_up(json.load(sys.stdin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
