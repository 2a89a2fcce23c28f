"""Airflow's users: list them, create or change one, end one's access.

The program runs where Airflow's settings are in the environment. It reads one request from standard input, because a
password must not be an argument, and prints one answer:

- ``["list"]`` gives ``[{name, roles, active, last_login}]``, sorted by name.
- ``["set", name, role, password]`` creates the user, or changes it and activates it. null keeps the password.
- ``["deactivate", name]`` ends all access of a user: Airflow gives it no new token, and refuses those that it has, also
  in browsers, within half a minute.

`set` and `deactivate` give the user as it is then. A request that is refused gives ``{"error": ..., "hint": ...}``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from trilake.errors import TrilakeError
from trilake.platform.airflow_roles import ADMIN

Request = Sequence[str | None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PUBLIC = "Public"  # the role before a login; it has no permission
_TIMEOUT_S = 120


class AirflowUserError(TrilakeError):
    """A request about a user of Airflow was refused, or failed."""


# --- the caller's side


def ask(environment: Mapping[str, str], request: Request) -> Any:
    """The answer to a request, from a process on this machine.

    :param environment: has Airflow's settings.
    :raises AirflowUserError: the request was refused, or Airflow's database does not answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            env=dict(environment),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AirflowUserError(
            f"Airflow's users did not answer within {_TIMEOUT_S} s.", hint="See `trilake status`, and run this again."
        ) from None
    return read_answer(done.stdout, done.stderr)


def read_answer(printed: str, errors: str = "") -> Any:
    """What the program printed, as an answer.

    :param errors: what it wrote to standard error.
    :raises AirflowUserError: it refused the request, or gave no answer.
    """
    try:
        answer = json.loads(printed)
    except ValueError:
        last_line = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "no answer")
        raise AirflowUserError(
            f"Airflow's users cannot be read or changed: {last_line}", hint="See whether Airflow's database runs."
        ) from None
    if isinstance(answer, dict) and "error" in answer:
        raise AirflowUserError(answer["error"], hint=answer["hint"])
    return answer


# --- the program


class Users:
    """The users of the database that Airflow's settings name.

    :param manager: a security manager of Flask-AppBuilder.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._session = manager.session

    def list(self) -> list[dict[str, Any]]:
        """Every user, sorted by name."""
        return sorted(map(_document, self._manager.get_all_users()), key=lambda user: str(user["name"]))

    def set(self, name: str, role: str, password: str | None) -> dict[str, Any]:
        """Create or change a user, with one role, and activate it.

        :param password: None: it keeps the password that it has.
        :raises AirflowUserError: the name is not valid, or the administrator's; there is no such role; or a new user
            has no password.
        """
        self._refuse_admin(name)
        if not _NAME.fullmatch(name):
            raise AirflowUserError(
                f"{name!r} is not a valid name for a user.",
                hint="A name has at most 64 letters, digits and . _ -, and begins with a letter or a digit.",
            )
        granted = None if role == _PUBLIC else self._manager.find_role(role)
        if granted is None:
            roles = sorted(role.name for role in self._manager.get_all_roles() if role.name != _PUBLIC)
            raise AirflowUserError(f"Airflow has no role {role!r} for users.", hint=f"Roles: {', '.join(roles)}.")
        if password == "":
            raise AirflowUserError(f"The password of {name} is empty.", hint="Give one that has characters.")
        user = self._manager.find_user(username=name)
        hashed = password_hash(password) if password is not None else user.password if user else None
        if hashed is None:
            raise AirflowUserError(f"{name} is a new user and has no password.", hint="Give one.")
        if user is not None and not user.active:
            # Airflow's tokens and sessions name a user's id. With a new id, those from before do not come back to life.
            self._remove(user)
            user = None
        if user is None:
            user = self._manager.add_user(name, name, name, email(name), granted, hashed_password=hashed)
        else:
            user.roles, user.password = [granted], hashed
            self._session.commit()
        return _document(user)

    def deactivate(self, name: str) -> dict[str, Any]:
        """End all access of a user. It can be repeated.

        :raises AirflowUserError: there is no such user, or it is the administrator.
        """
        self._refuse_admin(name)
        user = self._manager.find_user(username=name)
        if user is None:
            raise AirflowUserError(f"Airflow has no user {name!r}.", hint="List the users to see their names.")
        user.active = False
        self._session.commit()
        return _document(user)

    def _refuse_admin(self, name: str) -> None:
        if name.lower() == ADMIN:
            raise AirflowUserError(
                f"{ADMIN} is the administrator of Airflow, and is not changed like other users.",
                hint="Its password is a secret of the platform. The set-up of Airflow sets it.",
            )

    def _remove(self, user: Any) -> None:
        from airflow.providers.fab.auth_manager.models import User
        from sqlalchemy import update

        # Not committed: `add_user` commits, so that at no moment the name is gone.
        for column in (User.created_by_fk, User.changed_by_fk):
            self._session.execute(update(User).where(column == user.id).values({column: None}))
        self._session.delete(user)
        self._session.flush()


def email(name: str) -> str:
    """Airflow wants an address for each user, and never writes to it."""
    return f"{name}@localhost"


def password_hash(password: str) -> str:
    """The hash that Airflow's login compares with."""
    from werkzeug.security import generate_password_hash

    return generate_password_hash(password)


def _document(user: Any) -> dict[str, Any]:
    # written without a time zone; every platform's processes have UTC
    last_login: datetime | None = user.last_login
    return {
        "name": user.username,
        "roles": sorted(role.name for role in user.roles),
        "active": bool(user.active),
        "last_login": last_login.replace(tzinfo=UTC).isoformat() if last_login else None,
    }


def answer(request: Request) -> Any:
    """:raises AirflowUserError: the request is refused, or the database does not answer."""
    from airflow.providers.fab.auth_manager.security_manager.override import FabException
    from airflow.utils.session import create_session
    from sqlalchemy.exc import DBAPIError

    from trilake.platform.airflow_security import UsersAndRoles

    try:
        with create_session() as session:
            return _answer(Users(UsersAndRoles(session=session)), request)
    except (DBAPIError, FabException) as e:
        cause = e if isinstance(e, DBAPIError) else e.__cause__
        # of a failed statement only what the database says: the statement's parameters may be secrets
        says = cause.orig if isinstance(cause, DBAPIError) else type(cause).__name__
        raise AirflowUserError(
            f"Airflow's database refused the request: {' '.join(str(says).split())}.",
            hint="See whether the database runs, and run this again.",
        ) from None


def _answer(users: Users, request: Request) -> Any:
    from trilake.agents.runs import cancel_runs

    verb, *arguments = request
    verbs: dict[str, Callable[..., Any]] = {
        "list": users.list,
        "set": users.set,
        "deactivate": users.deactivate,
        "cancel_runs": cancel_runs,
    }
    return verbs[str(verb)](*arguments)


def main() -> int:
    """Answer the request in standard input. Exit code 0: there is an answer, which may be a refusal."""
    request = json.load(sys.stdin)
    # Airflow logs to standard output. Only the answer may be there.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            print(json.dumps(answer(request)), file=out)
        except TrilakeError as e:
            print(json.dumps({"error": e.message, "hint": e.hint}), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
