"""What docker/vps_3 tells a real clickhouse-server: who may what, and from where. Read as XML, without a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trilake.clickhouse.export import EXPORTS_COLLECTION
from trilake.clickhouse.people import ROLES, rights_of
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
# The user that makes people's users: it may hand on exactly the rights of their roles.
ADMINISTRATOR = "access_admin"
_LOGS = {
    f"log_queries{suffix}" for suffix in ("", "_min_type", "_min_query_duration_ms", "_cut_to_length", "_probability")
}
_MODES = {
    f"{what}_overflow_mode"
    for what in ("read", "timeout", "group_by", "sort", "distinct", "join", "set", "transfer", "result")
}
_CHANGEABLE = {
    "log_comment",
    "limit",
    "max_execution_time",
    "output_format_json_quote_64bit_integers",
    "cancel_http_readonly_queries_on_client_close",
}
_LIMITS = {"max_execution_time", "max_memory_usage", "max_rows_to_read"}


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
        if user.tag != ADMINISTRATOR:
            yield from (f"{user.tag}: {grant}" for grant in grants if _TOO_MUCH.search(grant))
        profile = user.findtext("profile")
        if user.find("quota") is None or profile is None or root.find(f"profiles/{profile}") is None:
            yield f"{user.tag}: no quota or no profile"
        if user.tag == "agents":
            yield from _problems_of_agents(grants, places, root)
    for name in ("engineer", "admin"):
        yield from _problems_of_people(name, root)


def _profile(root: ElementTree.Element, name: str) -> tuple[dict[str, str], dict[str, ElementTree.Element]]:
    """A profile's settings and constraints, with those of the profile that it begins from."""
    profile = root.find(f"profiles/{name}")
    if profile is None:
        return {}, {}
    settings, constraints = _profile(root, parent) if (parent := profile.findtext("profile")) else ({}, {})
    settings |= {item.tag: item.text or "" for item in profile if item.tag not in ("profile", "constraints")}
    return settings, constraints | {item.tag: item for item in profile.findall("constraints/*")}


def _is_const(constraint: ElementTree.Element | None) -> bool:
    return constraint is not None and constraint.find("const") is not None


def _has_max(constraint: ElementTree.Element | None) -> bool:
    return constraint is not None and constraint.find("max") is not None


def _problems_of_agents(grants: list[str], places: list[str | None], root: ElementTree.Element) -> Iterator[str]:
    for grant in grants:
        if not re.fullmatch(r"GRANT SELECT ON (analytics|shard_[12])\.\*", grant):
            yield f"agents: more than reading published tables: {grant}"
    if places != ["VPS_1_ADDRESS"]:
        yield "agents: it may come from another host than vps-1"
    settings, constraints = _profile(root, "agents")
    if settings.get("readonly") != "1":
        yield "agents: readonly is not 1"
    changeable = {name for name, item in constraints.items() if item.find("changeable_in_readonly") is not None}
    yield from (f"agents: it may change {name}" for name in sorted(changeable - _CHANGEABLE))
    if not settings.keys() >= _LIMITS:
        yield "agents: nothing limits its queries"
    for name in sorted(_LIMITS & changeable):
        if not _has_max(constraints[name]):
            yield f"agents: it may raise {name}"
    if not _is_const(constraints.get("log_queries")):
        yield "agents: it may switch the query log off"
    yield from _problems_of_answers("agents", settings)
    quota = root.find("quotas/agents")
    if quota is None or quota.find("keyed") is None:
        yield "agents: one quota for all of them"
    elif (quota.findtext("interval/queries"), quota.findtext("interval/execution_time")) != ("2000", "1800"):
        yield "agents: another quota than the documents say"


def _problems_of_people(name: str, root: ElementTree.Element) -> Iterator[str]:
    settings, constraints = _profile(root, name)
    if settings.get("readonly") != "2":
        yield f"{name}: readonly is not 2"
    if not settings.keys() >= _LIMITS:
        yield f"{name}: nothing limits its queries"
    for setting in sorted({s for s in settings if s.startswith("max_")}):
        if not (_is_const(constraints.get(setting)) or _has_max(constraints.get(setting))):
            yield f"{name}: it may raise {setting}"
    for setting in sorted(_LOGS | _MODES | {"readonly", "allow_ddl", "skip_unavailable_shards"}):
        if not _is_const(constraints.get(setting)):
            yield f"{name}: it may change {setting}"
    yield from _problems_of_answers(name, settings)


def _problems_of_answers(name: str, settings: dict[str, str]) -> Iterator[str]:
    """What would hide a question, or give a wrong number without an error."""
    if settings.get("log_queries") != "1":
        yield f"{name}: its queries are not logged"
    yield from (f"{name}: {mode} is not throw" for mode in sorted(_MODES) if settings.get(mode) != "throw")
    if settings.get("skip_unavailable_shards") != "0":
        yield f"{name}: it may read one shard alone"


def test_every_user_is_limited_to_what_it_needs() -> None:
    assert problems(USERS) == []


@pytest.mark.parametrize(
    ("text", "instead", "told"),
    [
        ('<default remove="remove"/>', "<default><no_password/></default>", "default: it can enter"),
        ('<password_sha256_hex from_env="CLICKHOUSE_AGENTS_PASSWORD_SHA256"/>', "<password>x</password>", "agents"),
        ('<ip from_env="VPS_2_ADDRESS"/>', "<ip>::/0</ip>", "etl_writer: it may come from anywhere"),
        ("GRANT SELECT ON analytics.*</query>", "GRANT ALL ON *.*</query>", "GRANT ALL"),
        ("GRANT SELECT ON shard_1.*", "GRANT FILE ON *.*", "agents: GRANT FILE"),
        ("GRANT SELECT ON shard_1.*<", "GRANT SELECT ON shard_1_staging.*<", "more than reading published tables"),
        ("GRANT SELECT ON shard_1.*<", "GRANT SELECT ON system.processes<", "more than reading published tables"),
        ("<readonly>1</readonly>", "<readonly>2</readonly>", "agents: readonly is not 1"),
        ("<readonly>2</readonly>", "<readonly>0</readonly>", "engineer: readonly is not 2"),
        ("<max_memory_usage><const/></max_memory_usage>", "", "it may raise max_memory_usage"),
        ("<max>3600</max>", "", "agents: it may raise max_execution_time"),
        ("<log_queries_min_type><const/></log_queries_min_type>", "", "admin: it may change log_queries_min_type"),
        ("<read_overflow_mode><const/></read_overflow_mode>", "", "engineer: it may change read_overflow_mode"),
        ("<read_overflow_mode>throw", "<read_overflow_mode>break", "agents: read_overflow_mode is not throw"),
        ("<limit><", "<max_threads><changeable_in_readonly/></max_threads><limit><", "it may change max_threads"),
        ("<keyed/>", "", "one quota for all of them"),
        ("<profile>agents</profile>", "<profile>none</profile>", "no quota or no profile"),
    ],
)
def test_a_user_that_gets_more_is_found(text: str, instead: str, told: str) -> None:
    assert text in USERS
    assert any(told in found for found in problems(USERS.replace(text, instead)))


def test_agents_read_every_published_table_of_the_shards_and_over_them() -> None:
    grants = {g.text for g in ElementTree.fromstring(USERS).findall("users/agents/grants/query")}
    assert grants == {f"GRANT SELECT ON {database}.*" for database in ("analytics", *(s.database for s in SHARDS))}


def test_whoever_makes_peoples_users_can_give_no_right_that_their_roles_do_not_have() -> None:
    user = ElementTree.fromstring(USERS).find(f"users/{ADMINISTRATOR}")
    assert user is not None
    assert [place.get("from_env") for place in user.findall("networks/*")] == ["VPS_1_ADDRESS"]
    grants = [grant.text or "" for grant in user.findall("grants/query")]
    handed_on = {g.removeprefix("GRANT ").removesuffix(" WITH GRANT OPTION") for g in grants if "GRANT OPTION" in g}
    databases = ["analytics", *(shard.database for shard in SHARDS)]
    assert handed_on == set(rights_of("admin", databases)) >= set(rights_of("engineer", databases))
    assert all(ElementTree.fromstring(USERS).find(f"profiles/{role}") is not None for role in ROLES)
    own = {
        name
        for g in grants
        if "GRANT OPTION" not in g
        for name in g.removeprefix("GRANT ").partition(" ON ")[0].split(", ")
    }
    kinds = {f"{verb} {what}" for verb in ("CREATE", "ALTER", "DROP") for what in ("USER", "ROLE", "QUOTA")}
    assert own == kinds | {"ROLE ADMIN", "SHOW USERS", "SHOW ROLES", "SHOW QUOTAS"}


def test_people_are_kept_in_the_data_folder_and_programs_in_files() -> None:
    places = {place.tag: place.findtext("path") for place in SERVER.findall("user_directories/*")}
    assert places == {"users_xml": "users.xml", "local_directory": "/var/lib/clickhouse/access/"}


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
