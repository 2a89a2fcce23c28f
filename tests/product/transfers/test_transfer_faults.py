"""Transfers that are ended while rows are on their way: by ClickHouse's connection, or by a kill of their own."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.kubernetes_api import await_true
from support.running_platform import Platform
from support.tcp_proxy import Fault, TcpProxy, http_error
from support.transfer_task import connect_airflow, context, make
from trilake import s3
from trilake.errors import ConfigurationError, RefusedError, UnreachableError
from trilake.lake import DataSet, dimensions
from trilake.lake.catalog import RUN_PROPERTY, files_of, load_table, open_catalog, plan, snapshot_summary
from trilake.lake.dimensions import replace_table
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator
from trilake.transfers.postgres_to_iceberg import PostgresToIcebergOperator
from trilake.transfers.source_to_s3 import SourceToS3Operator

MONTHLY = DataSet("cut_off", grain="month", date="m", shard_by="n")
# Some megabytes that compression leaves, in blocks that are sent as they are made
SQL = "SELECT toDate('2013-01-01') AS m, number + 10 AS n, hex(sipHash128(number)) AS note FROM numbers(100000)"
OLD = [("2013-01-01", 1, "old"), ("2013-02-01", 2, "old")]


@pytest.fixture
def mart(platform: Platform) -> Iterator[str]:
    name = f"marts.c_{secrets.token_hex(4)}"
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (m date, n int PRIMARY KEY, note text)")
        cursor.execute(f"INSERT INTO {name} VALUES ('2013-01-01', 1, 'old'), ('2013-02-01', 2, 'old')")
    yield name
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")


@pytest.fixture
def proxy(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    connect_airflow(monkeypatch, platform.env)
    name = "AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT"
    document = json.loads(platform.env[name])
    with TcpProxy("127.0.0.1", document["port"]) as running:
        document["port"] = running.port
        document["extra"]["client_kwargs"] = {"send_receive_timeout": 5}
        for shard in document["extra"]["shards"]:
            shard["port"] = running.port
        monkeypatch.setenv(name, json.dumps(document))
        yield running


def rows(platform: Platform, mart: str) -> list[tuple[Any, ...]]:
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT m::text, n, note FROM {mart} ORDER BY n")
        return cursor.fetchall()


@pytest.mark.parametrize("fault", [Fault(b"sipHash", cut_answer_after=500_000), Fault(b"sipHash", stall=True)])
@pytest.mark.parametrize("how", [{"date": "m"}, {"key": ("n",)}], ids=["replaced", "merged"])
def test_a_mart_stays_as_it_was_and_the_next_try_is_right(
    platform: Platform, proxy: TcpProxy, mart: str, how: dict[str, Any], fault: Fault
) -> None:
    task = make(
        ClickHouseToPostgresOperator, sql=SQL, table=mart, data_set=MONTHLY, start="2013-01", end="2013-01", **how
    )
    proxy.fault = fault
    with pytest.raises(Exception, match=str(proxy.port)):
        task.execute(context())
    assert proxy.hits >= 1
    assert rows(platform, mart) == OLD
    proxy.fault = None
    assert task.execute(context())["rows"] == 100_000
    found = rows(platform, mart)
    kept = OLD if "key" in how else OLD[1:]
    assert (found[: len(kept)], len(found)) == (kept, 100_000 + len(kept))


def test_an_ingest_that_was_killed_in_the_middle_of_an_upload_leaves_nothing_once_it_is_run_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    store, content = s3.client(platform.endpoints.s3), b"1,2\n" * (s3.PART_BYTES // 2)
    task = make(
        SourceToS3Operator,
        data_set=MONTHLY,
        source=lambda window: ((partition, content) for partition in window),
        file_name="large.csv",
        start="2013-01",
        end="2013-01",
    )
    key = MONTHLY.raw_key("2013-01", "large.csv")
    killed = s3.ObjectWriter(store, "raw", key)
    killed.write(content)
    assert s3.list_uploads(store, "raw", key), "nothing was under way"
    written = task.execute(context())["2013-01"]
    assert not s3.list_uploads(store, "raw", key)
    answer = store.get_object(Bucket="raw", Key=key)
    assert answer["Body"].read() == content
    assert (written["etag"], written["bytes"]) == (answer["ETag"].strip('"'), len(content))


@pytest.mark.parametrize(("given", "says"), [(["2013-01", "2013-01"], "2013-01 twice"), (["2013-02"], "2013-02 for")])
def test_a_source_that_gives_a_partition_twice_or_another_writes_nothing_over(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, given: list[str], says: str
) -> None:
    connect_airflow(monkeypatch, platform.env)
    store, name = s3.client(platform.endpoints.s3), f"{secrets.token_hex(4)}.csv"
    task = make(
        SourceToS3Operator,
        data_set=MONTHLY,
        source=lambda _window: ((partition, b"%d\n" % number) for number, partition in enumerate(given)),
        file_name=name,
        start="2013-01",
        end="2013-01",
    )
    with pytest.raises(ConfigurationError, match=says):
        task.execute(context())
    held = {
        key: store.get_object(Bucket="raw", Key=key)["Body"].read()
        for key in s3.list_keys(store, "raw", MONTHLY.raw_key("2013-01"))
        + s3.list_keys(store, "raw", MONTHLY.raw_key("2013-02"))
        if key.endswith(name)
    }
    assert held == ({MONTHLY.raw_key("2013-01", name): b"0\n"} if len(given) > 1 else {})


def test_a_server_of_postgresql_asks_whether_its_clients_host_is_still_there(platform: Platform) -> None:
    with connect(platform.endpoints.lake) as connection, connection.cursor() as cursor:
        names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
        cursor.execute("SELECT name, setting::int FROM pg_settings WHERE name = ANY(%s)", (list(names),))
        found = dict(cursor.fetchall())
    idle, interval, count = (found[name] for name in names)
    assert 0 < idle + interval * count <= 120, found


def test_uploads_that_nobody_completed_end_by_their_age(platform: Platform) -> None:
    store, key = s3.client(platform.endpoints.s3), f"old/{secrets.token_hex(4)}"
    store.create_multipart_upload(Bucket="lake", Key=key)
    now = datetime.now(UTC)
    assert s3.abort_uploads(store, "lake", "old/", before=now - timedelta(hours=1)) == 0
    assert s3.list_uploads(store, "lake", key)
    assert s3.abort_uploads(store, "lake", "old/", before=now + timedelta(hours=1)) == 1
    assert not s3.list_uploads(store, "lake", key)


def test_an_object_store_that_is_away_or_fails_is_named(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    endpoint = platform.endpoints.s3
    with pytest.raises(UnreachableError, match=r"S3 \(http://127.0.0.1:9\) does not answer"):
        s3.client(replace(endpoint, url="http://127.0.0.1:9")).list_objects_v2(Bucket="raw")
    with TcpProxy("127.0.0.1", int(endpoint.url.rpartition(":")[2])) as proxy:
        where = f"http://127.0.0.1:{proxy.port}"
        store = s3.client(replace(endpoint, url=where))
        store.put_object(Bucket="raw", Key="named/a", Body=b"a")
        proxy.cut()
        with pytest.raises(UnreachableError, match=rf"S3 \({where}\) does not answer"):
            store.put_object(Bucket="raw", Key="named/a", Body=b"b")
        proxy.restore()
        full = "<Error><Code>InternalError</Code><Message>No space left on device</Message></Error>"
        proxy.fault = Fault(answer=http_error(500, full))
        with pytest.raises(s3.S3Error, match=r"fails at PutObject: 500 InternalError: No space left on device"):
            store.put_object(Bucket="raw", Key="named/a", Body=b"b")
        proxy.fault = Fault(answer=http_error(404, "<Error><Code>NoSuchKey</Code><Message></Message></Error>"))
        with pytest.raises(store.exceptions.NoSuchKey):
            store.get_object(Bucket="raw", Key="named/a")
        proxy.fault = None
        with pytest.raises(store.exceptions.NoSuchKey):
            store.get_object(Bucket="raw", Key="named/none")
        assert store.get_object(Bucket="raw", Key="named/a")["Body"].read() == b"a"


@pytest.mark.parametrize(("call", "name"), [("get_object", "GetObject"), ("head_object", "HeadObject")])
def test_an_object_store_that_refuses_a_key_is_named_with_what_was_asked(
    platform: Platform, call: str, name: str
) -> None:
    endpoint = platform.endpoints.s3
    store = s3.client(replace(endpoint, secret_access_key="another"))
    what = f"S3 refuses {name} on {endpoint.url}/raw/named/b for key {endpoint.access_key_id}: 403"
    with pytest.raises(RefusedError, match=f"^{re.escape(what)}") as refused:
        getattr(store, call)(Bucket="raw", Key="named/b")
    assert endpoint.secret_access_key not in str(refused.value)
    assert "Signature" not in str(refused.value).replace("SignatureDoesNotMatch", "")


def test_a_store_that_is_away_is_named_where_iceberg_reads_and_writes(platform: Platform) -> None:
    store, dimension = platform.endpoints.s3, DataSet(f"t_{secrets.token_hex(4)}")
    address = urlsplit(store.url)
    assert address.hostname
    assert address.port
    with TcpProxy(address.hostname, address.port) as proxy, connect(platform.endpoints.oltp) as oltp:
        with oltp.cursor() as cursor:
            cursor.execute(f"CREATE TEMP TABLE {dimension.name} (k int)")
            cursor.execute("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
            source = f"{cursor.fetchone()[0]}.{dimension.name}"  # type: ignore[index]
        catalog = open_catalog(platform.endpoints.lake, replace(store, url=f"http://127.0.0.1:{proxy.port}"))
        try:
            replace_table(catalog, dimension, oltp, source, run_id="r")
            table = load_table(catalog, dimension.curated)
            snapshot = table.current_snapshot()
            assert snapshot
            proxy.cut()
            for use in (
                lambda: load_table(catalog, dimension.curated),
                lambda: plan(table, dimension, []),
                lambda: files_of(table, dimension, [], snapshot.snapshot_id),
                lambda: replace_table(catalog, dimension, oltp, source, run_id="r"),
            ):
                with pytest.raises(UnreachableError, match=rf"S3 .*{proxy.port}.*, Iceberg table {dimension.curated}"):
                    use()
            proxy.restore()
            replace_table(catalog, dimension, oltp, source, run_id="r")
        finally:
            catalog.drop_table(dimension.curated)
            catalog.close()


def test_a_dimensions_snapshot_names_the_dag_and_the_run(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_airflow(monkeypatch, platform.env)
    dimension = DataSet(f"t_{secrets.token_hex(4)}")
    with connect(platform.endpoints.oltp) as oltp, oltp.cursor() as cursor:
        cursor.execute(f"CREATE TABLE marts.{dimension.name} (k int)")
    catalog = open_catalog(platform.endpoints.lake, platform.endpoints.s3)
    try:
        task = make(PostgresToIcebergOperator, data_set=dimension, table=f"marts.{dimension.name}")
        told = task.execute(context("r"))
        table = load_table(catalog, dimension.curated)
        assert snapshot_summary(table, told["snapshot_id"])[RUN_PROPERTY] == "transfers/r"
        catalog.drop_table(dimension.curated)
    finally:
        catalog.close()
        with connect(platform.endpoints.oltp) as oltp, oltp.cursor() as cursor:
            cursor.execute(f"DROP TABLE marts.{dimension.name}")


def test_of_two_that_replace_a_dimension_at_once_the_one_that_read_earlier_is_not_the_last(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    dimension, read = DataSet(f"t_{secrets.token_hex(4)}"), dimensions.read_postgres
    source = f"marts.{dimension.name}"

    def oltp(sql: str) -> list[tuple[Any, ...]]:
        with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def replace_it() -> None:
        make(PostgresToIcebergOperator, data_set=dimension, table=source).execute(context())

    second = Thread(target=replace_it)

    def reading(*given: Any) -> Any:
        rows = read(*given)
        monkeypatch.setattr(dimensions, "read_postgres", read)
        oltp(f"UPDATE {source} SET k = 2")
        second.start()
        waiting = f"SELECT 1 FROM pg_locks WHERE classid = {LockSpace.MART} AND NOT granted"
        await_true(lambda: not second.is_alive() or oltp(waiting))
        return rows

    oltp(f"CREATE TABLE {source} (k int)")
    oltp(f"INSERT INTO {source} VALUES (1)")
    monkeypatch.setattr(dimensions, "read_postgres", reading)
    catalog = open_catalog(platform.endpoints.lake, platform.endpoints.s3)
    try:
        replace_it()
        second.join(60)
        assert load_table(catalog, dimension.curated).scan().to_arrow().to_pylist() == [{"k": 2}]
        catalog.drop_table(dimension.curated)
    finally:
        catalog.close()
        oltp(f"DROP TABLE {source}")


def test_a_catalog_that_is_away_is_named_when_it_is_opened_and_when_it_is_used(platform: Platform) -> None:
    lake = platform.endpoints.lake
    with TcpProxy(lake.host, lake.port) as proxy:
        proxied = replace(lake, port=proxy.port)
        catalog = open_catalog(proxied, platform.endpoints.s3)
        try:
            assert not catalog.table_exists("curated.not_there")
            proxy.cut()
            for use in (
                lambda: catalog.table_exists("curated.not_there"),
                lambda: open_catalog(proxied, platform.endpoints.s3),
            ):
                with pytest.raises(UnreachableError, match=rf"database lake \(127.0.0.1:{proxy.port}\)") as caught:
                    use()
                assert lake.password not in str(caught.value)
            proxy.restore()
            assert not catalog.table_exists("curated.not_there")
        finally:
            catalog.close()
