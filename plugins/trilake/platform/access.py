"""One identity for a person or an agent: one command gives everything for a role, and one takes it away.

Table `access` (database lake) says who has access. `Access.add` takes these steps, and `Access.revoke` undoes them:

1. New secrets go into the file NAME.access.part (mode 600), before anybody knows them.
2. The row of the name becomes `adding`. It has hashes of the secrets, and no secret.
3. Each part (VPN, Airflow, ClickHouse, ...) makes the user with these secrets. Each can be repeated.
4. NAME.access appears, complete. It is never overwritten, and no other copy of the secrets is kept.
5. The row becomes `active`, and the .part file is removed.

A process can die between any two: the same command continues, with the secrets of the .part file. If that file is
gone, `revoke` ends what was made, and the name can be added again. `revoke` first marks the row as `revoking`, so that
a revocation that died is seen and completed, and an `add` that still runs undoes its work. This module knows no place:
the embedded platform and the hosts bring their own parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from trilake.clickhouse.people import ClickHouseUser
from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.lake.data_set import EXPORTS_BUCKET
from trilake.platform.private_files import write_once
from trilake.postgres.connection import connect

log = logging.getLogger(__name__)

ROLES = ("agent", "engineer", "admin")
AIRFLOW_ROLES = ("Viewer", "User", "Op", "Admin")
# Role -> the role in Airflow, if `--airflow` does not name another one.
_IN_AIRFLOW = {"agent": "Agent", "engineer": "User", "admin": "Admin"}
_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")
# Users of programs, roles, and `shared`, which is a folder in the agents' prefix.
_TAKEN = frozenset(
    {
        *("admin", "agent", "agents", "airflow", "backup", "clickhouse", "default", "engineer", "lake", "oltp"),
        *("postgres", "public", "root", "shared", "spark", "trilake"),
    }
)
_COLUMNS = "name, role, options, hashes, state, added_at, revoked_at"


class AccessError(TrilakeError):
    """A request about a person's access was refused, or could not be completed."""


class RevokedMeanwhileError(AccessError):
    """The name was revoked while it was being added."""


@dataclass(frozen=True)
class Person:
    """A row of the table.

    :param options: ``airflow`` (a role in Airflow) and ``s3`` (whether the person has a key).
    :param hashes: service -> SHA-256 of its password, in hexadecimal.
    :param state: ``adding``, ``active``, ``revoking`` or ``revoked``.
    :param added_at: in ISO 8601, like `revoked_at`.
    """

    name: str
    role: str
    options: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    state: str = "adding"
    added_at: str | None = None
    revoked_at: str | None = None

    @property
    def airflow_role(self) -> str:
        return str(self.options.get("airflow") or _IN_AIRFLOW[self.role])

    @property
    def has_s3_key(self) -> bool:
        return bool(self.options.get("s3"))

    @property
    def clickhouse_user(self) -> ClickHouseUser | None:
        """The person's user in ClickHouse. None: an agent asks through Airflow, or the place has no such users."""
        if self.role == "agent" or not (sha256 := self.hashes.get("clickhouse")):
            return None
        return ClickHouseUser(self.name, self.role, sha256)


class Register(Protocol):
    """The table `access`."""

    def people(self) -> list[Person]: ...
    def begin(self, person: Person) -> None: ...
    def activate(self, person: Person) -> None: ...
    def begin_revoke(self, name: str) -> Person: ...
    def end_revoke(self, name: str) -> None: ...


class Part(Protocol):
    """One service, or several that are reached together, in which a person gets a user.

    `add` and `revoke` can be repeated.
    """

    @property
    def name(self) -> str: ...

    def needs(self, person: Person) -> Sequence[str]:
        """The services for which it needs a secret: ``airflow``, ``clickhouse``, ``s3``, ``postgresql``."""
        ...

    def add(self, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        """Make the user with these secrets. Returns what the person needs, for the file."""
        ...

    def revoke(self, person: Person) -> None:
        """End the user's access and its open sessions at once. There may be no such user."""
        ...


class Access:
    """Who has access to one platform.

    :param parts: in the order in which they are made. They are revoked side by side.
    :param missing: what the place does not have, a line each.
    :param cancel_runs: cancels the agent's DAG runs, whose ids begin with ``agent.<name>.``, and returns them. It is
        called after the agent's user has ended, so that it starts no other run.
    :param told: called when the file is complete: the VPN forgets the profile's private key then.
    """

    def __init__(
        self,
        register: Register,
        parts: Sequence[Part],
        *,
        missing: Sequence[str] = (),
        cancel_runs: Callable[[str], Sequence[str]] | None = None,
        told: Callable[[Person], None] = lambda _: None,
    ) -> None:
        self.register = register
        self.parts = tuple(parts)
        self.missing = tuple(missing)
        self._cancel_runs = cancel_runs
        self._told = told

    def people(self) -> list[Person]:
        return self.register.people()

    def add(self, name: str, role: str, file: Path, options: Mapping[str, Any] | None = None) -> Person:
        """Give a person everything of a role, and write what it needs to `file`. After a kill, call it again.

        :raises AccessError: the name has access already, or is being revoked; the file exists; or a name or an option
            is not valid. The first part that refuses raises its own error, and the same call continues there.
        """
        wanted = Person(name, role, dict(options or {}))
        _check(wanted)
        if not file.absolute().parent.is_dir():
            raise AccessError(
                f"{file.absolute().parent} is not a folder.", hint="Create it, or choose another with --out."
            )
        unfinished = file.with_name(f"{file.name}.part")
        known = next((person for person in self.register.people() if person.name == name), None)
        services = [service for part in self.parts for service in part.needs(wanted)]
        active = known is not None and known.state == "active"
        if active and unfinished.exists() and _has(file, _secrets_of(unfinished, wanted, services, continues=True)):
            unfinished.unlink()  # the call before died in its last step
            return cast("Person", known)
        if file.exists() and not (unfinished.exists() and known and known.state == "adding"):
            raise AccessError(f"{file} exists and is never overwritten.", hint="Move it, or choose another with --out.")
        _check_state(wanted, known)
        continues = known is not None and known.state == "adding"
        given = _secrets_of(unfinished, wanted, services, continues=continues)
        person = Person(name, role, wanted.options, {service: _hash(secret) for service, secret in given.items()})
        if not _has(file, given):
            self.register.begin(person)
            document: dict[str, Any] = {"name": name, "role": role}
            if role == "agent":
                document["files"] = f"s3://{EXPORTS_BUCKET}/agents/{name}/"
            for part in self.parts:
                document |= part.add(person, given)
            if not write_once(file, json.dumps(document, indent=2) + "\n"):
                raise AccessError(
                    f"{file} exists and is never overwritten.", hint="Move it, or choose another with --out."
                )
        try:
            self._told(person)
            self.register.activate(person)
        except RevokedMeanwhileError:  # it was revoked meanwhile: what was made after that must not stay
            file.unlink(missing_ok=True)
            self._revoke_parts(person)
            raise
        unfinished.unlink(missing_ok=True)
        return next(found for found in self.register.people() if found.name == name)

    def revoke(self, name: str) -> tuple[Person, list[str]]:
        """End all access of a person, and open sessions. Returns the row, and the runs that were cancelled.

        Every part is tried, also if one before it does not answer. After an error, call it again.

        :raises AccessError: the name never had access, or some parts could not be reached: the message names each.
        """
        person = self.register.begin_revoke(name)
        failed = self._revoke_parts(person)
        cancelled: list[str] = []
        if person.role == "agent" and self._cancel_runs is not None:
            try:
                cancelled = list(self._cancel_runs(name))
            except TrilakeError as e:
                failed.append(f"runs: {e.message}")
        if failed:
            raise AccessError(
                f"{name} is not revoked everywhere. {' '.join(failed)}", hint="Run this again when they answer."
            )
        self.register.end_revoke(name)
        return next(found for found in self.register.people() if found.name == name), cancelled

    def _revoke_parts(self, person: Person) -> list[str]:
        """Revoke every part, side by side: a slow one does not hold up the others. Returns a line for each failure."""

        def revoke(part: Part) -> str:
            try:
                part.revoke(person)
            except TrilakeError as e:
                return f"{part.name}: {e.message}"
            return ""

        with ThreadPoolExecutor(max_workers=len(self.parts)) as pool:
            return [line for line in pool.map(revoke, self.parts) if line]


def users_of(people: Iterable[Person]) -> tuple[list[ClickHouseUser], list[str]]:
    """The users that ClickHouse must have, and the names of those that it must not have."""
    users, gone = [], []
    for person in people:
        if person.state == "active" and (user := person.clickhouse_user):
            users.append(user)
        elif person.state in ("revoking", "revoked") and "clickhouse" in person.hashes:
            gone.append(person.name)
    return users, gone


class AirflowPart:
    """The user in Airflow.

    :param ask: see `trilake.platform.airflow_users`.
    :param url: where people find Airflow.
    """

    name = "airflow"

    def __init__(self, ask: Callable[[Sequence[str | None]], Any], url: str) -> None:
        self._ask = ask
        self._url = url

    def needs(self, person: Person) -> Sequence[str]:
        return ("airflow",)

    def add(self, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        self._ask(["set", person.name, person.airflow_role, given["airflow"]])
        return {"airflow": {"url": self._url, "user": person.name, "password": given["airflow"]}}

    def revoke(self, person: Person) -> None:
        users = {str(user["name"]): bool(user["active"]) for user in self._ask(["list"])}
        if users.get(person.name):
            self._ask(["deactivate", person.name])


class Table:
    """The table `access` in a database that this process reaches."""

    def __init__(self, endpoint: PostgresEndpoint) -> None:
        self.endpoint = endpoint

    def people(self) -> list[Person]:
        """Everybody, sorted by name, also who was revoked."""
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {_COLUMNS} FROM access ORDER BY name")
            return [_person(row) for row in cursor.fetchall()]

    def begin(self, person: Person) -> None:
        """Record that the person is being added, with the hashes of these secrets.

        :raises AccessError: the name has access, or is being added or revoked by another call.
        """
        from psycopg2.extras import Json

        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO access AS known (name, role, options, hashes, state) VALUES (%s, %s, %s, %s, 'adding') "
                "ON CONFLICT (name) DO UPDATE SET role = EXCLUDED.role, options = EXCLUDED.options, "
                "hashes = EXCLUDED.hashes, state = 'adding', revoked_at = NULL, "
                "added_at = CASE known.state WHEN 'adding' THEN known.added_at ELSE now() END "
                "WHERE known.state = 'revoked' OR (known.state = 'adding' AND known.hashes = EXCLUDED.hashes)",
                (person.name, person.role, Json(dict(person.options)), Json(dict(person.hashes))),
            )
            if not cursor.rowcount:
                raise AccessError(
                    f"Another call is adding {person.name}, or was killed and its .part file is gone.",
                    hint=f"Wait for its end. If it was killed: `trilake access revoke {person.name}`, then add again.",
                )

    def activate(self, person: Person) -> None:
        """Record that the person has everything.

        :raises RevokedMeanwhileError: the name was revoked meanwhile.
        """
        from psycopg2.extras import Json

        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE access SET state = 'active' WHERE name = %s AND hashes = %s AND state IN ('adding', 'active')",
                (person.name, Json(dict(person.hashes))),
            )
            if not cursor.rowcount:
                raise RevokedMeanwhileError(
                    f"{person.name} was revoked meanwhile, so it got no access.", hint="`trilake access list` shows it."
                )

    def begin_revoke(self, name: str) -> Person:
        """Record that the person is being revoked, and return the row. A revoked one stays revoked.

        :raises AccessError: the name never had access.
        """
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE access SET state = CASE state WHEN 'revoked' THEN state ELSE 'revoking' END WHERE name = %s "
                f"RETURNING {_COLUMNS}",
                (name,),
            )
            if (row := cursor.fetchone()) is None:
                raise AccessError(f"{name} never had access.", hint="`trilake access list` shows everybody.")
            return _person(row)

    def end_revoke(self, name: str) -> None:
        with connect(self.endpoint) as connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE access SET state = 'revoked', revoked_at = now() WHERE name = %s AND state = 'revoking'",
                (name,),
            )


def to_document(person: Person) -> dict[str, Any]:
    return asdict(person)


def from_document(document: Mapping[str, Any]) -> Person:
    return Person(**document)


def _person(row: Sequence[Any]) -> Person:
    name, role, options, hashes, state, added_at, revoked_at = row
    ended = revoked_at.isoformat() if revoked_at else None
    return Person(name, role, options, hashes, state, added_at.isoformat(), ended)


def _check(person: Person) -> None:
    if not _NAME.fullmatch(person.name) or person.name in _TAKEN:
        raise AccessError(
            f"{person.name!r} is not a valid name for a person or an agent.",
            hint="Use at most 30 lower-case letters, digits and -, and no name of a role or a program.",
        )
    if person.role not in ROLES:
        raise AccessError(f"{person.role!r} is not a role.", hint=f"The roles are {', '.join(ROLES)}.")
    airflow = person.options.get("airflow")
    if person.role == "agent" and (airflow or person.has_s3_key):
        raise AccessError("An agent has the role Agent in Airflow and no key of S3.", hint="Leave the options out.")
    if airflow and airflow not in AIRFLOW_ROLES:
        raise AccessError(f"{airflow!r} is not a role in Airflow.", hint=f"The roles are {', '.join(AIRFLOW_ROLES)}.")


def _check_state(wanted: Person, known: Person | None) -> None:
    if known is None or known.state == "revoked":
        return
    if known.state == "active":
        raise AccessError(
            f"{wanted.name} has access already, as {known.role}.", hint="Revoke it first, then add it again."
        )
    if known.state == "revoking":
        raise AccessError(
            f"{wanted.name} is being revoked.", hint=f"Complete it first: `trilake access revoke {wanted.name}`."
        )
    if (known.role, dict(known.options)) != (wanted.role, dict(wanted.options)):
        raise AccessError(
            f"{wanted.name} is being added as {known.role} with the options {json.dumps(dict(known.options))}.",
            hint=f"Repeat that command, or give up: `trilake access revoke {wanted.name}`.",
        )


def _has(file: Path, given: Mapping[str, str]) -> bool:
    """Whether a call with these secrets has written the file, and died after that."""
    try:
        return bool(json.loads(file.read_text())["airflow"]["password"] == given["airflow"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _secrets_of(unfinished: Path, person: Person, services: Sequence[str], *, continues: bool) -> dict[str, str]:
    """The secrets that an earlier call wrote to this file, or new ones, which are in the file then.

    :param continues: the row is of a call that died. Otherwise an old file has secrets that were revoked or not used.
    :raises AccessError: the file belongs to somebody else, or another call is writing it.
    """
    head = {"name": person.name, "role": person.role}
    if unfinished.exists():
        try:
            document = json.loads(unfinished.read_text())
            given = {service: str(document["secrets"][service]) for service in services}
        except (ValueError, LookupError, TypeError):
            document, given = {}, {}
        if {key: document.get(key) for key in head} != head:
            raise AccessError(
                f"{unfinished} does not belong to {person.name} as {person.role}.",
                hint="Remove it, or choose another file with --out.",
            )
        if continues:
            return given
        unfinished.unlink()
    given = {service: secrets.token_hex(24) for service in services}
    if not write_once(unfinished, json.dumps({**head, "secrets": given}) + "\n"):
        raise AccessError(f"Another call is writing {unfinished}.", hint="Wait for it to end, then run this again.")
    return given


def _hash(secret: str) -> str:
    # the secrets are random and long, so a plain hash is enough; ClickHouse stores the same one
    return hashlib.sha256(secret.encode()).hexdigest()
