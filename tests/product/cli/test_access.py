"""Who has access: one command gives everything, dies anywhere and is completed, and one takes it away.

The table is the platform's own. The parts record what they are asked: each real one is tested where its server is.
"""

from __future__ import annotations

import json
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.running_platform import Platform
from trilake.cli.access import sync_after
from trilake.endpoints import Endpoints, PostgresEndpoint
from trilake.errors import UnreachableError
from trilake.platform import access as module
from trilake.platform.access import Access, AccessError, AirflowPart, Person, Table, users_of
from trilake.platform.embedded import postgres
from trilake.postgres.connection import PostgresError, connect
from trilake.postgres.people import drop_reader, set_reader


class Recorded:
    """A part whose users are here, with their passwords."""

    def __init__(self, name: str, service: str) -> None:
        self.name = name
        self.service = service
        self.users: dict[str, str] = {}
        self.refuses = False

    def needs(self, person: Person) -> Sequence[str]:
        return (self.service,)

    def add(self, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        self.users[person.name] = given[self.service]
        return {self.service: {"user": person.name, "password": given[self.service]}}

    def revoke(self, person: Person) -> None:
        if self.refuses:
            raise UnreachableError(f"{self.name} does not answer.")
        self.users.pop(person.name, None)


class AirflowUsers:
    """What `trilake.platform.airflow_users` answers."""

    def __init__(self) -> None:
        self.users: dict[str, tuple[str, str | None, bool]] = {}

    def ask(self, request: Sequence[str | None]) -> Any:
        verb, *arguments = request
        if verb == "set":
            name, role, password = arguments
            self.users[str(name)] = (str(role), password, True)
        elif verb == "deactivate":
            role, password, _ = self.users[str(arguments[0])]
            self.users[str(arguments[0])] = (role, password, False)
        return [{"name": name, "roles": [role], "active": active} for name, (role, _, active) in self.users.items()]


@pytest.fixture
def table(endpoints: Endpoints) -> Table:
    return Table(endpoints.lake)


@pytest.fixture
def name(table: Table) -> Iterator[str]:
    found = f"t{secrets.token_hex(4)}"
    yield found
    with connect(table.endpoint) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM access WHERE name = %s", (found,))


@pytest.fixture
def airflow() -> AirflowUsers:
    return AirflowUsers()


@pytest.fixture
def store() -> Recorded:
    return Recorded("ClickHouse", "clickhouse")


@pytest.fixture
def access(table: Table, airflow: AirflowUsers, store: Recorded) -> Access:
    return Access(table, [AirflowPart(airflow.ask, "http://vps-1:8080"), store])


def row(table: Table, name: str) -> Person | None:
    return next((person for person in table.people() if person.name == name), None)


def read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def test_one_command_gives_everything_and_one_takes_it_away(
    access: Access, table: Table, airflow: AirflowUsers, store: Recorded, name: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.access"
    person = access.add(name, "engineer", file, {"airflow": "Op"})
    assert (person.state, person.airflow_role, row(table, name)) == ("active", "Op", person)
    given = read(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    assert airflow.users[name] == ("Op", given["airflow"]["password"], True)
    assert store.users == {name: given["clickhouse"]["password"]}
    (user,) = [user for user in users_of(table.people())[0] if user.name == name]
    assert user.role == "engineer"
    # the table has hashes, and no secret
    with connect(table.endpoint) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT access::text FROM access WHERE name = %s", (name,))
        ((stored,),) = cursor.fetchall()
    assert not [service for service in ("airflow", "clickhouse") if given[service]["password"] in stored]

    revoked, cancelled = access.revoke(name)
    assert (revoked.state, revoked.revoked_at is None, cancelled) == ("revoked", False, [])
    assert (airflow.users[name][2], store.users) == (False, {})
    assert name in users_of(table.people())[1]
    assert access.revoke(name)[0].state == "revoked"
    # the name can have access again, with other secrets
    access.add(name, "engineer", tmp_path / "again")
    assert read(tmp_path / "again")["airflow"]["password"] != given["airflow"]["password"]


def test_an_agent_gets_its_prefix_of_files_and_the_role_agent(
    access: Access, airflow: AirflowUsers, name: str, tmp_path: Path
) -> None:
    access.add(name, "agent", tmp_path / "a")
    assert airflow.users[name][0] == "Agent"
    assert read(tmp_path / "a")["files"] == f"s3://exports/agents/{name}/"


def test_a_name_is_added_once_and_a_file_is_never_overwritten(access: Access, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a"
    access.add(name, "engineer", file)
    before = file.read_text()
    with pytest.raises(AccessError, match="has access already, as engineer"):
        access.add(name, "engineer", tmp_path / "b")
    with pytest.raises(AccessError, match="is never overwritten"):
        access.add(name, "engineer", file)
    access.revoke(name)
    with pytest.raises(AccessError, match="is never overwritten"):
        access.add(name, "engineer", file)
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("named", "role", "options", "told"),
    [
        ("Ada", "agent", {}, "not a valid name"),
        ("shared", "agent", {}, "not a valid name"),
        ("etl_writer", "engineer", {}, "not a valid name"),
        ("ada", "root", {}, "not a role"),
        ("ada", "agent", {"s3": True}, "no key of S3"),
        ("ada", "agent", {"airflow": "Admin"}, "role Agent in Airflow"),
        ("ada", "engineer", {"airflow": "Root"}, "not a role in Airflow"),
    ],
)
def test_what_is_not_valid_is_refused_and_nothing_is_left(
    access: Access, tmp_path: Path, named: str, role: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(AccessError, match=told):
        access.add(named, role, tmp_path / "a", options)
    assert list(tmp_path.iterdir()) == []


class Dying:
    """Ends the process before or after one of the steps, which are counted."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.done = at, after, 0

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            self.done += 1
            if self.done - 1 == self.at and not self.after:
                raise KeyboardInterrupt
            found = step(*arguments, **options)
            if self.done - 1 == self.at:
                raise KeyboardInterrupt
            return found

        return run


ADD_STEPS = 7  # .part, begin, two parts, the file, told, activate


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(ADD_STEPS))
def test_an_add_that_died_at_any_step_is_completed_by_the_same_command(
    access: Access, table: Table, airflow: AirflowUsers, store: Recorded, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, at: int, after: bool,
) -> None:  # fmt: skip
    file, died = tmp_path / "a", Dying(at, after=after)
    with monkeypatch.context() as dying:
        dying.setattr(module, "write_once", died.around(module.write_once))
        for kind, method in ((Table, "begin"), (AirflowPart, "add"), (Recorded, "add"), (Table, "activate")):
            dying.setattr(kind, method, died.around(getattr(kind, method)))
        dying.setattr(access, "_told", died.around(access._told))
        with pytest.raises(KeyboardInterrupt):
            access.add(name, "engineer", file)
    assert died.done == at + 1
    assert access.add(name, "engineer", file).state == "active"
    assert list(tmp_path.iterdir()) == [file]
    person, given = row(table, name), read(file)
    assert person is not None
    assert airflow.users[name] == ("User", given["airflow"]["password"], True)
    assert store.users == {name: given["clickhouse"]["password"]}
    assert person.hashes == {service: module._hash(given[service]["password"]) for service in person.hashes}


def test_the_secrets_of_an_add_that_died_are_not_used_again_after_a_revocation(
    access: Access, store: Recorded, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(Table, "activate", Dying(0, after=False).around(Table.activate))
        with pytest.raises(KeyboardInterrupt):
            access.add(name, "engineer", tmp_path / "a")
    revoked = store.users[name]
    access.revoke(name)
    (tmp_path / "a").unlink()
    access.add(name, "engineer", tmp_path / "a")
    assert store.users[name] != revoked


def test_of_two_calls_that_add_one_name_the_second_is_refused_and_mixes_no_secrets(
    access: Access, table: Table, store: Recorded, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = AirflowPart.add

    def another_first(self: AirflowPart, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        monkeypatch.setattr(AirflowPart, "add", add)
        with pytest.raises(AccessError, match=f"Another call is adding {name}"):
            access.add(name, "engineer", tmp_path / "b")
        return add(self, person, given)

    monkeypatch.setattr(AirflowPart, "add", another_first)
    assert access.add(name, "engineer", tmp_path / "a").state == "active"
    assert store.users == {name: read(tmp_path / "a")["clickhouse"]["password"]}


def test_an_add_whose_part_file_was_lost_is_ended_by_a_revocation(
    access: Access, table: Table, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(Recorded, "add", Dying(0, after=True).around(Recorded.add))
        with pytest.raises(KeyboardInterrupt):
            access.add(name, "engineer", tmp_path / "a")
    (tmp_path / "a.part").unlink()
    with pytest.raises(AccessError, match=f"`trilake access revoke {name}`, then add again"):
        access.add(name, "engineer", tmp_path / "a")
    access.revoke(name)
    assert access.add(name, "engineer", tmp_path / "a").state == "active"


def test_an_add_that_is_revoked_while_it_runs_leaves_no_access(
    access: Access, table: Table, airflow: AirflowUsers, store: Recorded, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    add = Recorded.add

    def revoked_first(self: Recorded, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        access.revoke(name)
        return add(self, person, given)

    monkeypatch.setattr(Recorded, "add", revoked_first)
    with pytest.raises(AccessError, match="was revoked meanwhile, so it got no access"):
        access.add(name, "engineer", tmp_path / "a")
    assert (airflow.users[name][2], store.users) == (False, {})
    assert not (tmp_path / "a").exists()


def test_a_revocation_goes_on_where_a_part_does_not_answer_and_is_completed_later(
    access: Access, table: Table, airflow: AirflowUsers, store: Recorded, name: str, tmp_path: Path
) -> None:
    later = Recorded("S3", "s3")
    access.parts = (*access.parts, later)
    access.add(name, "engineer", tmp_path / "a")
    store.refuses = True
    with pytest.raises(AccessError, match=r"not revoked everywhere\. ClickHouse: ClickHouse does not answer"):
        access.revoke(name)
    assert (airflow.users[name][2], later.users, list(store.users)) == (False, {}, [name])
    with pytest.raises(AccessError, match="is being revoked"):
        access.add(name, "engineer", tmp_path / "b")
    store.refuses = False
    assert access.revoke(name)[0].state == "revoked"
    assert store.users == {}


def test_a_half_made_person_can_be_revoked_and_an_unknown_one_is_named(
    access: Access, airflow: AirflowUsers, store: Recorded, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AccessError, match=f"{name} never had access"):
        access.revoke(name)
    with monkeypatch.context() as dying:
        dying.setattr(AirflowPart, "add", Dying(0, after=False).around(AirflowPart.add))
        with pytest.raises(KeyboardInterrupt):
            access.add(name, "agent", tmp_path / "a")
    assert access.revoke(name)[0].state == "revoked"
    assert name not in airflow.users


def test_an_agents_runs_are_cancelled_after_its_user_has_ended(
    table: Table, airflow: AirflowUsers, name: str, tmp_path: Path
) -> None:
    seen: list[bool] = []

    def cancel(agent: str) -> list[str]:
        seen.append(airflow.users[agent][2])
        return [f"agent.{agent}.monday"]

    access = Access(table, [AirflowPart(airflow.ask, "http://vps-1:8080")], cancel_runs=cancel)
    access.add(name, "agent", tmp_path / "a")
    assert access.revoke(name)[1] == [f"agent.{name}.monday"]
    assert seen == [False]


# --- PostgreSQL's users, on the platform's own server


@pytest.fixture
def superuser(platform: Platform) -> PostgresEndpoint:
    return postgres.superuser(platform.home.ports()["postgres"], platform.home.secrets())


@pytest.fixture
def reader(superuser: PostgresEndpoint, endpoints: Endpoints, name: str) -> Iterator[PostgresEndpoint]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA IF NOT EXISTS marts")
    password = secrets.token_hex(24)
    set_reader(superuser, name, password)
    yield replace(endpoints.oltp, user=name, password=password)
    drop_reader(superuser, name)


def rows_of(endpoint: PostgresEndpoint, sql: str) -> list[tuple[Any, ...]]:
    with connect(endpoint) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_a_reader_of_postgresql_reads_marts_and_the_catalog_and_nothing_else(
    reader: PostgresEndpoint, endpoints: Endpoints, superuser: PostgresEndpoint, name: str
) -> None:
    mart = f"marts.{name}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {mart} AS SELECT 7 AS n")  # it was made after the reader
    try:
        assert rows_of(reader, f"SELECT n FROM {mart}") == [(7,)]
        with pytest.raises(PostgresError, match=r"read-only transaction|permission denied"):
            rows_of(reader, f"INSERT INTO {mart} VALUES (1) RETURNING n")
        with pytest.raises(PostgresError, match="permission denied"):
            rows_of(reader, f"SET transaction_read_only = off; DELETE FROM {mart} RETURNING n")
    finally:
        with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {mart}")
    lake = replace(reader, database="lake")
    for hidden in ("publications", "access", "pg_authid"):
        with pytest.raises(PostgresError, match="permission denied"):
            rows_of(lake, f"SELECT 1 FROM {hidden}")
    if rows_of(endpoints.lake, "SELECT to_regclass('public.iceberg_tables')") != [(None,)]:
        assert rows_of(lake, "SELECT count(*) >= 0 FROM iceberg_tables") == [(True,)]
    with pytest.raises(UnreachableError, match="permission denied for database"):
        rows_of(replace(reader, database="airflow"), "SELECT 1")


def test_a_reader_that_is_dropped_loses_its_session_and_its_password(
    reader: PostgresEndpoint, superuser: PostgresEndpoint, name: str
) -> None:
    def ask_before_and_after() -> None:
        with connect(reader) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert drop_reader(superuser, name)
            cursor.execute("SELECT 1")

    with pytest.raises(PostgresError, match=r"terminat|closed"):
        ask_before_and_after()
    with pytest.raises(UnreachableError):
        rows_of(reader, "SELECT 1")
    assert not drop_reader(superuser, name)


# --- after a rebuild or a reshard


@pytest.mark.parametrize("password", ["", "x" * 48])
def test_a_command_that_may_have_found_an_empty_shard_makes_peoples_users_or_says_how(
    access: Access, endpoints: Endpoints, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], password: str,
) -> None:  # fmt: skip
    synced: list[Table] = []
    monkeypatch.setenv("CLICKHOUSE_ACCESS_PASSWORD", password)
    monkeypatch.setattr(
        "trilake.platform.hosts.access.sync_clickhouse", lambda _, table: synced.append(table) or [name]
    )
    sync_after(endpoints, "`trilake rebuild`")
    assert (capsys.readouterr().err, synced) == ("", []), "nobody has a user there"
    access.add(name, "engineer", tmp_path / "a")
    sync_after(endpoints, "`trilake rebuild`")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert (f"users in ClickHouse: {name}." if password else "run `trilake access sync`") in told
    assert len(synced) == bool(password)
