"""Access on the hosts and in the replica: VPN, Airflow, ClickHouse, S3 and PostgreSQL.

The command line runs on vps_1 or on the administrator's machine. The VPN and Airflow are asked in their containers. The
stores are asked by a container of Airflow's image in vps_1's network (`main` below): ClickHouse's user `access_admin`
may come from vps_1 only, and the gateway's administration listens on its loopback. Secrets go through standard input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.people import drop_statements, sync
from trilake.endpoints import ClickHouseEndpoint, PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.platform.access import (
    Access,
    AccessError,
    AirflowPart,
    Part,
    Person,
    RevokedMeanwhileError,
    Table,
    from_document,
    to_document,
    users_of,
)
from trilake.platform.hosts import airflow_users, s3_admin
from trilake.platform.hosts.connections import AIRFLOW_PORT, POSTGRES_PORT, S3_PORT, SHARDS, required
from trilake.platform.hosts.containers import run_in_network_of_vps_1
from trilake.platform.hosts.vpn import Vpn
from trilake.postgres.people import LAKE, OLTP, drop_reader, set_reader

# What the container needs of .env. No service gets the last one.
SECRETS = (
    "VPS_1_ADDRESS",
    "LAKE_PASSWORD",
    "POSTGRES_SUPERUSER_PASSWORD",
    "S3_ROOT_SECRET",
    "CLICKHOUSE_ACCESS_PASSWORD",
)
ADMINISTRATOR = "access_admin"


def access_of(
    project: str,
    env: Mapping[str, str],
    *,
    remote: str = "",
) -> Access:
    """:param project: the compose project's name.
    :param env: the variables of ``.env``.
    :param remote: ``host[:port]`` of the VPN in profiles. Default: the container's setting.
    """
    stores = Stores(project, env)
    vpn = VpnPart(Vpn(project), remote)
    ask = partial(airflow_users.ask, project)
    parts: list[Part] = [vpn, AirflowPart(ask, f"http://vps-1:{AIRFLOW_PORT}"), stores]
    return Access(RemoteTable(stores), parts, cancel_runs=lambda name: ask(["cancel_runs", name]), told=vpn.delivered)


class VpnPart:
    """The VPN's profile of the person, with its role."""

    name = "VPN"

    def __init__(self, vpn: Vpn, remote: str = "") -> None:
        self.vpn = vpn
        self.remote = remote

    def needs(self, person: Person) -> Sequence[str]:
        return ()  # the container makes the profile's key

    def add(self, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        return {"vpn": self.vpn.profile(person.name, person.role, self.remote)}

    def delivered(self, person: Person) -> None:
        """The file has the profile, so its private key is not kept. Can be repeated."""
        if any(one["name"] == person.name and one["revoked_at"] is None for one in self.vpn.people()):
            self.vpn.delivered(person.name)

    def revoke(self, person: Person) -> None:
        if any(one["name"] == person.name and one["revoked_at"] is None for one in self.vpn.people()):
            self.vpn.revoke(person.name)


class Stores:
    """ClickHouse, S3 and PostgreSQL, in one request.

    :param project: the compose project's name.
    """

    name = "ClickHouse, S3 and PostgreSQL"

    def __init__(self, project: str, env: Mapping[str, str]) -> None:
        self.project = project
        self.env = env

    def ask(self, verb: str, *arguments: Any) -> Any:
        """The answer of a container in vps_1's network; see `answer`."""
        secrets = {name: required(self.env, name) for name in SECRETS}
        request = json.dumps({"env": secrets, "verb": verb, "arguments": arguments})
        printed = run_in_network_of_vps_1(self.project, __name__, request, error=AccessError)
        told = json.loads(printed)
        if isinstance(told, dict) and "error" in told:
            kind = RevokedMeanwhileError if told["revoked"] else AccessError
            raise kind(told["error"], hint=told["hint"])
        return told

    def needs(self, person: Person) -> Sequence[str]:
        if person.role == "agent":
            return ()  # it asks through Airflow
        return ("clickhouse", "postgresql", *(["s3"] if person.has_s3_key else []))

    def add(self, person: Person, given: Mapping[str, str]) -> dict[str, Any]:
        if person.role == "agent":
            return {}
        self.ask("make", to_document(person), given.get("s3", ""), given["postgresql"])
        found: dict[str, Any] = {
            "clickhouse": {
                "urls": [f"http://{shard.host}:{shard.port}" for shard in SHARDS],
                "user": person.name,
                "password": given["clickhouse"],
            },
            "postgresql": {
                "host": "vps-1",
                "port": POSTGRES_PORT,
                "databases": [OLTP, LAKE],
                "user": person.name,
                "password": given["postgresql"],
            },
        }
        if person.has_s3_key:
            found["s3"] = {
                "url": f"http://vps-1:{S3_PORT}",
                "access_key_id": f"{person.role}-{person.name}",
                "secret_access_key": given["s3"],
            }
        return found

    def revoke(self, person: Person) -> None:
        if person.role != "agent":
            self.ask("remove", person.name)


class RemoteTable:
    """The table `access`, which only vps_1 and VPN clients reach."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def people(self) -> list[Person]:
        return [from_document(document) for document in self._stores.ask("people")]

    def begin(self, person: Person) -> None:
        self._stores.ask("begin", to_document(person))

    def activate(self, person: Person) -> None:
        self._stores.ask("activate", to_document(person))

    def begin_revoke(self, name: str) -> Person:
        return from_document(self._stores.ask("begin_revoke", name))

    def end_revoke(self, name: str) -> None:
        self._stores.ask("end_revoke", name)


# --- what runs in vps_1's network


def clickhouse_of(env: Mapping[str, str]) -> Cluster:
    """ClickHouse as the user that makes people's users.

    :raises EnvironmentFileError: its password is not set.
    """
    password = required(env, "CLICKHOUSE_ACCESS_PASSWORD")
    return Cluster(ClickHouseEndpoint(SHARDS, ADMINISTRATOR, password), comment={"by": "trilake access"})


def sync_clickhouse(env: Mapping[str, str], table: Table) -> list[str]:
    """Make the users, roles and quotas of ClickHouse be those of the table. Returns the users' names."""
    users, gone = users_of(table.people())
    with clickhouse_of(env) as cluster:
        sync(cluster, users, gone, required(env, "VPS_1_ADDRESS"))
    return [user.name for user in users]


class _Verbs:
    """The verbs of `Stores.ask`. Their arguments and answers are documents in JSON."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.table = Table(PostgresEndpoint("vps-1", POSTGRES_PORT, LAKE, LAKE, required(env, "LAKE_PASSWORD")))

    def people(self) -> list[dict[str, Any]]:
        return [to_document(person) for person in self.table.people()]

    def begin(self, person: Mapping[str, Any]) -> None:
        self.table.begin(from_document(person))

    def activate(self, person: Mapping[str, Any]) -> None:
        self.table.activate(from_document(person))

    def begin_revoke(self, name: str) -> dict[str, Any]:
        return to_document(self.table.begin_revoke(name))

    def end_revoke(self, name: str) -> None:
        self.table.end_revoke(name)

    def make(self, document: Mapping[str, Any], s3_secret: str, postgres_password: str) -> None:
        person = from_document(document)
        if user := person.clickhouse_user:
            with clickhouse_of(self.env) as cluster:
                sync(cluster, [user], [], required(self.env, "VPS_1_ADDRESS"))
        if person.has_s3_key:
            s3_admin.set_person(self._root(), person.name, person.role, s3_secret)
        set_reader(self._superuser(), person.name, postgres_password)

    def remove(self, name: str) -> None:
        """Each store is tried, also if one before it does not answer."""
        failed = []
        for step in (self._drop_in_clickhouse, self._drop_in_s3, self._drop_in_postgres):
            try:
                step(name)
            except TrilakeError as e:
                failed.append(e.message)
        if failed:
            raise AccessError(" ".join(failed))

    def sync(self) -> list[str]:
        return sync_clickhouse(self.env, self.table)

    def _drop_in_clickhouse(self, name: str) -> None:
        with clickhouse_of(self.env) as cluster:
            cluster.every_host(lambda client, _: [client.command(statement) for statement in drop_statements(name)])

    def _drop_in_s3(self, name: str) -> None:
        s3_admin.revoke_person(self._root(), name)

    def _drop_in_postgres(self, name: str) -> None:
        drop_reader(self._superuser(), name)

    def _root(self) -> Any:
        return s3_admin.root_of(required(self.env, "S3_ROOT_SECRET"))

    def _superuser(self) -> PostgresEndpoint:
        password = required(self.env, "POSTGRES_SUPERUSER_PASSWORD")
        return PostgresEndpoint("vps-1", POSTGRES_PORT, "postgres", "postgres", password)


VERBS = ("people", "begin", "activate", "begin_revoke", "end_revoke", "make", "remove", "sync")


def answer(request: Mapping[str, Any]) -> Any:
    """The answer to a request of `Stores.ask`."""
    verb = request["verb"]
    assert verb in VERBS  # noqa: S101 - `Stores` asks
    return getattr(_Verbs(request["env"]), verb)(*request["arguments"])


def main() -> int:
    """Answer the request that is in standard input. Exit code 0: there is an answer, which may be a refusal."""
    try:
        print(json.dumps(answer(json.load(sys.stdin))))
    except TrilakeError as e:
        revoked = isinstance(e, RevokedMeanwhileError)
        print(json.dumps({"error": e.message, "hint": e.hint, "revoked": revoked}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
