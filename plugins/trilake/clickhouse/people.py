"""ClickHouse's users for people: their roles and quotas, and a user of each person on every shard.

The statements are those of the server's user `access_admin` (docker/vps_3/users.d). A role, a quota and a user are made
from names and hashes alone, so an empty or new shard gets the same ones. Every statement can be repeated.

The embedded engine has no users: none of this runs there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import Cluster, quote_name, quote_text
from trilake.errors import ConfigurationError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from trilake.endpoints import ClickHouseShard

# Role -> the most questions, and seconds of work, that one user may have in an hour. Each role has the profile of its
# name (docker/vps_3/users.d), which limits a single question.
ROLES = {"engineer": (10_000, 7_200), "admin": (50_000, 36_000)}
_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ClickHouseUser:
    """A person's user.

    :param sha256: of the password, in hexadecimal.
    """

    name: str
    role: str
    sha256: str


def rights_of(role: str, databases: Iterable[str]) -> list[str]:
    """What a role may do, as GRANT says it. None of the databases has staging tables."""
    reads = [f"SELECT ON {database}.*" for database in databases]
    return [*reads, "SELECT ON system.*", "KILL QUERY ON *.*"] if role == "admin" else reads


def role_statements(databases: Sequence[str]) -> list[str]:
    """Make the roles, with their rights and quotas.

    :param databases: of published tables: the one over all shards, and those of the shards.
    """
    statements = []
    for role, (queries, seconds) in ROLES.items():
        name = quote_name(role)
        limits = f"KEYED BY user_name FOR INTERVAL 1 hour MAX queries = {queries}, execution_time = {seconds} TO {name}"
        statements.append(f"CREATE ROLE IF NOT EXISTS {name}")
        statements += [f"GRANT {right} TO {name}" for right in rights_of(role, databases)]
        # the second one, because an earlier version may have made it with other limits
        statements += [f"CREATE QUOTA IF NOT EXISTS {name} {limits}", f"ALTER QUOTA {name} {limits}"]
    return statements


def user_statements(user: ClickHouseUser, address: str) -> list[str]:
    """Make or change a person's user.

    :param address: the only address that it may connect from. The VPN's clients have vps_1's.
    :raises ConfigurationError: the name, the role or the hash is not valid.
    """
    if not (_NAME.fullmatch(user.name) and user.role in ROLES and _SHA256.fullmatch(user.sha256)):
        raise ConfigurationError(f"{user.name!r} with role {user.role!r} cannot be a user of ClickHouse.")
    name, role = quote_name(user.name), quote_name(user.role)
    what = (
        f"IDENTIFIED WITH sha256_hash BY {quote_text(user.sha256)} HOST IP {quote_text(address)} "
        f"SETTINGS PROFILE {quote_text(user.role)}"
    )
    others = ", ".join(quote_name(other) for other in ROLES if other != user.role)
    return [
        f"CREATE USER IF NOT EXISTS {name} {what}",
        f"ALTER USER {name} {what}",
        f"REVOKE {others} FROM {name}",
        f"GRANT {role} TO {name}",
    ]


def drop_statements(name: str) -> list[str]:
    """Drop a person's user, and end its queries. In this order, so that no new one begins."""
    return [f"DROP USER IF EXISTS {quote_name(name)}", f"KILL QUERY WHERE user = {quote_text(name)} ASYNC"]


def sync(cluster: Cluster, users: Iterable[ClickHouseUser], gone: Iterable[str], address: str) -> None:
    """Make every server have these users, with roles and quotas, and none of those that are gone. Can be repeated.

    :param cluster: connected as the user `access_admin`.
    :param address: see `user_statements`.
    :raises ClusterError: names the servers that failed.
    """
    databases = [cluster.endpoint.database, *(shard.database for shard in cluster.endpoint.shards)]
    statements = role_statements(databases)
    for user in users:
        statements += user_statements(user, address)
    for name in gone:
        statements += drop_statements(name)

    def run(client: Client, _: ClickHouseShard) -> None:
        for statement in statements:
            client.command(statement)

    cluster.every_host(run)
