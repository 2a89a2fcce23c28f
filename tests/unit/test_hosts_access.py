"""What `trilake access` asks of the hosts' containers: secrets by standard input, and each store its own statements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trilake.clickhouse import people
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.people import ClickHouseUser
from trilake.errors import UnreachableError
from trilake.platform.access import AccessError, Person, RevokedMeanwhileError, Table, users_of
from trilake.platform.hosts import access as module
from trilake.platform.hosts import environment
from trilake.platform.hosts.access import Stores, access_of, answer

HASH = "0f" * 32


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    environment.write(tmp_path / ".env", environment.replica_settings())
    return environment.read(tmp_path / ".env")


class Client:
    """ClickHouse's client, which keeps the statements."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def command(self, sql: str) -> None:
        self.sent.append(sql)

    def close(self) -> None:
        pass


class Hosts:
    """vps_1's containers: a request is answered in this process, and the stores keep what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.rows: dict[str, Person] = {}
        self.clients: dict[int, Client] = {}
        self.told: list[tuple[str, ...]] = []
        self.profiles: dict[str, str] = {}
        self.airflow: dict[str, bool] = {}
        self.broken = ""
        for name in ("set_reader", "drop_reader"):
            monkeypatch.setattr(module, name, self.step(name))
        monkeypatch.setattr(module.s3_admin, "set_person", self.step("set_person"))
        monkeypatch.setattr(module.s3_admin, "revoke_person", self.step("revoke_person"))
        monkeypatch.setattr(module, "clickhouse_of", self.clickhouse)
        monkeypatch.setattr("trilake.platform.hosts.containers.docker", self.docker)
        monkeypatch.setattr("trilake.platform.hosts.vpn.docker", self.docker)
        monkeypatch.setattr("trilake.platform.hosts.vpn.find_container", lambda *_: "vpn")
        monkeypatch.setattr("trilake.platform.hosts.airflow_users.ask", self.ask_airflow)
        monkeypatch.setattr(Table, "people", lambda _: list(self.rows.values()))
        monkeypatch.setattr(Table, "begin", lambda _, person: self.rows.update({person.name: person}))
        monkeypatch.setattr(Table, "activate", lambda _, person: self.set_state(person.name, "active"))
        monkeypatch.setattr(Table, "begin_revoke", lambda _, name: self.set_state(name, "revoking"))
        monkeypatch.setattr(Table, "end_revoke", lambda _, name: self.set_state(name, "revoked"))

    def set_state(self, name: str, state: str) -> Person:
        known = self.rows[name]
        self.rows[name] = Person(known.name, known.role, known.options, known.hashes, state)
        return self.rows[name]

    def step(self, name: str) -> Any:
        def run(endpoint: Any, *arguments: str) -> None:
            if self.broken == name:
                raise UnreachableError(f"{name} does not answer.")
            self.told.append((name, *arguments))

        return run

    def clickhouse(self, env: dict[str, str]) -> Cluster:
        assert env["CLICKHOUSE_ACCESS_PASSWORD"]
        endpoint = module.ClickHouseEndpoint(module.SHARDS, "access_admin", env["CLICKHOUSE_ACCESS_PASSWORD"])

        def connect(_: Any, shard: Any, __: str) -> Any:
            return self.clients.setdefault(shard.number, Client())

        return Cluster(endpoint, connect=connect)

    def ask_airflow(self, project: str, request: list[Any]) -> Any:
        if request[0] == "set":
            self.airflow[request[1]] = True
        elif request[0] == "deactivate":
            self.airflow[request[1]] = False
        return [{"name": name, "active": active} for name, active in self.airflow.items()]

    def docker(self, *arguments: str, stdin: str | None = None, **_: Any) -> str:
        self.commands.append(arguments)
        if arguments[0] == "ps":
            return "container"
        if arguments[0] == "inspect":
            return json.dumps([{"HostConfig": {"NetworkMode": "host"}, "Image": "sha256:airflow"}])
        if arguments[:3] == ("exec", "vpn", "vpn"):
            return json.dumps(self.vpn(*arguments[3:]))
        assert stdin is not None
        with pytest.MonkeyPatch.context() as printing:
            printed: list[str] = []
            printing.setattr("builtins.print", printed.append)
            printing.setattr("sys.stdin", type("In", (), {"read": lambda _: stdin})())
            assert module.main() == 0
        return printed[0]

    def vpn(self, verb: str, *arguments: str) -> Any:
        if verb == "add":
            self.profiles[arguments[0]] = "valid"
            return {"profile": "client\n<key>secret of the VPN</key>\n"}
        if verb == "revoke":
            self.profiles[arguments[0]] = "revoked"
        people = [
            {"name": name, "revoked_at": None if state == "valid" else "now"} for name, state in self.profiles.items()
        ]
        return people if verb == "list" else {"name": arguments[0]}


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(monkeypatch)


def test_an_engineer_gets_a_user_of_every_store_and_loses_each(
    hosts: Hosts, env: dict[str, str], tmp_path: Path
) -> None:
    access = access_of("p", env)
    access.add("ada", "engineer", tmp_path / "a", {"s3": True})
    given = json.loads((tmp_path / "a").read_text())
    assert set(given) == {"name", "role", "vpn", "airflow", "clickhouse", "postgresql", "s3"}
    assert given["s3"]["access_key_id"] == "engineer-ada"
    assert hosts.told == [
        ("set_person", "ada", "engineer", given["s3"]["secret_access_key"]),
        ("set_reader", "ada", given["postgresql"]["password"]),
    ]
    passwords = [given[service]["password"] for service in ("airflow", "clickhouse", "postgresql")]
    secrets = [*passwords, given["s3"]["secret_access_key"], *(env[name] for name in module.SECRETS[1:])]
    assert not [secret for secret in secrets if secret in repr(hosts.commands)]
    (user,) = users_of(hosts.rows.values())[0]
    made = (
        f"CREATE USER IF NOT EXISTS `ada` IDENTIFIED WITH sha256_hash BY '{user.sha256}' "
        f"HOST IP '{env['VPS_1_ADDRESS']}' SETTINGS PROFILE 'engineer'"
    )
    for number in (1, 2):
        assert made in hosts.clients[number].sent
        assert given["clickhouse"]["password"] not in repr(hosts.clients[number].sent)

    access.revoke("ada")
    assert (hosts.profiles, hosts.airflow) == ({"ada": "revoked"}, {"ada": False})
    assert hosts.told[2:] == [("revoke_person", "ada"), ("drop_reader", "ada")]
    for client in hosts.clients.values():
        assert client.sent[-2:] == ["DROP USER IF EXISTS `ada`", "KILL QUERY WHERE user = 'ada' ASYNC"]


def test_an_agent_gets_vpn_and_airflow_and_no_user_of_a_store(
    hosts: Hosts, env: dict[str, str], tmp_path: Path
) -> None:
    access = access_of("p", env)
    access.add("ada", "agent", tmp_path / "a")
    assert set(json.loads((tmp_path / "a").read_text())) == {"name", "role", "files", "vpn", "airflow"}
    access.revoke("ada")
    assert (hosts.told, hosts.clients) == ([], {})


def test_a_store_that_does_not_answer_keeps_no_other_from_being_revoked(
    hosts: Hosts, env: dict[str, str], tmp_path: Path
) -> None:
    access = access_of("p", env)
    access.add("ada", "engineer", tmp_path / "a", {"s3": True})
    hosts.broken = "revoke_person"
    with pytest.raises(AccessError, match="revoke_person does not answer"):
        access.revoke("ada")
    assert hosts.told[-1] == ("drop_reader", "ada")
    assert hosts.rows["ada"].state == "revoking"


def test_a_refusal_comes_back_as_the_error_that_it_was(
    hosts: Hosts, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RevokedMeanwhileError("ada was revoked meanwhile.", hint="Look.")

    monkeypatch.setattr(Table, "activate", refuse)
    with pytest.raises(RevokedMeanwhileError, match=r"ada was revoked meanwhile\. Look\."):
        Stores("p", env).ask("activate", {"name": "ada", "role": "agent"})
    with pytest.raises(AssertionError):
        answer({"env": env, "verb": "__class__", "arguments": []})


def test_a_sync_makes_roles_first_then_users_and_drops_who_is_gone(hosts: Hosts, env: dict[str, str]) -> None:
    hosts.rows = {
        "ada": Person("ada", "admin", {}, {"clickhouse": HASH}, "active"),
        "bob": Person("bob", "engineer", {}, {"clickhouse": HASH}, "revoked"),
        "eve": Person("eve", "engineer", {}, {"clickhouse": HASH}, "adding"),
        "bot": Person("bot", "agent", {}, {"airflow": HASH}, "active"),
    }
    assert Stores("p", env).ask("sync") == ["ada"]
    sent = hosts.clients[2].sent
    assert sent == hosts.clients[1].sent
    order = ["CREATE ROLE IF NOT EXISTS `engineer`", "CREATE USER IF NOT EXISTS `ada`", "GRANT `admin` TO `ada`"]
    at = [next(number for number, sql in enumerate(sent) if sql.startswith(begin)) for begin in order]
    assert at == sorted(at)
    assert "DROP USER IF EXISTS `bob`" in sent
    assert not [sql for sql in sent if "eve" in sql or "bot" in sql]
    assert not [sql for sql in sent if "staging" in sql]


def test_of_each_person_one_role_is_left() -> None:
    for role, other in (("engineer", "admin"), ("admin", "engineer")):
        statements = people.user_statements(ClickHouseUser("ada", role, HASH), "10.0.0.1")
        assert statements[-2:] == [f"REVOKE `{other}` FROM `ada`", f"GRANT `{role}` TO `ada`"]
