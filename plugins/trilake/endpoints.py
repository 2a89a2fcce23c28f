"""Addresses and credentials of the services, read from Airflow connections into typed classes.

An endpoint is made from an Airflow connection. A Spark driver and the command line have no Airflow. They read the same
connections, in Airflow's own JSON form, from the environment (``AIRFLOW_CONN_<ID>``). So the same document describes a
service in all three places, and the modules that use endpoints do not know where they run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import quote

from trilake.errors import ConfigurationError

S3_CONNECTION = "aws_default"
LAKE_CONNECTION = "postgres_lake"
OLTP_CONNECTION = "postgres_oltp"
CLICKHOUSE_CONNECTION = "clickhouse_cluster_default"
KUBERNETES_CONNECTION = "kubernetes_default"
# What an agent asks is asked with these: they can read published tables, and use one prefix of bucket exports.
AGENTS_CLICKHOUSE_CONNECTION = "clickhouse_agents"
AGENTS_S3_CONNECTION = "aws_agents"
# Where agents' Spark applications run: on the hosts, a namespace of its own.
AGENTS_KUBERNETES_CONNECTION = "kubernetes_agents"

# For requests that look up or kill a query. A server that runs answers them in milliseconds.
QUESTION_TIMEOUT_S = 30.0


class ConnectionLike(Protocol):
    """The part of an Airflow connection that endpoints need (`airflow.sdk.Connection` has it)."""

    @property
    def conn_id(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def login(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def schema(self) -> str | None: ...
    @property
    def extra_dejson(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class EnvironmentConnection:
    """An Airflow connection read from its JSON form in the environment, without Airflow."""

    conn_id: str
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    schema: str | None = None
    extra_dejson: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, conn_id: str, environ: Mapping[str, str] | None = None) -> EnvironmentConnection:
        """Read ``AIRFLOW_CONN_<CONN_ID>``.

        :raises ConfigurationError: the variable is not set, or is not a connection in JSON. Its text is not shown,
            because it holds a password.
        """
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        text = (os.environ if environ is None else environ).get(variable)
        if not text:
            raise ConfigurationError(
                f"The connection {conn_id} is not defined: the environment variable {variable} is not set.",
                hint="Start the platform with `trilake up`, or set the variable to the connection's JSON.",
            )
        try:
            document = json.loads(text)
            extra = document.get("extra") or {}
            extra = json.loads(extra) if isinstance(extra, str) else extra
            port = int(document["port"]) if document.get("port") else None
            texts = {name: document.get(name) for name in ("host", "login", "password", "schema")}
            if not isinstance(extra, dict) or not all(isinstance(text, str | None) for text in texts.values()):
                raise TypeError
        except (ValueError, TypeError, AttributeError, OverflowError) as e:
            # `from None`: the JSON error contains the document, which contains a password
            raise ConfigurationError(
                f"{variable} is not a connection in JSON ({type(e).__name__}).",
                hint='Write it like {"conn_type": "...", "host": "...", "port": 5432}.',
            ) from None
        return cls(conn_id=conn_id, port=port, extra_dejson=extra, **texts)


def as_environment(connections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Connections as Airflow, a Spark driver and the command line read them: variable -> JSON on one line."""
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(doc, separators=(",", ":")) for name, doc in connections.items()}


def _required(connection: ConnectionLike, name: str, value: Any) -> Any:
    if value in (None, ""):
        raise ConfigurationError(f"The connection {connection.conn_id} has no {name}.", hint="Add it and try again.")
    return value


def _text(connection: ConnectionLike, name: str, value: Any, default: str = "") -> str:
    """A string in a connection's extra.

    :raises ConfigurationError: it is not a string, or it is missing without a default. Its value is not shown.
    """
    value = _required(connection, name, value or default)
    if not isinstance(value, str):
        raise ConfigurationError(
            f"The {name} of connection {connection.conn_id} is not a string.", hint="Write it in quotes."
        )
    return value


def is_on(value: Any) -> bool:
    """Whether a switch in a connection's extra is on. A form or a URI may store it as a string."""
    return value.strip().lower() in ("true", "1", "yes", "on") if isinstance(value, str) else bool(value)


def _shards(connection: ConnectionLike) -> list[dict[str, Any]]:
    """A cluster's shards in extra: a list, or its JSON as a string, which a form or a URI stores."""
    shards = connection.extra_dejson.get("shards") or []
    try:
        shards = json.loads(shards) if isinstance(shards, str) else shards
    except ValueError:
        shards = None
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise ConfigurationError(
            f"The shards of connection {connection.conn_id} are not a list of objects.",
            hint='Write them as [{"host": "...", "port": 8123, "database": "shard_1"}, ...].',
        )
    return shards


def _port(connection: ConnectionLike, name: str, value: Any) -> int:
    try:
        return int(value)
    except (ValueError, TypeError, OverflowError):
        raise ConfigurationError(
            f"The {name} of connection {connection.conn_id} is not a number.", hint="Write a number such as 8123."
        ) from None


def _client_options(connection: ConnectionLike) -> dict[str, Any]:
    """The extra's ``client_kwargs``: an object, or its JSON as a string, which a form or a URI stores."""
    options = connection.extra_dejson.get("client_kwargs") or {}
    try:
        options = json.loads(options) if isinstance(options, str) else options
    except ValueError:
        options = None
    if not isinstance(options, dict):  # not shown: it may hold a secret
        raise ConfigurationError(
            f"The client_kwargs of connection {connection.conn_id} are not a JSON object.",
            hint='Write them like {"send_receive_timeout": 600}.',
        )
    return options


@dataclass(frozen=True)
class S3Endpoint:
    """An S3-compatible store, addressed by path (`http://host:port/bucket/key`).

    :ivar unfinished_keys: a regular expression for the keys under which the store lists objects that are still being
        written. Listings leave out an object with such a key and without an ETag. Empty: the store lists no such keys.
    """

    url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str = "us-east-1"
    unfinished_keys: str = ""

    @classmethod
    def from_connection(cls, connection: ConnectionLike) -> S3Endpoint:
        extra = connection.extra_dejson
        return cls(
            url=_text(connection, "extra endpoint_url", extra.get("endpoint_url")).rstrip("/"),
            access_key_id=_required(connection, "login", connection.login),
            secret_access_key=_required(connection, "password", connection.password),
            region=_text(connection, "extra region_name", extra.get("region_name"), "us-east-1"),
            unfinished_keys=str(extra.get("unfinished_keys") or ""),
        )

    def connection(self) -> dict[str, Any]:
        """The Airflow connection for this endpoint, in JSON form. It contains the secret key."""
        return {
            "conn_type": "aws",
            "login": self.access_key_id,
            "password": self.secret_access_key,
            "extra": {
                "endpoint_url": self.url,
                "region_name": self.region,
                "config_kwargs": {"s3": {"addressing_style": "path"}},
                **({"unfinished_keys": self.unfinished_keys} if self.unfinished_keys else {}),
            },
        }


@dataclass(frozen=True)
class PostgresEndpoint:
    """One PostgreSQL database, and the user for it."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)

    @classmethod
    def from_connection(cls, connection: ConnectionLike) -> PostgresEndpoint:
        return cls(
            host=_required(connection, "host", connection.host),
            port=connection.port or 5432,
            database=_required(connection, "schema (the database)", connection.schema),
            user=_required(connection, "login", connection.login),
            password=_required(connection, "password", connection.password),
        )

    def connection(self) -> dict[str, Any]:
        """The Airflow connection for this endpoint, in JSON form. It contains the password."""
        return {
            "conn_type": "postgres",
            "host": self.host,
            "port": self.port,
            "login": self.user,
            "password": self.password,
            "schema": self.database,
        }

    @property
    def uri(self) -> str:
        """SQLAlchemy's address with the password. Use it to configure a library, never in a log."""
        return (
            f"postgresql+psycopg2://{quote(self.user, safe='')}:{quote(self.password, safe='')}"
            f"@{self.host}:{self.port}/{quote(self.database, safe='')}"
        )

    @property
    def jdbc_url(self) -> str:
        """Java's address, without user and password."""
        return f"jdbc:postgresql://{self.host}:{self.port}/{quote(self.database, safe='')}"


@dataclass(frozen=True)
class ClickHouseShard:
    """One shard: an HTTP address, and the database with its local tables."""

    number: int
    host: str
    port: int
    database: str

    @property
    def staging_database(self) -> str:
        """The database with the shard's staging tables. Readers have no right to it."""
        return f"{self.database}_staging"

    def __str__(self) -> str:
        return f"shard {self.number} ({self.host}:{self.port}, database {self.database})"


def hosts_of(shards: Sequence[ClickHouseShard]) -> tuple[ClickHouseShard, ...]:
    """The first shard of each server. Several shards may be databases of the same server."""
    return tuple({(shard.host, shard.port): shard for shard in reversed(shards)}.values())[::-1]


@dataclass(frozen=True)
class ClickHouseEndpoint:
    """All shards of one ClickHouse cluster. `database` holds the tables over all shards, on every host.

    :param verify: whether to check the servers' certificates.
    :param options: more driver options, from the connection's ``client_kwargs``: timeouts (in seconds), a CA, a proxy.
    """

    shards: tuple[ClickHouseShard, ...]
    user: str
    password: str = field(repr=False)
    cluster: str = "trilake"
    database: str = "analytics"
    secure: bool = False
    verify: bool = True
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def from_connection(cls, connection: ConnectionLike) -> ClickHouseEndpoint:
        extra = connection.extra_dejson
        secure = is_on(extra.get("secure", False))
        default_port = connection.port or (8443 if secure else 8123)
        host = _required(connection, "host", connection.host)
        shards = tuple(
            ClickHouseShard(
                number=number,
                host=_text(connection, f"host for shard {number} in extra", shard.get("host"), host),
                port=_port(connection, f"port for shard {number} in extra", shard.get("port") or default_port),
                database=_text(connection, f"database for shard {number} in extra", shard.get("database")),
            )
            for number, shard in enumerate(_shards(connection), start=1)
        )
        return cls(
            shards=_required(connection, "extra shards", shards or None),
            user=connection.login or "default",
            password=connection.password or "",
            cluster=_text(connection, "extra cluster", extra.get("cluster"), "trilake"),
            database=connection.schema or "analytics",
            secure=secure,
            verify=is_on(extra.get("verify", True)),
            options=_client_options(connection),
        )

    @classmethod
    def of_servers(cls, connection: ConnectionLike) -> ClickHouseEndpoint:
        """Like `from_connection`, but a connection without shards is one server, with the connection's database."""
        if connection.extra_dejson.get("shards"):
            return cls.from_connection(connection)
        secure = is_on(connection.extra_dejson.get("secure", False))
        host, port = connection.host or "localhost", connection.port or (8443 if secure else 8123)
        database = connection.schema or "default"
        return cls(
            shards=(ClickHouseShard(1, host, port, database),),
            user=connection.login or "default",
            password=connection.password or "",
            database=database,
            secure=secure,
            verify=is_on(connection.extra_dejson.get("verify", True)),
            options=_client_options(connection),
        )

    def for_questions(self) -> ClickHouseEndpoint:
        """The same endpoint with a short timeout, for statements that a server answers at once. So a host that does not
        answer becomes an error soon.
        """
        seconds = min(float(self.options.get("send_receive_timeout") or QUESTION_TIMEOUT_S), QUESTION_TIMEOUT_S)
        return replace(self, options={**self.options, "send_receive_timeout": seconds})

    def connection(self) -> dict[str, Any]:
        """The Airflow connection for this endpoint, in JSON form. It has the password, but not TLS and `options`."""
        return {
            "conn_type": "clickhouse_cluster",
            "host": self.shards[0].host,
            "port": self.shards[0].port,
            "login": self.user,
            "password": self.password,
            "schema": self.database,
            "extra": {
                "cluster": self.cluster,
                "shards": [{"host": s.host, "port": s.port, "database": s.database} for s in self.shards],
            },
        }

    @property
    def one_server(self) -> bool:
        """Whether all shards are databases of one server. Then a table over all of them is a Merge."""
        return len({(shard.host, shard.port) for shard in self.shards}) == 1


@dataclass(frozen=True)
class Endpoints:
    """All services that a Spark driver or the command line uses."""

    s3: S3Endpoint
    lake: PostgresEndpoint
    oltp: PostgresEndpoint
    clickhouse: ClickHouseEndpoint

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Endpoints:
        """:raises ConfigurationError: a connection is missing or incomplete."""

        def read(conn_id: str) -> EnvironmentConnection:
            return EnvironmentConnection.read(conn_id, environ)

        return cls(
            s3=S3Endpoint.from_connection(read(S3_CONNECTION)),
            lake=PostgresEndpoint.from_connection(read(LAKE_CONNECTION)),
            oltp=PostgresEndpoint.from_connection(read(OLTP_CONNECTION)),
            clickhouse=ClickHouseEndpoint.from_connection(read(CLICKHOUSE_CONNECTION)),
        )
