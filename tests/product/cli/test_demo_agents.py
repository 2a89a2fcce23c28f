"""Agents at their door, on a platform that holds the demo's year. The answers are computed from the source's files."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from support.agent import Agent
from support.flights_source import rows_of
from support.running_platform import Platform
from trilake.postgres.connection import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Rows = list[dict[str, str]]


def _mean_delays(flights: Rows) -> list[list[Any]]:
    delays: dict[str, list[int]] = defaultdict(list)
    for x in flights:
        if x["arr_delay"] != "NA":
            delays[x["carrier"]].append(int(x["arr_delay"]))
    return sorted(([c, round(statistics.fmean(d), 2)] for c, d in delays.items()), key=lambda item: item[1])


def _longest(flights: Rows) -> list[Any]:
    x = max((x for x in flights if x["dep_delay"] != "NA"), key=lambda x: int(x["dep_delay"]))
    return [int(x["dep_delay"]), x["carrier"], f"2013-{int(x['month']):02}-{int(x['day']):02}"]


def _maker(flights: Rows) -> list[Any]:
    makers = {x["tailnum"]: x["manufacturer"] for x in rows_of("planes.csv")}
    return list(Counter(makers[x["tailnum"]] for x in flights if x["tailnum"] in makers).most_common(1)[0])


# Question -> words for find(), the query with the tables' names in braces, and the answer from the source's rows.
QUESTIONS: dict[str, tuple[str, str, Callable[[Rows], Any]]] = {
    "How many flights left in 2013?": ("flights", "SELECT count() FROM {flights}", len),
    "How many were cancelled?": (
        "flights",
        "SELECT countIf(cancelled) FROM {flights}",
        lambda f: sum(x["dep_time"] == "NA" for x in f),
    ),
    "How many carriers and destinations?": (
        "flights",
        "SELECT uniqExact(carrier), uniqExact(dest) FROM {flights}",
        lambda f: [len({x["carrier"] for x in f}), len({x["dest"] for x in f})],
    ),
    "Which month has most flights?": (
        "flights",
        "SELECT month, count() AS n FROM {flights} GROUP BY month ORDER BY n DESC LIMIT 1",
        lambda f: list(Counter(int(x["month"]) for x in f).most_common(1)[0]),
    ),
    "Which has fewest?": (
        "flights",
        "SELECT month, count() AS n FROM {flights} GROUP BY month ORDER BY n LIMIT 1",
        lambda f: list(Counter(int(x["month"]) for x in f).most_common()[-1]),
    ),
    "How many are United's?": (
        "airlines flights",
        "SELECT count() FROM {flights} WHERE carrier IN (SELECT carrier FROM {airlines} WHERE name LIKE 'United%')",
        lambda f: sum(x["carrier"] == "UA" for x in f),
    ),
    "Which carrier arrives latest on average?": (
        "flights",
        "SELECT carrier, round(avg(arr_delay), 2) AS d FROM {flights} GROUP BY carrier ORDER BY d DESC LIMIT 1",
        lambda f: _mean_delays(f)[-1],
    ),
    "Which arrives earliest?": (
        "flights",
        "SELECT carrier, round(avg(arr_delay), 2) AS d FROM {flights} GROUP BY carrier ORDER BY d LIMIT 1",
        lambda f: _mean_delays(f)[0],
    ),
    "How many flew from JFK to LAX?": (
        "flights",
        "SELECT count() FROM {flights} WHERE origin = 'JFK' AND dest = 'LAX'",
        lambda f: sum((x["origin"], x["dest"]) == ("JFK", "LAX") for x in f),
    ),
    "What was the longest departure delay, and whose?": (
        "flights",
        "SELECT dep_delay, carrier, toString(flight_date) FROM {flights} ORDER BY dep_delay DESC NULLS LAST LIMIT 1",
        _longest,
    ),
    "How many have no tail number?": (
        "flights",
        "SELECT countIf(tailnum IS NULL) FROM {flights}",
        lambda f: sum(x["tailnum"] == "NA" for x in f),
    ),
    "How many were cancelled on 8 February?": (
        "flights",
        "SELECT countIf(cancelled) FROM {flights} WHERE flight_date = '2013-02-08'",
        lambda f: sum(x["dep_time"] == "NA" and (x["month"], x["day"]) == ("2", "8") for x in f),
    ),
    "What is JFK's share?": (
        "flights",
        "SELECT round(avg(origin = 'JFK'), 4) FROM {flights}",
        lambda f: round(sum(x["origin"] == "JFK" for x in f) / len(f), 4),
    ),
    "What is the mean distance?": (
        "flights",
        "SELECT round(avg(distance), 2) FROM {flights}",
        lambda f: round(statistics.fmean(int(x["distance"]) for x in f), 2),
    ),
    "How many tail numbers are not in planes?": (
        "flights planes",
        "SELECT uniqExact(tailnum) FROM {flights} WHERE tailnum NOT IN (SELECT tailnum FROM {planes})",
        lambda f: len({x["tailnum"] for x in f} - {"NA"} - {x["tailnum"] for x in rows_of("planes.csv")}),
    ),
    "Whose planes flew most?": (
        "flights",
        "SELECT manufacturer, count() AS n FROM {flights} WHERE manufacturer IS NOT NULL GROUP BY manufacturer "
        "ORDER BY n DESC LIMIT 1",
        _maker,
    ),
    "What is the median arrival delay?": (
        "flights",
        "SELECT quantileExact(0.5)(arr_delay) FROM {flights}",
        lambda f: statistics.median_high(int(x["arr_delay"]) for x in f if x["arr_delay"] != "NA"),
    ),
    "How many airports are known?": (
        "airports",
        "SELECT count() FROM {airports}",
        lambda _: len(rows_of("airports.csv")),
    ),
    "Which was the busiest day?": (
        "flights",
        "SELECT toString(flight_date), count() AS n FROM {flights} GROUP BY flight_date ORDER BY n DESC LIMIT 1",
        lambda f: list(
            Counter(f"2013-{int(x['month']):02}-{int(x['day']):02}" for x in f).most_common(1)[0]
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ada(whole_platform: Platform, demo: str) -> Agent:
    return Agent.made(whole_platform, "ada")


def recorded(platform: Platform, agent: str = "ada") -> list[tuple[Any, ...]]:
    with connect(platform.endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT tool, outcome, arguments, rows, bytes, query_id, run_id, ended_at FROM agent_calls "
            "WHERE agent = %s ORDER BY id",
            (agent,),
        )
        return list(cursor.fetchall())


def test_twenty_questions_are_answered_right_in_three_calls_each_by_who_knows_only_what_find_and_describe_tell(
    whole_platform: Platform, ada: Agent, source: Rows
) -> None:
    tokens = []
    for question, (words, template, truth) in QUESTIONS.items():
        before, calls = ada.sent, ada.calls
        names = {item["name"] for item in ada.call("find", words=words).answer["found"] if item["kind"] == "table"}
        first = words.split()[-1]
        assert first in names, question
        columns = ada.call("describe", name=first).answer["columns"]
        assert columns
        answer = ada.call("query", sql=template.format(**{name: name for name in names})).answer
        assert not answer["more"]
        expected = truth(source)
        assert answer["rows"] == [expected if isinstance(expected, list) else [expected]], question
        assert ada.calls - calls <= 3
        tokens.append((ada.sent - before) / 4)
    traced = ada.call("trace", name="flights", partition="2013-02").answer
    assert traced["rows"] == sum(x["month"] == "2" for x in source)
    assert traced["counts"] == {"read": traced["rows"], "curated": traced["rows"], "quarantined": 0, "duplicates": 0}
    assert any(file["key"] == "flights/2013-02/flights.csv" and file["etag"] for file in traced["files"])
    assert statistics.median(tokens) <= 1_500
    assert len(recorded(whole_platform)) >= 3 * len(QUESTIONS) + 1


FORBIDDEN: list[tuple[str, dict[str, Any], str]] = [
    ("query", {"sql": "DROP TABLE flights"}, "not_a_query"),
    ("query", {"sql": "INSERT INTO flights SELECT * FROM flights"}, "not_a_query"),
    *(
        ("query", {"sql": form.format(function)}, "table_function")
        for function in (
            "file('/etc/passwd')",
            "url('http://127.0.0.1/')",
            "s3('http://x/')",
            "remote('x', system.one)",
        )
        for form in ("SELECT * FROM {}", "DESCRIBE TABLE {}", "EXPLAIN SELECT * FROM {}", "SELECT (SELECT 1 FROM {})")
    ),
    ("query", {"sql": "SELECT * FROM merge('system', '.*')"}, "table_function"),
    ("query", {"sql": "SHOW PROCESSLIST"}, "not_a_query"),
    ("query", {"sql": "SELECT 1 SETTINGS log_queries_min_type = 'EXCEPTION_WHILE_PROCESSING'"}, "clause"),
    ("query", {"sql": "SELECT 1 SETTINGS readonly = 0"}, "clause"),
    ("query", {"sql": "KILL QUERY WHERE 1"}, "not_parsed"),
    ("query", {"sql": "SELECT * FROM shard_1.flights_local"}, "unknown_table"),
    ("query", {"sql": "SELECT * FROM shard_1_staging.flights_0123456789ab_201302"}, "unknown_table"),
    ("query", {"sql": "SELECT * FROM system.query_log"}, "unknown_table"),
    ("query", {"sql": "SELECT count() FROM numbers(1000000000000)", "max_seconds": 1}, "too_slow"),
    ("submit", {"what": "flights", "parameters": {}, "key": "x"}, "unknown_run"),
    (
        "submit",
        {"what": "agent_export", "parameters": {"sql": "SELECT 1", "as": "root"}, "key": "x"},
        "unknown_parameter",
    ),
    ("submit", {"what": "agent_export", "parameters": {}, "key": "x"}, "missing_parameter"),
    ("submit", {"what": "agent_export", "parameters": {"sql": "SELECT 1"}, "key": "../x"}, "bad_key"),
    ("file_url", {"name": "../bob/secret.csv"}, "bad_name"),
    ("file_url", {"name": "shared/bob/x.csv", "purpose": "put", "bytes": 1}, "not_yours"),
    ("files", {"below": "../"}, "bad_name"),
    ("status", {"run": "agent.bob.x"}, "no_run"),
    ("cancel", {"run": "agent.bob.x"}, "no_run"),
]


@pytest.mark.parametrize(("tool", "arguments", "code"), FORBIDDEN, ids=lambda value: str(value)[:70])
def test_what_is_forbidden_is_refused_says_what_to_do_and_is_recorded(
    whole_platform: Platform, ada: Agent, tool: str, arguments: dict[str, Any], code: str
) -> None:
    said = ada.call(tool, **arguments)
    assert said.refused == code
    assert said.answer["says"]
    assert said.answer["do"]
    last = recorded(whole_platform)[-1]
    assert last[:2] == (tool, code)
    assert last[2].items() >= arguments.items()
    assert last[-1] is not None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v2/dags/agent_export/dagRuns", {"logical_date": None, "conf": {"sql": "SELECT 1"}}),
        ("PATCH", "/api/v2/dags/agent_export", {"is_paused": True}),
        ("DELETE", "/api/v2/dags/agent_export", None),
        ("POST", "/api/v2/assets/events", {"asset_id": 1, "extra": {}}),
        ("GET", "/api/v2/connections", None),
        ("GET", "/api/v2/variables", None),
        ("GET", "/api/v2/dagSources/agent_export", None),
        # other agents' queries are in the runs' parameters
        ("GET", "/api/v2/dags/agent_export/dagRuns", None),
        ("GET", "/api/v2/dags/agent_export/dagRuns/agent.bob.x/taskInstances/export/logs/1", None),
    ],
)
def test_airflow_itself_refuses_what_an_agent_may_not_do(ada: Agent, method: str, path: str, body: Any) -> None:
    assert ada.rest(method, path, body).status_code == 403


def test_the_door_is_closed_without_a_token_with_an_origin_and_for_users_without_the_permission(ada: Agent) -> None:
    url = f"{ada.login.url}/agents/mcp"
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert httpx.post(url, json=body, trust_env=False).status_code == 401
    assert httpx.post(url, json=body, headers={"Authorization": "Bearer x"}, trust_env=False).status_code in (401, 403)
    assert ada.rest("POST", "/agents/mcp", body, Origin="http://example.com").status_code == 403
    assert ada.rest("POST", "/agents/mcp", {"x": "y" * 300_000}).status_code == 413


def test_a_large_answer_is_cut_and_says_so(ada: Agent) -> None:
    said = ada.call("query", sql="SELECT * FROM flights", max_rows=1000)
    assert said.answer["more"]
    assert 300 < len(said.answer["rows"]) < 1000
    assert said.size < 70_000
    assert ada.call("query", sql="SELECT 1 FROM flights LIMIT 200").answer["more"] is False
    assert ada.call("query", sql="SELECT 1 FROM flights LIMIT 201").answer["more"] is True
    long = ada.call(
        "query", sql="SELECT repeat('x', 1000) AS a, '\u202eabc' AS b, 9007199254740993 AS c, nan AS d"
    ).answer
    assert long["rows"] == [["x" * 299 + "…", "\\u{202e}abc", "9007199254740993", "nan"]]


def test_a_third_question_at_once_is_refused(ada: Agent) -> None:
    slow = ("query", {"sql": "SELECT sum(cityHash64(number)) FROM numbers(100000000000)", "max_seconds": 4})
    refused = [said.refused for said in ada.call_all([slow] * 3, at_once=True)]
    assert sorted(refused) == ["busy", "too_slow", "too_slow"]


def test_a_question_ends_when_its_client_leaves(whole_platform: Platform, ada: Agent) -> None:
    from trilake.clickhouse.cluster import Cluster, Statement

    async def leave() -> None:
        with anyio.move_on_after(2):
            async with ada._client() as client:
                await client.call_tool("query", {"sql": "SELECT sum(cityHash64(number)) FROM numbers(1000000000000)"})

    anyio.run(leave)
    running = Statement(
        "SELECT count() FROM system.processes WHERE query LIKE '%cityHash64(number)%' AND query NOT LIKE '%processes%'"
    )
    deadline = time.monotonic() + 10
    with Cluster(whole_platform.endpoints.clickhouse) as cluster:
        while cluster.any_host(running) != [(0,)]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    deadline = time.monotonic() + 10
    while (last := recorded(whole_platform)[-1])[1] != "left":
        assert time.monotonic() < deadline, last
        time.sleep(0.2)


def test_an_export_is_a_run_whose_file_the_agent_gets_and_nobody_else(
    whole_platform: Platform, ada: Agent, source: Rows
) -> None:
    import io

    from pyarrow import parquet

    parameters = {"sql": "SELECT carrier, flight, dep_delay FROM flights WHERE origin = 'JFK' -- all of them"}
    first = ada.call("submit", what="agent_export", parameters=parameters, key="jfk").answer
    again = ada.call("submit", what="agent_export", parameters=parameters, key="jfk").answer
    assert first["run"] == again["run"] == "agent.ada.jfk"
    other = ada.call("submit", what="agent_export", parameters={"sql": "SELECT 1"}, key="jfk")
    assert other.refused == "key_used"
    ada.call(
        "submit", what="agent_export", parameters={"sql": "SELECT sum(number) FROM numbers(1000000)"}, key="second"
    )
    third = ada.call("submit", what="agent_export", parameters=parameters, key="third")
    assert third.refused == "too_many_runs"
    for run in ("agent.ada.jfk", "agent.ada.second"):
        while (state := ada.call("status", run=run, wait_seconds=20, log_lines=20).answer)["state"] in (
            "queued",
            "running",
        ):
            pass
        assert state["state"] == "success", state
    state = ada.call("status", run="agent.ada.jfk").answer
    expected = sum(x["origin"] == "JFK" for x in source)
    assert state["result"]["export"]["rows"] == expected
    listed = {file["name"] for file in ada.call("files", below="jfk/").answer["files"]}
    assert listed == {"jfk/manifest.json", "jfk/rows.parquet"}
    address = ada.call("file_url", name="jfk/rows.parquet").answer
    content = httpx.get(address["url"], trust_env=False, timeout=60).content
    assert parquet.read_table(io.BytesIO(content)).num_rows == expected
    bob = Agent.made(whole_platform, "bob")
    assert bob.call("files").answer["files"] == []
    assert bob.call("file_url", name="jfk/rows.parquet").refused == "no_file"
    assert bob.call("status", run="agent.ada.jfk").refused == "no_run"


def test_files_are_put_with_their_exact_size_and_shared_with_other_agents(whole_platform: Platform, ada: Agent) -> None:
    put = ada.call("file_url", name="shared/ada/note.txt", purpose="put", bytes=5).answer
    assert httpx.put(put["url"], content=b"123456", trust_env=False).status_code == 403
    assert httpx.put(put["url"], content=b"12345", trust_env=False).status_code == 200
    bob = Agent.made(whole_platform, "bob")
    assert [file["name"] for file in bob.call("files", below="shared/").answer["files"]] == ["shared/ada/note.txt"]
    get = bob.call("file_url", name="shared/ada/note.txt").answer
    assert httpx.get(get["url"], trust_env=False).text == "12345"
    for other in ("agents/bob/x", "agents/shared/ada/other.txt"):
        assert httpx.get(get["url"].replace("agents/shared/ada/note.txt", other), trust_env=False).status_code == 403


def test_a_run_is_cancelled_by_its_agent_alone(whole_platform: Platform, ada: Agent) -> None:
    parameters = {"sql": "SELECT sum(cityHash64(number)) FROM numbers(1000000000000)"}
    run = ada.call("submit", what="agent_export", parameters=parameters, key="long").answer["run"]
    assert Agent.made(whole_platform, "bob").call("cancel", run=run).refused == "no_run"
    assert ada.call("cancel", run=run).answer["state"] == "failed"
    assert ada.call("health").answer["runs"]["active"] == []


def test_both_versions_of_the_protocol_are_served(ada: Agent) -> None:
    for mode in ("auto", "legacy"):
        other = Agent(ada.login, mode=mode)
        assert other.call("query", sql="SELECT 1 AS x").answer["rows"] == [[1]]


def test_the_command_connects_a_program_over_its_standard_input_and_output(
    whole_platform: Platform, ada: Agent, tmp_path: Any
) -> None:
    import sys

    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    file = tmp_path / "ada.access"
    file.write_text(json.dumps({"airflow": {"url": ada.login.url, "user": "ada", "password": ada.login.password}}))
    program = [sys.executable, "-c", "from trilake.cli import main; main()", "connect", str(file)]
    parameters = StdioServerParameters(command=program[0], args=program[1:], env=dict(whole_platform.env))

    async def ask() -> str:
        async with Client(stdio_client(parameters)) as client:
            result = await client.call_tool("query", {"sql": "SELECT count() FROM airlines"})
            return str(result.content[0].text)  # type: ignore[union-attr]

    assert json.loads(anyio.run(ask))["rows"] == [[16]]


def test_an_agent_whose_user_is_ended_is_refused_with_the_token_that_it_has(
    whole_platform: Platform, demo: str
) -> None:
    from trilake.platform.airflow_users import ask

    eve = Agent.made(whole_platform, "eve")
    token = eve.token()
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}

    def status() -> int:
        return httpx.post(f"{eve.login.url}/agents/mcp", json=body, headers=headers, trust_env=False).status_code

    assert status() == 200
    ask(whole_platform.env, ["deactivate", "eve"])
    deadline = time.monotonic() + 60
    while status() not in (401, 403):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _ended(agent: Agent, run: str) -> dict[str, Any]:
    while (state := agent.call("status", run=run, wait_seconds=20, log_lines=50).answer)["state"] in (
        "queued",
        "running",
    ):
        pass
    return state


def test_spark_sql_reads_the_lake_and_its_rows_are_files_of_the_agent(
    whole_platform: Platform, ada: Agent, source: Rows
) -> None:
    import io

    from pyarrow import parquet

    # Kubernetes would put a variable of the pod in the place of $(NAME), and Spark a setting in that of other forms
    sql = (
        "SELECT f.carrier, f.dep_delay, p.seats, '$(AIRFLOW_CONN_AWS_DEFAULT)' AS text FROM flights f "
        "LEFT JOIN lake.curated.planes p USING (tailnum) WHERE origin = 'JFK'"
    )
    run = ada.call("submit", what="agent_spark_sql", parameters={"sql": sql}, key="spark-jfk").answer["run"]
    forbidden = "SELECT TRANSFORM(carrier) USING 'sh -c id' AS (x) FROM flights"
    other = ada.call("submit", what="agent_spark_sql", parameters={"sql": forbidden}, key="spark-sh").answer["run"]
    state = _ended(ada, run)
    assert state["state"] == "success", state
    result = state["result"]["query"]
    expected = sum(x["origin"] == "JFK" for x in source)
    assert result["rows"] == expected
    listed = {file["name"] for file in ada.call("files", below="spark-jfk/").answer["files"]}
    assert listed == {"spark-jfk/manifest.json", *result["files"]}
    tables = []
    for name in result["files"]:
        content = httpx.get(ada.call("file_url", name=name).answer["url"], trust_env=False, timeout=60).content
        tables.append(parquet.read_table(io.BytesIO(content)))
    assert sum(table.num_rows for table in tables) == expected
    assert tables[0].column_names == ["carrier", "dep_delay", "seats", "text"]
    assert set(tables[0]["text"].to_pylist()) == {"$(AIRFLOW_CONN_AWS_DEFAULT)"}
    delays = [value for table in tables for value in table["dep_delay"].to_pylist()]
    assert Counter(delays) == Counter(
        None if x["dep_delay"] == "NA" else int(x["dep_delay"]) for x in source if x["origin"] == "JFK"
    )
    manifest = httpx.get(ada.call("file_url", name=result["manifest"]).answer["url"], trust_env=False).json()
    assert manifest["rows"] == sum(part["rows"] for part in manifest["files"]) == expected
    failed = _ended(ada, other)
    assert failed["state"] == "failed"
    assert "ScriptTransformation" in str(failed["failed"]["log"])
    assert ada.call("files", below="spark-sh/").answer["files"] == []
