"""Secrets that are planted in every connection come out nowhere, however operators, hooks and the publisher fail."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from airflow.sdk import DAG

from support.airflow_task import Store
from support.running_platform import Platform
from support.tcp_proxy import Fault, TcpProxy, http_error
from trilake import retry
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.lake import LakeHook
from trilake.lake import DataSet
from trilake.operators.arrivals import TakeArrivalsOperator
from trilake.operators.clickhouse import ClickHouseOperator
from trilake.operators.report import ClickHouseReportOperator
from trilake.platform.embedded import processes
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator
from trilake.transfers.iceberg_to_clickhouse import IcebergToClickHouseOperator
from trilake.transfers.postgres_to_iceberg import PostgresToIcebergOperator
from trilake.transfers.source_to_s3 import SourceToS3Operator

# With what is special in a URL, in SQL and in JSON: an address or a message would show it in one of these forms.
CLICKHOUSE, POSTGRES, S3, PARAMETER = ("planted-clickhouse", "planted-postgres", "planted-s3", "planted-parameter")
PLANTED = "planted-"
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="tailnum")
AIRLINES = DataSet("airlines")
IDS = ("clickhouse_cluster_default", "postgres_lake", "postgres_oltp", "aws_default")


@pytest.fixture
def connections(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The platform's own, for a test to break."""
    documents = {name: json.loads(platform.env[f"AIRFLOW_CONN_{name.upper()}"]) for name in IDS}
    monkeypatch.setenv("TRILAKE_PROJECT", str(platform.home.project))
    monkeypatch.setattr(retry, "RESTART_S", 0.0)  # nothing comes back here
    plant(monkeypatch, documents)
    return documents


def plant(monkeypatch: pytest.MonkeyPatch, documents: dict[str, dict[str, Any]]) -> None:
    for name, document in documents.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(document))


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", 1) as running:
        yield running


def work() -> dict[str, Callable[[], Any]]:
    """What faces ClickHouse, PostgreSQL and S3."""

    def run(operator: type, **options: Any) -> Any:
        with DAG("secrets", schedule=None, start_date=datetime(2013, 1, 1)):
            task = operator(task_id="t", **options)
        ti = SimpleNamespace(
            dag_id="secrets", task_id="t", run_id="r", map_index=-1, try_number=1, start_date=datetime.now(UTC)
        )
        context: Any = {
            "ti": ti,
            "task": task,
            "run_id": "r",
            "params": {"start": "2013-01", "end": "2013-01"},
            "task_state_store": Store(),
            "outlet_events": {},
            "data_interval_start": datetime(2013, 1, 1, tzinfo=UTC),
            "data_interval_end": datetime(2013, 2, 1, tzinfo=UTC),
        }
        shown = json.dumps({name: str(getattr(task, name)) for name in task.template_fields})
        assert PLANTED not in shown.replace(PARAMETER, ""), "in a rendered template"
        result = task.execute(context)
        assert PLANTED not in json.dumps([result, context["task_state_store"]], default=str), (
            "in XCom or the task's state"
        )
        return result

    hook = ClickHouseHook
    bound = {"token": PARAMETER}
    select = "SELECT {token:String}, throwIf(1)"
    mart = {"sql": "SELECT 'x' AS carrier", "table": "marts.nowhere", "date": "month"}
    return {
        "operator reads": partial(run, ClickHouseOperator, sql=select, parameters=bound),
        "operator writes": partial(
            run, ClickHouseOperator, sql="INSERT INTO nowhere SELECT {token:String}", parameters=bound
        ),
        "hook run": lambda: hook().run("SELECT {token:String} FROM nowhere", parameters=bound),
        "hook df": lambda: hook().query_df(select, bound),
        "hook arrow": lambda: hook().query_arrow(select, bound),
        "hook stream": lambda: list(hook().stream_rows(select, bound)),
        "hook insert": lambda: hook().insert_rows("nowhere", [(PARAMETER,)], ["x"]),
        "hook dump": lambda: hook().bulk_dump("nowhere", "/nowhere/dump.tsv"),
        "hook kill": lambda: hook().kill("nobody") or hook().get_first("SELECT throwIf(1)"),
        "cluster": lambda: hook().cluster().check_topology() or hook().get_first("SELECT throwIf(1)"),
        "ledger": lambda: LakeHook().ledger()._select("SELECT * FROM nowhere WHERE %s", (PARAMETER,)),
        "s3": lambda: LakeHook().s3_client().get_object(Bucket="lake", Key="nowhere"),
        "catalog": lambda: LakeHook().catalog().load_table("no.where"),
        "report": partial(run, ClickHouseReportOperator, data_set=FLIGHTS, folder="nowhere", title="t", key="k.html"),
        "publish": partial(run, IcebergToClickHouseOperator, data_set=DataSet("nowhere")),
        "mart": partial(run, ClickHouseToPostgresOperator, data_set=FLIGHTS, **mart),
        "to iceberg": partial(run, PostgresToIcebergOperator, data_set=AIRLINES, table="nowhere"),
        "arrivals": partial(run, TakeArrivalsOperator, data_set=FLIGHTS),
        "ingest": partial(
            run, SourceToS3Operator, data_set=FLIGHTS, source=lambda _: iter([("2013-02", b"x")]), file_name="f"
        ),
    }


def told(what: Callable[[], Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> str:
    """All that a failing piece of work says: its log, and its exception with those behind it, as Airflow prints."""
    with caplog.at_level(logging.INFO):
        try:
            what()
            failure = ""
        except Exception as e:
            failure = "".join(traceback.format_exception(e)) + "".join(map(repr, chain_of(e)))
    output = capfd.readouterr()  # Airflow's own log is here
    return failure and "\n".join([failure, caplog.text, output.out, output.err])


def chain_of(error: BaseException) -> list[BaseException]:
    """What is printed behind an exception."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found


def wrong_password(documents: dict[str, dict[str, Any]], _proxy: TcpProxy) -> None:
    for name, secret in zip(IDS, (CLICKHOUSE, POSTGRES, POSTGRES, S3), strict=True):
        documents[name]["password"] = secret


def moved(documents: dict[str, dict[str, Any]], port: int) -> None:
    documents["clickhouse_cluster_default"]["port"] = port
    for shard in documents["clickhouse_cluster_default"]["extra"]["shards"]:
        shard.pop("port", None)
    for name in ("postgres_lake", "postgres_oltp"):
        documents[name]["port"] = port
    documents["aws_default"]["extra"]["endpoint_url"] = f"http://127.0.0.1:{port}"


def refused(documents: dict[str, dict[str, Any]], proxy: TcpProxy) -> None:
    wrong_password(documents, proxy)
    moved(documents, proxy.port)
    proxy.refuse()


def broken(documents: dict[str, dict[str, Any]], proxy: TcpProxy) -> None:
    wrong_password(documents, proxy)
    moved(documents, proxy.port)
    proxy.fault = Fault(answer=http_error(500, "Code: 241. DB::Exception: no memory", 241))


def bad_statement(_documents: dict[str, dict[str, Any]], _proxy: TcpProxy) -> None:
    """The connections are right, and what is asked for is not."""


@pytest.mark.parametrize("way", [wrong_password, refused, broken, bad_statement])
@pytest.mark.parametrize("what", list(work()))
def test_a_failure_tells_no_secret(
    connections: dict[str, dict[str, Any]],
    proxy: TcpProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    what: str,
    way: Callable[[dict[str, dict[str, Any]], TcpProxy], None],
) -> None:
    secrets = {str(document["password"]) for document in connections.values()}
    way(connections, proxy)
    plant(monkeypatch, connections)
    said = told(work()[what], caplog, capfd)
    assert said, "it did not fail"
    if (what, way) == ("hook run", bad_statement):
        assert "Running statement" in said, "the log was not seen"
    assert PLANTED not in said
    assert not [secret for secret in secrets if secret in said]


@pytest.mark.slow
def test_no_process_of_the_platform_has_a_secret_in_its_arguments(
    whole_platform: Platform, connections: dict[str, dict[str, Any]]
) -> None:
    secrets = {str(document["password"]) for document in connections.values()}
    running = processes.find(whole_platform.home)
    assert {"postgres", "s3", "clickhouse", "airflow-scheduler"} <= set(running.values())
    for process in running:
        try:
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
        except (OSError, psutil.Error):
            continue
        assert not [secret for secret in secrets if secret in arguments], running[process]
