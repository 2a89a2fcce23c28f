"""Connections as documents: what is written is read back, and what others wrote is an endpoint or an error of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trilake.endpoints import (
    ClickHouseEndpoint,
    ClickHouseShard,
    EnvironmentConnection,
    PostgresEndpoint,
    S3Endpoint,
    as_environment,
    is_on,
)
from trilake.errors import ConfigurationError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
PORTS = st.integers(1, 65535)
SHARDS = st.lists(st.tuples(TEXT, PORTS, TEXT), min_size=1, max_size=3).map(
    lambda found: tuple(ClickHouseShard(number, *one) for number, one in enumerate(found, start=1))
)
CLICKHOUSE = st.builds(ClickHouseEndpoint, SHARDS, TEXT, TEXT, cluster=TEXT, database=TEXT)
S3 = st.builds(S3Endpoint, TEXT.map(lambda text: "http://" + text.rstrip("/")), TEXT, TEXT, TEXT).filter(
    lambda endpoint: not endpoint.url.endswith("/")
)
POSTGRES = st.builds(PostgresEndpoint, TEXT, PORTS, TEXT, TEXT, TEXT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRAS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("shards", "client_kwargs", "cluster", "secure", "verify", "endpoint_url", "region_name"), JSON
    )
    | {
        "shards": JSON | st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("host", "port", "database"), JSON)))
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(("host", "port", "login", "password", "schema"), JSON), "extra": EXTRAS | JSON}
)


def read(document: Any) -> EnvironmentConnection:
    (variable,) = as_environment({"c": document}).items()
    return EnvironmentConnection.read("c", dict([variable]))


@given(S3 | POSTGRES | CLICKHOUSE, st.booleans())
def test_an_endpoint_is_the_same_after_its_way_through_a_document(endpoint: Any, as_text: bool) -> None:
    """Airflow keeps the extra as a text, and a file as an object."""
    document = endpoint.connection()
    if as_text and "extra" in document:
        document["extra"] = json.dumps(document["extra"])
    assert type(endpoint).from_connection(read(document)) == endpoint
    assert "\n" not in as_environment({"c": document})["AIRFLOW_CONN_C"]


@given(CLICKHOUSE)
def test_shards_may_be_a_text_within_the_extra(endpoint: ClickHouseEndpoint) -> None:
    document = endpoint.connection()
    document["extra"]["shards"] = json.dumps(document["extra"]["shards"])
    assert ClickHouseEndpoint.of_servers(read(document)) == endpoint


@given(DOCUMENTS | JSON)
def test_any_document_is_an_endpoint_or_refused(document: Any) -> None:
    for made_of in (
        S3Endpoint.from_connection,
        PostgresEndpoint.from_connection,
        ClickHouseEndpoint.from_connection,
        ClickHouseEndpoint.of_servers,
    ):
        with contextlib.suppress(ConfigurationError):
            made_of(read(document))


@given(st.text(max_size=20))
def test_any_text_of_a_variable_is_a_connection_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        EnvironmentConnection.read("c", {"AIRFLOW_CONN_C": text})


@given(JSON)
def test_a_switch_is_on_or_off(value: Any) -> None:
    assert is_on(value) in (True, False)
    assert is_on(str(value).upper()) == is_on(str(value).lower())
