"""Agents' questions to a running ClickHouse: what the check lets through, what the server refuses, what comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from mcp.server.mcpserver.exceptions import ToolError

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway
from trilake.agents.calls import Calls, Outcome
from trilake.agents.questions import Answer, Questions
from trilake.agents.refusals import CallError
from trilake.agents.server import Caller, Door
from trilake.agents.statement import Statement, check_statement
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard, PostgresEndpoint
from trilake.platform.embedded.home import LOOPBACK, free_port

pytest_plugins = ["support.clickhouse_fixtures"]

DECLARED = {"t1", "t2"}
DATABASE = "shard_1"


@pytest.fixture(scope="module")
def tables(gateway: RunningGateway) -> Iterator[None]:
    """Two declared tables, one beside them, and one of the same name in another database."""
    names = ("shard_1.t1", "shard_1.t2", "shard_1.secret", "shard_2.t1")
    for name in names:
        gateway.sql(f"CREATE TABLE {name} (a UInt64) ENGINE = MergeTree ORDER BY a")
        gateway.sql(f"INSERT INTO {name} SELECT number FROM numbers(3)")
    yield
    for name in names:
        gateway.sql(f"DROP TABLE {name}")


def ask(gateway: RunningGateway, sql: str, max_rows: int = 100, max_seconds: int = 10) -> Answer:
    """Send a statement without the check."""
    shard = ClickHouseShard(1, LOOPBACK, gateway.port, DATABASE)
    endpoint = ClickHouseEndpoint((shard,), USER, PASSWORD, database=DATABASE)

    async def run() -> Answer:
        questions = Questions(endpoint)
        try:
            return await questions.ask(Statement(sql, frozenset()), "ada", max_rows=max_rows, max_seconds=max_seconds)
        finally:
            await questions.close()

    return asyncio.run(run())


ALLOWED = st.sampled_from(["t1", "t2", "`t1`", '"t2"', "shard_1.t1", "numbers(3)", "values('a UInt64', 1)", "c"])
OTHERS = st.sampled_from(
    [
        *("secret", "shard_2.t1", "system.one", "T1", "`shard_2`.t1"),
        *("merge('shard_2', 't')", "view(SELECT a FROM secret)", "remote('127.0.0.1', shard_2.t1)"),
    ]
)
# Mostly what is allowed, or nearly every statement would be refused.
NAMES = st.integers(0, 15).flatmap(lambda number: OTHERS if number == 0 else ALLOWED)


def queries(depth: int = 3) -> st.SearchStrategy[str]:
    if depth == 0:
        return NAMES.map(lambda name: f"SELECT * FROM {name}")
    inner = queries(depth - 1)
    sources = NAMES | inner.map(lambda query: f"({query})")
    conditions = (
        inner.map(lambda query: f"1 IN ({query})")
        | NAMES.filter(lambda name: "(" not in name).flatmap(
            lambda name: st.sampled_from([f"1 IN {name}", f"1 NOT IN ({name})", f"1 GLOBAL IN (({name}))"])
        )
        | inner.map(lambda query: f"EXISTS ({query})")
        | sources.map(lambda source: f"(SELECT count() FROM {source}) > 0")
        | st.just("'SELECT * FROM secret' != ''")
    )
    plain = st.builds(
        lambda source, condition: f"SELECT 1 AS a FROM {source} WHERE {condition} -- FROM secret\n", sources, conditions
    )
    joined = st.builds(lambda one, other: f"SELECT 1 AS a FROM {one} AS x CROSS JOIN {other} AS y", sources, sources)
    with_name = st.builds(lambda one, other: f"WITH c AS ({one}) SELECT 1 AS a FROM {other}", inner, sources)
    both = st.builds(lambda one, other: f"SELECT 1 FROM ({one}) UNION ALL SELECT 1 FROM ({other})", inner, inner)
    return plain | joined | with_name | both


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sql=queries())
def test_what_is_let_through_reads_only_the_tables_that_it_names(
    gateway: RunningGateway, tables: None, sql: str
) -> None:
    try:
        checked = check_statement(sql, DECLARED, database=DATABASE)
    except CallError:
        event("refused")
        return
    try:
        tree = gateway.sql(f"EXPLAIN QUERY TREE run_passes = 0 {checked.sql}", database=DATABASE)
        resolved = gateway.sql(f"EXPLAIN QUERY TREE {checked.sql}", database=DATABASE)
    except AssertionError as e:  # the server refuses it: c is not there, or a column is ambiguous
        event(f"not valid: {re.findall('[A-Z_]{5,}', str(e))[-1:]}")
        return
    event("let through")
    assert "secret" not in re.sub(r"constant_value: .*", "", tree)
    read = set(re.findall(r"table_name: (\S+?),?$", resolved, re.MULTILINE))
    functions = set(re.findall(r"table_function_name: (\w+)", resolved))
    assert read <= {f"{DATABASE}.{name}" for name in DECLARED} | {"system.one"}, resolved
    assert "system.one" not in checked.sql
    assert functions <= {"numbers", "values"}
    assert {name.partition(".")[2] for name in read} - {"one"} <= checked.tables


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE t1",
        "INSERT INTO t1 VALUES (1)",
        "CREATE TABLE x (a Int8) ENGINE = Memory",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS log_queries_min_type = 'EXCEPTION_WHILE_PROCESSING'",
        "SYSTEM FLUSH LOGS",
    ],
)
def test_the_server_refuses_what_would_get_past_the_check(gateway: RunningGateway, tables: None, sql: str) -> None:
    with pytest.raises(CallError):
        ask(gateway, sql)
    assert gateway.sql("SELECT count() FROM shard_1.t1").strip() == "3"


def test_an_error_in_the_middle_of_an_answer_is_a_refusal_and_no_short_answer(gateway: RunningGateway) -> None:
    with pytest.raises(CallError) as refused:
        ask(gateway, "SELECT throwIf(number = 400000) FROM numbers(500000) WHERE number % 4000 = 0", max_rows=1000)
    assert refused.value.code == "failed"


@pytest.mark.parametrize(
    ("sql", "rows", "more"), [("SELECT 1 FROM numbers(3)", 3, False), ("SELECT 1 FROM numbers(4)", 3, True)]
)
def test_more_says_that_there_is_a_row_beyond(gateway: RunningGateway, sql: str, rows: int, more: bool) -> None:
    answer = ask(gateway, sql, max_rows=3)
    assert (len(answer.rows), answer.more) == (rows, more)


def test_totals_and_values_of_many_types_arrive_exactly_or_as_texts(gateway: RunningGateway) -> None:
    answer = ask(
        gateway,
        "SELECT toInt64(-9223372036854775808), toUInt8(1), true, NULL, -0.0, inf, toDecimal128('1.10', 2), [1, 2], "
        "map('a', toUInt64(18446744073709551615)), tuple(1, 'x'), toDate('2013-02-01'), unhex('FF'), 'a\\nb'",
    )
    assert answer.rows == [
        ["-9223372036854775808", 1, True, None, -0.0, "inf", "1.1", [1, 2], {"a": "18446744073709551615"}, [1, "x"],
         "2013-02-01", "\ufffd", "a\nb"]
    ]  # fmt: skip


def test_a_call_that_cannot_be_recorded_is_not_done() -> None:
    nowhere = PostgresEndpoint(LOOPBACK, free_port(), "lake", "lake", "secret-of-lake")
    door = Door(*[None] * 2, Calls(nowhere), *[None] * 4)  # type: ignore[arg-type]
    done = []

    async def act(outcome: Outcome) -> dict[str, Any]:
        done.append(outcome)
        return {}

    with pytest.raises(ToolError) as refused:
        asyncio.run(door.done(Caller("ada", set()), "query", {"sql": "SELECT 1"}, act))
    assert '"not_recorded"' in str(refused.value)
    assert "secret-of-lake" not in str(refused.value)
    assert done == []
