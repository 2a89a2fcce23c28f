"""Endpoints are read from connections, and keep their secrets to themselves."""

from __future__ import annotations

import json

import pytest

from trilake.endpoints import (
    CLICKHOUSE_CONNECTION,
    LAKE_CONNECTION,
    OLTP_CONNECTION,
    S3_CONNECTION,
    ClickHouseEndpoint,
    ClickHouseShard,
    Endpoints,
    EnvironmentConnection,
    PostgresEndpoint,
    S3Endpoint,
    as_environment,
)
from trilake.errors import ConfigurationError

SECRET = "s3cr3t/+ @:%"
ENVIRON = {
    "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
        {
            "conn_type": "aws",
            "login": "key",
            "password": SECRET,
            "extra": {"endpoint_url": "http://vps-1:7070/", "region_name": "us-east-1"},
        }
    ),
    "AIRFLOW_CONN_POSTGRES_LAKE": json.dumps(
        {"conn_type": "postgres", "host": "vps-1", "port": 5433, "login": "lake", "password": SECRET, "schema": "lake"}
    ),
    "AIRFLOW_CONN_POSTGRES_OLTP": json.dumps(
        {"conn_type": "postgres", "host": "vps-1", "login": "oltp", "password": SECRET, "schema": "oltp"}
    ),
    "AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT": json.dumps(
        {
            "conn_type": "clickhouse_cluster",
            "host": "vps-3",
            "port": 8123,
            "login": "etl_writer",
            "password": SECRET,
            "schema": "analytics",
            "extra": json.dumps({"shards": [{"database": "shard_1"}, {"port": 8124, "database": "shard_2"}]}),
        }
    ),
}


def test_endpoints_are_read_from_connections_in_the_environment() -> None:
    endpoints = Endpoints.from_environment(ENVIRON)
    assert endpoints.s3.url == "http://vps-1:7070"
    assert endpoints.lake.port == 5433
    assert endpoints.oltp.port == 5432
    assert [(s.number, s.host, s.port, s.database) for s in endpoints.clickhouse.shards] == [
        (1, "vps-3", 8123, "shard_1"),
        (2, "vps-3", 8124, "shard_2"),
    ]
    assert not endpoints.clickhouse.one_server


def test_a_password_with_odd_characters_survives_the_address() -> None:
    from sqlalchemy.engine import make_url

    assert make_url(Endpoints.from_environment(ENVIRON).lake.uri).password == SECRET


def test_no_representation_shows_a_secret() -> None:
    connection = EnvironmentConnection.read("aws_default", ENVIRON)
    assert SECRET not in f"{Endpoints.from_environment(ENVIRON)!r} {connection!r}"


@pytest.mark.parametrize("text", ["{not json " + SECRET, f'["{SECRET}"]', '{"port": "' + SECRET + '"}'])
def test_a_broken_connection_is_an_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="AIRFLOW_CONN_AWS_DEFAULT") as error:
        EnvironmentConnection.read("aws_default", {"AIRFLOW_CONN_AWS_DEFAULT": text})
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


@pytest.mark.parametrize("missing", sorted(ENVIRON))
def test_a_missing_connection_is_named(missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        Endpoints.from_environment({key: value for key, value in ENVIRON.items() if key != missing})


def test_what_the_connection_form_leaves_as_text_is_understood() -> None:
    def read(**extra: object) -> ClickHouseEndpoint:
        document = json.dumps({"host": "vps-3", "password": SECRET, "extra": extra})
        return ClickHouseEndpoint.of_servers(EnvironmentConnection.read("form", {"AIRFLOW_CONN_FORM": document}))

    endpoint = read(shards='[{"database": "a"}, {"host": "vps-4", "database": "b"}]', secure="true")
    assert [(s.host, s.port, s.database) for s in endpoint.shards] == [("vps-3", 8443, "a"), ("vps-4", 8443, "b")]
    assert not read(secure="false").secure
    for shards in ("[", '"a"', ["a"]):
        with pytest.raises(ConfigurationError, match="not a list of objects"):
            read(shards=shards)


def test_a_connection_without_shards_is_one_server() -> None:
    document = json.dumps({"conn_type": "clickhouse", "host": "vps-3", "schema": "analytics"})
    connection = EnvironmentConnection.read("one", {"AIRFLOW_CONN_ONE": document})
    (shard,) = ClickHouseEndpoint.of_servers(connection).shards
    assert (shard.host, shard.port, shard.database) == ("vps-3", 8123, "analytics")
    with pytest.raises(ConfigurationError):
        ClickHouseEndpoint.from_connection(connection)


def test_questions_are_answered_soon_or_given_up() -> None:
    shard = ClickHouseShard(1, "vps-3", 8123, "shard_1")
    assert ClickHouseEndpoint((shard,), "u", "p").for_questions().options == {"send_receive_timeout": 30.0}
    quick = ClickHouseEndpoint((shard,), "u", "p", options={"send_receive_timeout": 3, "compress": False})
    assert quick.for_questions().options == {"send_receive_timeout": 3.0, "compress": False}


def test_an_endpoint_is_read_back_from_its_connection() -> None:
    shards = (ClickHouseShard(1, "a", 8123, "shard_1"), ClickHouseShard(2, "b", 8124, "shard_2"))
    made = Endpoints(
        s3=S3Endpoint("http://s:7070", "who", "p'\"s", "eu"),
        lake=PostgresEndpoint("p", 5433, "lake", "l", "%s"),
        oltp=PostgresEndpoint("p", 5432, "oltp", "o", "ä"),
        clickhouse=ClickHouseEndpoint(shards, "etl", "x y", cluster="c", database="d"),
    )
    known = {
        S3_CONNECTION: made.s3,
        LAKE_CONNECTION: made.lake,
        OLTP_CONNECTION: made.oltp,
        CLICKHOUSE_CONNECTION: made.clickhouse,
    }
    environ = as_environment({name: endpoint.connection() for name, endpoint in known.items()})
    assert Endpoints.from_environment(environ) == made
