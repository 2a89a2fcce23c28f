"""ClickHouseOperator and its trigger against a running server: one try, the next one, and an end by hand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.sdk.serde import serialize

from support.airflow_task import Store
from support.clickhouse_gateway import PLUGINS, TESTS, RunningGateway, wait_until
from trilake.clickhouse import queries
from trilake.clickhouse.reading import UnreadableValueError
from trilake.errors import ConfigurationError
from trilake.operators import clickhouse as module
from trilake.operators.clickhouse import (
    STATE_KEY,
    ClickHouseOperator,
    PartlyWrittenError,
    QueryFailedError,
    UnknownOutcomeError,
)
from trilake.triggers.clickhouse import ClickHouseQueryTrigger

pytest_plugins = ["support.clickhouse_fixtures"]


@pytest.fixture(autouse=True)
def connections(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT", gateway.connection())
    monkeypatch.setattr(module, "_SHORT_SECONDS", 0.3)
    monkeypatch.setattr(queries, "LOG_DELAY_SECONDS", 1.0)


RETRIES = 3


class Task:
    """A task instance over its tries; each operator is what another worker would make of the DAG."""

    def __init__(self, run_id: str) -> None:
        self.run_id, self.store, self.tries, self.max_tries = run_id, Store(), 0, RETRIES

    def operator(self, sql: Any, **options: Any) -> ClickHouseOperator:
        with DAG("flights", schedule=None):
            return ClickHouseOperator(**{"task_id": "count", "sql": sql, "poll_interval": 0.1, **options})

    def context(self, operator: ClickHouseOperator) -> Any:
        self.tries += 1
        ti = SimpleNamespace(
            dag_id="flights",
            task_id="count",
            run_id=self.run_id,
            map_index=-1,
            try_number=self.tries,
            max_tries=self.max_tries,
            start_date=datetime.now(UTC),
        )
        return {"ti": ti, "task": operator, "run_id": self.run_id, "task_state_store": self.store}

    def run(self, sql: Any, **options: Any) -> Any:
        operator = self.operator(sql, **options)
        return operator.execute(self.context(operator))

    def defer(self, sql: Any, **options: Any) -> ClickHouseQueryTrigger:
        with pytest.raises(TaskDeferred) as deferred:
            self.run(sql, **options)
        path, kwargs = deferred.value.trigger.serialize()
        assert path == "trilake.triggers.clickhouse.ClickHouseQueryTrigger"
        return ClickHouseQueryTrigger(**json.loads(json.dumps(kwargs)))

    def complete(self, trigger: ClickHouseQueryTrigger, sql: Any, **options: Any) -> Any:
        event = json.loads(json.dumps(asyncio.run(trigger.wait())))
        operator = self.operator(sql, **options)
        return operator.execute_complete(self.context(operator), event)

    @property
    def query_id(self) -> str:
        return str(self.store[STATE_KEY]["query_id"])

    def clear(self) -> None:
        """What Airflow does when a person clears the task."""
        self.max_tries = self.tries + RETRIES

    def lose_the_worker(self) -> None:
        """As if the try had ended with its statement sent and nothing noted since."""
        self.store[STATE_KEY] |= {"end": "", "done": self.store[STATE_KEY]["done"][:-1]}


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    return Task(f"manual__{request.node.name}")


def slow_insert(table: str, seconds: float = 2.0) -> str:
    return f"INSERT INTO {table} SELECT number, toString(sleepEachRow(0.1)) FROM numbers({int(seconds * 10)})"


def breaking_insert(table: str, pause: float = 0.0) -> str:
    """It fails in its middle, when rows of it are in."""
    what = f"throwIf(number = 10, 'it broke') + sleepEachRow({pause})"
    return f"INSERT INTO {table} SELECT number, toString({what}) FROM numbers(20)"


SLOW = {"max_block_size": 1, "min_insert_block_size_rows": 1, "max_threads": 1}


def count(gateway: RunningGateway, table: str) -> int:
    return int(gateway.sql(f"SELECT count() FROM {table}"))


# --- one try


def test_many_statements_run_in_order_with_parameters_bound_on_the_server(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = f"""
    -- a semicolon; in a comment
    INSERT INTO {table} SELECT number, {{text:String}} FROM numbers({{n:UInt64}});
    SELECT n, s FROM {table} WHERE n < 2 ORDER BY n; -- and one at the end;
    """
    result = task.run(sql, parameters={"n": 1000, "text": "it's; 100%"})
    assert result["rows"] == [[0, "it's; 100%"], [1, "it's; 100%"]]
    assert result["written_rows"] == 1000
    assert result["read_rows"] >= 1002
    assert min(result["seconds"], result["written_bytes"], result["read_bytes"], result["memory_bytes"]) > 0
    assert len(set(result["query_ids"])) == 2
    gateway.sql("SYSTEM FLUSH LOGS")
    comment = json.loads(
        gateway.sql(
            "SELECT DISTINCT log_comment FROM system.query_log WHERE query_id = {id:String} FORMAT TSVRaw",
            param_id=result["query_ids"][0],
        )
    )
    assert (comment["task"], comment["run"], comment["try"]) == ("count", task.run_id, 1)
    assert comment["submission"] == task.store[STATE_KEY]["owner"]


def test_a_refused_statement_says_why_and_the_next_try_goes_on_with_it(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = [f"INSERT INTO {table} VALUES (1, 'a')", f"INSERT INTO {table} SELECT nothing FROM {table}"]
    for _ in range(2):
        with pytest.raises(QueryFailedError, match="Code: 47"):
            task.run(sql)
        assert count(gateway, table) == 1
    gateway.sql(f"ALTER TABLE {table} ADD COLUMN nothing UInt8 ALIAS 7")
    sql[1] = f"INSERT INTO {table} (n) SELECT nothing FROM {table}"
    task.clear()
    assert task.run([*sql, f"SELECT n FROM {table} ORDER BY n"])["rows"] == [[1], [1], [7], [7]]


def test_a_statement_that_had_written_rows_is_not_sent_again_by_itself(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = [f"INSERT INTO {table} VALUES (100, '')", breaking_insert(table)]
    with pytest.raises(PartlyWrittenError, match=r"it broke.*had written [0-9]+ rows.*clear the task") as error:
        task.run(sql, settings=SLOW)
    assert isinstance(error.value, AirflowFailException)
    assert error.value.code == 395
    left = count(gateway, table)
    assert left > 1, "nothing of it has stayed"
    task.clear()
    with pytest.raises(PartlyWrittenError):
        task.run(sql, settings=SLOW)
    assert count(gateway, table) == 2 * left


def test_statements_that_may_run_again_begin_with_the_first_one_after_one_that_had_written_rows(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = [f"TRUNCATE TABLE {table}", breaking_insert(table)]
    lefts = set()
    for _ in range(2):
        with pytest.raises(QueryFailedError, match="it broke"):
            task.run(sql, settings=SLOW, idempotent=True)
        lefts.add(count(gateway, table))
    assert len(lefts) == 1
    assert lefts != {0}


def test_a_statement_that_fails_outside_of_the_worker_is_told_alike(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = breaking_insert(table, pause=0.1)
    with pytest.raises(PartlyWrittenError, match=r"it broke.*had written"):
        task.complete(task.defer(sql, settings=SLOW), sql, settings=SLOW)


def test_rows_are_as_xcom_can_hold_them(task: Task) -> None:
    values = {
        "nan": "nan",
        "-inf": "-inf",
        "toIPv4('10.0.0.1')": "10.0.0.1",
        "toIPv6('fe80::1')": "fe80::1",
        "toFixedString('abc', 3)": "abc",
        "[1.5, inf]": [1.5, "inf"],
        "map('a', nan)": {"a": "nan"},
        "map(1, 'a')": {"1": "a"},
        "toDecimal128('1234567890123456789.25', 2)": "1234567890123456789.25",
        "toDateTime64('9999-12-31 23:59:59.999999', 6, 'UTC')": "9999-12-31T23:59:59.999999+00:00",
        "toUInt64(18446744073709551615)": 18446744073709551615,
        "NULL": None,
        "true": True,
    }
    others = "toDate('2013-01-05'), toDateTime64('2013-01-05 01:02:03.5', 3, 'UTC'), toDecimal64(1.5, 2), (1, nan), "
    others += "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')"
    ((*told, day, moment, decimal, pair, uuid),) = task.run(f"SELECT {', '.join(values)}, {others}")["rows"]
    assert told == list(values.values())
    json.dumps(serialize([told, day, moment, decimal, pair, uuid]), allow_nan=False)
    assert (day.isoformat(), moment.isoformat(), decimal) == ("2013-01-05", "2013-01-05T01:02:03.500000+00:00", 1.5)
    assert (list(pair), str(uuid)) == ([1, "nan"], "61f0c404-5cb3-11e7-907b-a6006ad3dba0")


def test_a_check_of_a_table_returns_a_row_for_each_part(task: Task, gateway: RunningGateway, table: str) -> None:
    for number in range(2):
        gateway.sql(f"INSERT INTO {table} SELECT {number}, 'x'")
    rows = task.run(f"/* all */ CHECK TABLE {table} SETTINGS check_query_single_value_result = 0 -- parts")["rows"]
    assert [bool(passed) for _, passed, _ in rows] == [True, True]


def test_bytes_that_xcom_cannot_hold_are_refused_by_name(task: Task) -> None:
    for value in ("unhex('636166E9')", "toFixedString(unhex('FFFE'), 2)", "[toFixedString(unhex('FF'), 1)]"):
        with pytest.raises(UnreadableValueError, match=r"Column v.* row 1: .*not UTF-8"):
            task.run(f"SELECT {value} AS v")


def test_what_cannot_be_meant_is_refused_before_anything_is_sent(task: Task) -> None:
    with pytest.raises(ConfigurationError, match="no statement"):
        task.run("-- nothing; here")
    with pytest.raises(ConfigurationError, match="parameters typo"):
        task.run("SELECT {n:UInt8}", parameters={"n": 1, "typo": 2})
    assert STATE_KEY not in task.store
    with pytest.raises(QueryFailedError, match="Code: 396"):
        task.run("SELECT number FROM numbers(5000)")


def test_a_long_statement_is_waited_for_outside_and_the_next_ones_follow(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = [slow_insert(table), f"SELECT count() FROM {table}"]
    trigger = task.defer(sql, settings=SLOW)
    assert gateway.running(task.query_id)
    result = task.complete(trigger, sql, settings=SLOW)
    assert result["rows"] == [[20]]
    assert result["written_rows"] == 20
    assert len(result["query_ids"]) == 2


def test_a_long_statement_is_waited_for_in_the_worker_if_asked(task: Task, table: str) -> None:
    assert task.run(slow_insert(table, 1), settings=SLOW, deferrable=False)["written_rows"] == 10


def test_a_query_ends_with_its_tasks_time(task: Task, table: str) -> None:
    sql = slow_insert(table, 20)
    # on a busy machine it takes seconds until the task is deferred
    trigger = task.defer(sql, settings=SLOW, execution_timeout=timedelta(seconds=6))
    with pytest.raises(QueryFailedError, match=r"159|160|TIMEOUT"):
        task.complete(trigger, sql)


def test_a_file_below_sql_is_a_template(tmp_path: Path, task: Task, table: str) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "dags").mkdir()
    (tmp_path / "sql" / "count.sql").write_text("SELECT {{ what }}, {n:UInt8}")
    operator = task.operator("count.sql", parameters={"n": "{{ number }}"})
    operator.dag.fileloc = str(tmp_path / "dags" / "flights.py")
    operator.resolve_template_files()
    operator.render_template_fields({"what": "42", "number": "7"})  # type: ignore[typeddict-unknown-key]
    assert operator.execute(task.context(operator))["rows"] == [[42, 7]]


# --- the next try


def test_a_query_that_still_runs_is_waited_for_and_not_sent_again(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = slow_insert(table)
    task.defer(sql, settings=SLOW)
    query_id = task.query_id
    trigger = task.defer(sql, settings=SLOW)  # another worker, the trigger being lost
    assert (trigger.query_id, task.query_id) == (query_id, query_id)
    assert task.complete(trigger, sql, settings=SLOW)["query_ids"] == [query_id]
    assert count(gateway, table) == 20


_WORKER = """
import json, sys
from pathlib import Path
from test_clickhouse_operator import SLOW, Task
task, file = Task(sys.argv[1]), Path(sys.argv[2])
task.store.set = lambda key, value: file.write_text(json.dumps({key: value}))
task.run(sys.argv[3], settings=SLOW, deferrable=False)
"""


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(
    task: Task, gateway: RunningGateway, table: str, tmp_path: Path
) -> None:
    sql, file = slow_insert(table, 6), tmp_path / "store.json"
    folders = os.pathsep.join([str(Path(__file__).parent), str(TESTS), str(PLUGINS)])
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, task.run_id, str(file), sql], env={**os.environ, "PYTHONPATH": folders}
    )

    def sent() -> bool:
        if not file.exists() or not (text := file.read_text()):
            return False
        task.store.update(json.loads(text))
        return gateway.running(task.query_id)

    wait_until(sent)
    worker.kill()
    worker.wait()
    query_id = task.query_id
    assert task.run(sql, settings=SLOW, deferrable=False)["query_ids"] == [query_id]
    assert count(gateway, table) == 60


def test_a_query_that_has_finished_is_not_sent_again(task: Task, gateway: RunningGateway, table: str) -> None:
    sql = [f"INSERT INTO {table} VALUES (1, 'a')", f"INSERT INTO {table} VALUES (2, 'b')"]
    first = task.run(sql)
    task.lose_the_worker()
    assert task.run(sql)["query_ids"] == first["query_ids"]
    assert count(gateway, table) == 2


def test_what_ran_before_a_query_that_only_reads_is_not_sent_again_with_it(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = [f"INSERT INTO {table} VALUES (1, 'a')", f"SELECT count() FROM {table}"]
    first = task.run(sql)
    task.lose_the_worker()
    second = task.run(sql)
    assert second["rows"] == [[1]]
    assert second["query_ids"][0] == first["query_ids"][0]
    assert second["query_ids"][1] != first["query_ids"][1]


@pytest.mark.parametrize("end", ["succeeded", ""])
def test_a_success_that_airflow_has_not_heard_of_is_told_again_with_its_rows(
    task: Task, gateway: RunningGateway, table: str, end: str
) -> None:
    sql = [f"INSERT INTO {table} VALUES (1, 'a')", f"SELECT count() FROM {table}"]
    first = task.run(sql)
    assert task.store[STATE_KEY]["end"] == "succeeded"
    task.store[STATE_KEY]["end"] = end
    second = task.run(sql)
    assert (second["rows"], second["query_ids"][0]) == ([[1]], first["query_ids"][0])
    only = sql[:1]
    done = Task(f"{task.run_id}-of-one")
    assert done.run(only) == done.run(only)
    assert count(gateway, table) == 2


def test_a_task_that_is_cleared_runs_all_of_it_again(task: Task, gateway: RunningGateway, table: str) -> None:
    sql = f"INSERT INTO {table} VALUES (1, 'a')"
    first = task.run(sql)
    task.clear()
    second = task.run(sql)
    assert first["query_ids"] != second["query_ids"]
    assert count(gateway, table) == 2
    task.lose_the_worker()
    task.store[STATE_KEY]["query_id"] = "never-sent"  # or so long ago that no log has it
    task.clear()
    task.run(sql)
    assert count(gateway, table) == 3


def test_a_query_that_runs_is_ended_when_its_task_is_cleared(task: Task, gateway: RunningGateway, table: str) -> None:
    trigger = task.defer(slow_insert(table, 60), settings=SLOW)
    task.clear()
    task.defer(slow_insert(table, 60), settings=SLOW)
    assert not gateway.running(trigger.query_id)
    assert task.query_id != trigger.query_id
    gateway.sql("KILL QUERY WHERE query_id = {id:String} SYNC", param_id=task.query_id)


def test_a_query_nobody_knows_fails_for_good_unless_it_may_run_again(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = f"INSERT INTO {table} VALUES (1, 'a')"
    task.run(sql)
    for idempotent in (False, True):
        task.lose_the_worker()
        task.store[STATE_KEY]["query_id"] = "never-sent"
        if idempotent:
            task.run(sql, idempotent=True)
        else:
            with pytest.raises(UnknownOutcomeError, match="no host has a record of it") as error:
                task.run(sql)
            assert isinstance(error.value, AirflowFailException)
    assert count(gateway, table) == 2
    assert not task.store[STATE_KEY]["query_id"].startswith("never")


def test_a_query_that_only_reads_is_run_again(task: Task) -> None:
    first = task.run("SELECT 1")
    task.lose_the_worker()
    second = task.run("SELECT 1")
    assert second["rows"] == [[1]]
    assert first["query_ids"] != second["query_ids"]


def test_the_id_is_written_down_before_the_query_is_sent(
    task: Task, gateway: RunningGateway, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClickHouseOperator, "_write", die)
    with pytest.raises(KeyboardInterrupt):
        task.run(f"INSERT INTO {table} VALUES (1, 'a')")
    assert f":{task.store[STATE_KEY]['number']}:1:{task.store[STATE_KEY]['owner'][:12]}" in task.query_id
    assert task.query_id.startswith("flights:count:manual__")


# --- ended by hand


def test_a_killed_task_ends_its_own_query_and_no_other(task: Task, gateway: RunningGateway, table: str) -> None:
    sql = slow_insert(table, 20)
    operator = task.operator(sql, settings=SLOW, deferrable=False)
    errors: list[Exception] = []

    def work() -> None:
        try:
            operator.execute(task.context(operator))
        except Exception as e:
            errors.append(e)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: STATE_KEY in task.store and gateway.running(task.query_id))
    query_id, owner = task.query_id, task.store[STATE_KEY]["owner"]
    task.store[STATE_KEY]["owner"] = "a later try"
    operator.on_kill()
    assert gateway.running(query_id)
    task.store[STATE_KEY]["owner"] = owner
    operator.on_kill()
    assert not gateway.running(query_id)
    worker.join(10)
    assert isinstance(errors[0], QueryFailedError)


def test_a_killed_trigger_ends_its_query(task: Task, gateway: RunningGateway, table: str) -> None:
    trigger = task.defer(slow_insert(table, 20), settings=SLOW)
    assert gateway.running(trigger.query_id)
    asyncio.run(trigger.on_kill())
    assert not gateway.running(trigger.query_id)
    assert asyncio.run(trigger.wait())["state"] == "failed"


def test_a_try_that_is_killed_before_it_takes_over_ends_the_earlier_ones_query(
    task: Task, gateway: RunningGateway, table: str
) -> None:
    sql = slow_insert(table, 60)
    query_id = task.defer(sql, settings=SLOW).query_id
    operator = task.operator(sql, settings=SLOW)
    operator.on_kill()
    with pytest.raises(QueryFailedError, match="were killed"):
        operator.execute(task.context(operator))
    assert not gateway.running(query_id)
