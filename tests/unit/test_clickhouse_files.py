"""What docker/vps_3 tells a real clickhouse-server: who may what, and from where. Read as XML, without a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trilake.clickhouse.export import EXPORTS_COLLECTION
from trilake.endpoints import ClickHouseEndpoint
from trilake.lake.data_set import LAKE_BUCKET, RAW_BUCKET
from trilake.platform.hosts.connections import SHARDS
from trilake.platform.hosts.environment import VARIABLES
from trilake.schema.clickhouse_steps import overall_ddl
from trilake.schema.steps import Step

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "vps_3"
USERS = (FOLDER / "users.d" / "trilake.xml").read_text()
SERVER = ElementTree.fromstring((FOLDER / "config.d" / "trilake.xml").read_text())
# What gives more than a service needs, wherever it stands.
_TOO_MUCH = re.compile(
    r"\b(ALL|ACCESS MANAGEMENT|ROLE ADMIN|CREATE USER|SYSTEM SHUTDOWN|FILE|URL|HDFS|MYSQL|ODBC|JDBC|SQLITE|"
    r"NAMED COLLECTION ADMIN|WITH GRANT OPTION|INTROSPECTION)\b"
)


def problems(text: str) -> list[str]:
    """What a file of users.d gives away."""
    return list(_problems(ElementTree.fromstring(text)))


def _problems(root: ElementTree.Element) -> Iterator[str]:
    users = root.find("users")
    assert users is not None
    default = users.find("default")
    if default is None or default.get("remove") is None:
        yield "default: it can enter"
    for user in users:
        if user.get("remove") is not None:
            continue
        digest = user.find("password_sha256_hex")
        if digest is None or not (digest.get("from_env") or "").endswith("_SHA256"):
            yield f"{user.tag}: its password is not a digest from the environment"
        if any(user.find(tag) is not None for tag in ("password", "no_password", "access_management")):
            yield f"{user.tag}: a password in the clear, or none, or it may make users"
        places = [place.get("from_env") for place in user.findall("networks/*")]
        if not places or not all(re.fullmatch(r"VPS_[123]_ADDRESS", place or "") for place in places):
            yield f"{user.tag}: it may come from anywhere"
        grants = [grant.text or "" for grant in user.findall("grants/query")]
        if not grants:
            yield f"{user.tag}: without grants it has all of them"
        yield from (f"{user.tag}: {grant}" for grant in grants if _TOO_MUCH.search(grant))
        profile = user.findtext("profile")
        if user.find("quota") is None or profile is None or root.find(f"profiles/{profile}") is None:
            yield f"{user.tag}: no quota or no profile"
        if user.tag.endswith("_ro"):
            yield from _problems_of_reader(user.tag, grants, root, profile or "")


def _problems_of_reader(name: str, grants: list[str], root: ElementTree.Element, profile: str) -> Iterator[str]:
    for grant in grants:
        if not re.fullmatch(r"GRANT SELECT ON (analytics|shard_[12])\.\*", grant):
            yield f"{name}: more than reading tables: {grant}"
    settings = root.find(f"profiles/{profile}")
    if settings is None:
        return
    if settings.findtext("readonly") != "2":
        yield f"{name}: readonly is not 2"
    limits = {s.tag for s in settings if s.tag.startswith("max_")}
    if not {"max_execution_time", "max_memory_usage", "max_rows_to_read", "max_result_rows"} <= limits:
        yield f"{name}: nothing limits its queries"
    for limit in sorted(limits | {"readonly"}):
        constraint = settings.find(f"constraints/{limit}")
        if constraint is None or (constraint.find("const") is None and constraint.find("max") is None):
            yield f"{name}: it may raise {limit}"


def test_every_user_is_limited_to_what_it_needs() -> None:
    assert problems(USERS) == []


@pytest.mark.parametrize(
    ("text", "instead", "told"),
    [
        ('<default remove="remove"/>', "<default><no_password/></default>", "default: it can enter"),
        ('<password_sha256_hex from_env="CLICKHOUSE_AGENT_PASSWORD_SHA256"/>', "<password>x</password>", "agent_ro"),
        ('<ip from_env="VPS_2_ADDRESS"/>', "<ip>::/0</ip>", "etl_writer: it may come from anywhere"),
        ("GRANT SELECT ON analytics.*</query>", "GRANT ALL ON *.*</query>", "GRANT ALL"),
        ("GRANT SELECT ON shard_1.*", "GRANT FILE ON *.*", "agent_ro: GRANT FILE"),
        ("<readonly>2</readonly>", "<readonly>0</readonly>", "readonly is not 2"),
        ("<max_memory_usage><const/></max_memory_usage>", "", "it may raise max_memory_usage"),
        ("<profile>agent</profile>", "<profile>none</profile>", "no quota or no profile"),
    ],
)
def test_a_user_that_gets_more_is_found(text: str, instead: str, told: str) -> None:
    assert text in USERS
    assert any(told in found for found in problems(USERS.replace(text, instead)))


def test_agents_read_every_table_of_the_shards_and_over_them() -> None:
    grants = {g.text for g in ElementTree.fromstring(USERS).findall("users/agent_ro/grants/query")}
    assert grants == {f"GRANT SELECT ON {database}.*" for database in ("analytics", *(s.database for s in SHARDS))}


def test_the_writer_has_the_collections_that_statements_name() -> None:
    grants = [g.text or "" for g in ElementTree.fromstring(USERS).findall("users/etl_writer/grants/query")]
    collections = {g.rsplit(" ", 1)[1] for g in grants if "NAMED COLLECTION" in g}
    assert collections == {LAKE_BUCKET, RAW_BUCKET, EXPORTS_COLLECTION}


def test_the_writer_may_make_the_tables_over_all_shards_anew_and_no_row_gets_in_by_them() -> None:
    """A server that is asked to CREATE OR REPLACE makes a table of another name and renames it over the old one: for
    that it asks for all of these on the database (clickhouse-server 26.8, InterpreterRenameQuery)."""
    endpoint = ClickHouseEndpoint(SHARDS, "etl_writer", "password")
    table = "CREATE TABLE t (id Int64, day Date) ENGINE = MergeTree"
    by_engine = {}
    for statement in (f"{table} PARTITION BY day ORDER BY id", f"{table} ORDER BY id"):
        step = Step("clickhouse/t/table.sql", "t", "clickhouse", statement)
        created, engine = overall_ddl(step, endpoint, SHARDS[0]).split(" ENGINE = ")
        assert created.startswith("CREATE OR REPLACE TABLE `analytics`.")
        by_engine[engine.partition("(")[0]] = engine
    grants = [g.text or "" for g in ElementTree.fromstring(USERS).findall("users/etl_writer/grants/query")]
    of_analytics = next(g for g in grants if g.endswith(" ON analytics.*")).removeprefix("GRANT ").partition(" ON ")[0]
    assert {"CREATE TABLE", "DROP TABLE", "SELECT", "INSERT"} <= set(of_analytics.split(", "))
    # cluster, database, table: with a fourth, a sharding key, it would take rows
    assert by_engine["Distributed"].count(",") == 2
    # database, tables: with a third it would have one to write to
    assert by_engine["Merge"].count(",") == 1
    into = {g.rsplit(" ", 1)[1] for g in grants if re.search(r"\bINSERT\b", g)}
    assert into == {"shard_1.*", "shard_2.*", "shard_1_staging.*", "shard_2_staging.*", "analytics.*"}


def test_the_writer_may_make_and_switch_staging_tables_of_every_shard() -> None:
    grants = [g.text or "" for g in ElementTree.fromstring(USERS).findall("users/etl_writer/grants/query")]
    for shard in SHARDS:
        of_both = {
            g.partition(" ON ")[0]
            for g in grants
            if g.endswith((f" {shard.database}.*", f" {shard.staging_database}.*"))
        }
        assert of_both == {"GRANT CREATE DATABASE, CREATE TABLE, DROP TABLE, ALTER TABLE, SELECT, INSERT"}
        assert sum(g.endswith(f" ON {shard.staging_database}.*") for g in grants) == 1


def test_a_statement_can_change_neither_address_nor_key_of_a_collection() -> None:
    collections = {c.tag: c for c in SERVER.findall("named_collections/*")}
    assert set(collections) == {LAKE_BUCKET, RAW_BUCKET, EXPORTS_COLLECTION}
    for name, collection in collections.items():
        assert {value.tag: value.get("overridable") for value in collection} == dict.fromkeys(
            ("url", "access_key_id", "secret_access_key"), "false"
        )
        assert collection.findtext("url") == f"http://vps-1:7070/{name}/"
    assert [host.text for host in SERVER.findall("remote_url_allow_hosts/host")] == ["vps-1:7070"]


def test_the_cluster_is_the_connections_and_asks_for_the_secret() -> None:
    cluster = SERVER.find(f"remote_servers/{ClickHouseEndpoint.cluster}")
    assert cluster is not None
    replicas = [(r.findtext("host"), r.findtext("default_database")) for r in cluster.findall("shard/replica")]
    assert replicas == [(shard.host, shard.database) for shard in SHARDS]
    secret = cluster.find("secret")
    assert secret is not None
    assert secret.get("from_env") == "CLICKHOUSE_INTERSERVER_SECRET"


def test_it_listens_on_the_private_address_alone_and_holds_no_secret() -> None:
    assert [host.get("from_env") for host in SERVER.findall("listen_host")] == ["VPS_3_ADDRESS"]
    ports = [e for e in SERVER if e.tag.endswith("_port")]
    assert {e.tag for e in ports if e.get("remove") != "remove"} == {"http_port", "tcp_port"}
    assert {e.tag for e in ports if e.get("remove")} == {"mysql_port", "postgresql_port", "interserver_http_port"}
    of_this_host = {v.name for v in VARIABLES if "vps_3" in v.hosts}
    named = [e.get("from_env") for root in (SERVER, ElementTree.fromstring(USERS)) for e in root.iter()]
    compose = (FOLDER / "compose.yml").read_text()
    for variable in filter(None, named):
        assert f"{variable}:" in compose, f"{variable} is in no server's environment"
        assert variable in of_this_host or variable.startswith("CLICKHOUSE_")
