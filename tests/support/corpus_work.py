"""What the corpus' test does inside a driver: see `spark_session.py`. A data set a case."""

from __future__ import annotations

import io
import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support import corpus_cases
from support.corpus_cases import Case
from trilake import s3
from trilake.endpoints import Endpoints
from trilake.errors import CountMismatchError, TrilakeError
from trilake.lake import DataSet
from trilake.lake.data_set import RAW_BUCKET
from trilake.postgres.connection import connect
from trilake.spark.job import Job

# What jobs do to good rows that they should not, and the corpus' month with it.
CARELESS: dict[str, Callable[[Any], Any]] = {
    "drops a row": lambda rows: rows.where("k > 1"),
    "doubles a row": lambda rows: rows.unionByName(rows.where("k = 1")),
    "moves a row to another month": lambda rows: rows.selectExpr(
        "k", "if(k = 1, date_add(d, 31), d) AS d", "name", "price"
    ),
}


def run_cases(spark: Any, *names: str) -> Any:
    return {name: run(spark, case) for name, case in corpus_cases.cases() if name in names}


def run_careless(spark: Any) -> Any:
    return {how: careless(spark, work) for how, work in CARELESS.items()}


def careless(spark: Any, work: Callable[[Any], Any]) -> Any:
    """What the commit said of a job that works on good rows as it should not, and the keys in the lake afterwards."""
    endpoints = Endpoints.from_environment()
    data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k", max_refused=1.0)
    _hold(spark, data_set)
    key = data_set.raw_key(corpus_cases.MONTH, "a.csv")
    s3.client(endpoints.s3).put_object(
        Bucket=RAW_BUCKET, Key=key, Body=corpus_cases.csv(*map(corpus_cases.good, (1, 2, 3)), "no row at all")
    )
    arguments = ["--data-set", data_set.to_json(), "--start", corpus_cases.MONTH, "--run", "careless"]
    with Job(arguments, endpoints=endpoints, spark=spark) as job:
        batch = job.read(corpus_cases.SCHEMA)
        try:
            job.commit(work(batch.rows), batch)
            said = "nothing"
        except CountMismatchError as e:
            said = str(e)
        kept = sorted(row.k for row in job.table(data_set).select("k").collect())
        refused = sorted(row.raw for row in spark.table(f"lake.{data_set.quarantine}").collect())
    for table in (data_set.curated, data_set.quarantine):
        spark.sql(f"DROP TABLE lake.{table} PURGE")
    return [said, kept, refused]


def run_flood(spark: Any, files: str) -> Any:
    return run(spark, corpus_cases.flood(int(files)))


def run(spark: Any, case: Case) -> Any:
    """What came of it: the error, or counts and rows as they lie in the lake; and in PostgreSQL, without a commit."""
    endpoints = Endpoints.from_environment()
    store = s3.client(endpoints.s3)
    data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k", max_refused=1.0)

    def put(item: tuple[str, bytes]) -> None:
        store.upload_fileobj(io.BytesIO(item[1]), RAW_BUCKET, data_set.raw_key(corpus_cases.MONTH, item[0]))

    if case.held:
        _hold(spark, data_set)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, case.objects.items()))
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {data_set.name}")
        cursor.execute(f"CREATE TABLE {data_set.name}.t (k int, d date)")

    def write(job: Job, frame: Any) -> dict[str, Any]:
        try:
            job.write_postgres(frame, f"{data_set.name}.t")
            said = None
        except TrilakeError as e:
            said = str(e)
        with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT k FROM {data_set.name}.t ORDER BY k")
            return {"refused": said, "rows": [k for (k,) in cursor.fetchall()]}

    arguments = ["--data-set", data_set.to_json(), "--start", corpus_cases.MONTH, "--run", "corpus"]
    told: dict[str, Any] = {"refused": None}
    with Job(arguments, endpoints=endpoints, spark=spark) as job:
        try:
            batch = job.read(corpus_cases.SCHEMA)
            for item in case.changed.items():
                put(item)
            told["written"] = write(job, batch.rows.select("k", "d"))
            told["counts"] = vars(job.commit(batch.rows, batch).counts[corpus_cases.MONTH])
            told["written after"] = write(job, batch.rows.select("k", "d"))
        except TrilakeError as e:
            told["refused"] = str(e)
        there = spark.catalog.tableExists(f"lake.{data_set.curated}")
        rows = job.table(data_set).select("k", "d").collect() if there else []
        told["curated"] = sorted(row.k for row in rows if str(row.d).startswith(corpus_cases.MONTH))
        lines = spark.table(f"lake.{data_set.quarantine}").collect() if there else []
        refused = [row for row in lines if row.partition == corpus_cases.MONTH]
        told["next month"] = [
            [row.k for row in rows if str(row.d).startswith(corpus_cases.NEXT_MONTH)],
            [row.raw for row in lines if row.partition == corpus_cases.NEXT_MONTH],
        ]
        told["reasons"] = Counter(row.reason.partition(": ")[0] for row in refused)
        told["kept"] = [[row.file.removeprefix(data_set.raw_key(corpus_cases.MONTH)), row.raw] for row in refused]
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA {data_set.name} CASCADE")
    for table in (data_set.curated, data_set.quarantine):
        spark.sql(f"DROP TABLE IF EXISTS lake.{table} PURGE")
    return told


def _hold(spark: Any, data_set: DataSet) -> None:
    """An earlier run has committed both months; its objects are gone."""
    endpoints = Endpoints.from_environment()
    store = s3.client(endpoints.s3)
    keys = {data_set.raw_key(month, "before.csv"): content for month, content in corpus_cases.BEFORE.items()}
    for key, content in keys.items():
        store.put_object(Bucket=RAW_BUCKET, Key=key, Body=content)
    arguments = ["--data-set", data_set.to_json(), "--start", corpus_cases.MONTH, "--end", corpus_cases.NEXT_MONTH]
    with Job(arguments, endpoints=endpoints, spark=spark) as job:
        batch = job.read(corpus_cases.SCHEMA)
        job.commit(batch.rows, batch)
    s3.remove(store, RAW_BUCKET, list(keys))
