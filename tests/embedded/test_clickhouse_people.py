"""What a real clickhouse-server is told of people: read by the same engine's parser. It has no users to try it on."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.clickhouse_gateway import RunningGateway
from trilake.clickhouse.people import ROLES, ClickHouseUser, drop_statements, role_statements, user_statements
from trilake.errors import ConfigurationError

pytest_plugins = ["support.clickhouse_fixtures"]

USERS = Path(__file__).resolve().parents[2] / "docker" / "vps_3" / "users.d" / "trilake.xml"
HASH = "0f" * 32


def statements() -> list[str]:
    users = [ClickHouseUser(f"ada-{role}", role, HASH) for role in ROLES]
    of_users = [statement for user in users for statement in user_statements(user, "10.77.0.11")]
    return [*role_statements(["analytics", "shard_1", "shard_2"]), *of_users, *drop_statements("ada")]


def test_the_engines_parser_takes_every_statement_about_people(gateway: RunningGateway) -> None:
    for statement in statements():
        parsed = gateway.sql("SELECT formatQuerySingleLine({sql:String})", param_sql=statement)
        assert parsed.split()[0] == statement.split()[0]
        assert "staging" not in parsed
    with pytest.raises(AssertionError):
        gateway.sql("SELECT formatQuerySingleLine({sql:String})", param_sql="CREATE USER ada IDENTIFIED BY")


def test_the_engines_parser_takes_every_grant_of_a_programs_user(gateway: RunningGateway) -> None:
    for grant in ElementTree.parse(USERS).findall("users/*/grants/query"):
        with_target = (grant.text or "").replace(" WITH GRANT OPTION", "") + " TO somebody"
        gateway.sql("SELECT formatQuerySingleLine({sql:String})", param_sql=with_target)


def test_every_setting_of_a_profile_is_one_that_the_engine_has(gateway: RunningGateway) -> None:
    """A name that it does not know ends the start of a server."""
    root = ElementTree.parse(USERS)
    named = {item.tag for profile in root.findall("profiles/*") for item in profile} - {"profile", "constraints"}
    named |= {item.tag for item in root.findall("profiles/*/constraints/*")}
    known = set(gateway.sql("SELECT name FROM system.settings").split())
    assert named - known == set()
    modes = {name for name in known if name.endswith(("_overflow_mode", "_overflow_mode_leaf"))}
    assert modes <= named, "a mode that gives a wrong number without an error can be set"
    hides = {name for name in known if name.startswith("log_queries")}
    assert hides <= named, "a setting that hides a question from the query log can be set"


@pytest.mark.parametrize("name", ["ada`; DROP USER etl_writer", "etl_writer", "Ada", ""])
def test_a_name_that_is_none_is_refused_before_a_server_is_asked(name: str) -> None:
    with pytest.raises(ConfigurationError):
        user_statements(ClickHouseUser(name, "engineer", HASH), "10.77.0.11")
