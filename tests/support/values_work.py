"""Columns and values through Spark, Iceberg and ClickHouse, in a driver's session: see `spark_session.py`."""

from __future__ import annotations

import datetime as dt
import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake import DataSet
from trilake.postgres.connection import connect
from trilake.schema.clickhouse_steps import local_ddl
from trilake.schema.steps import Step
from trilake.spark.job import Job

JANUARY, FEBRUARY = "2013-01", "2013-02"


class Both:
    """A data set with a table in the lake and in ClickHouse."""

    def __init__(self, spark: Any, columns: str) -> None:
        self.spark = spark
        self.endpoints = Endpoints.from_environment()
        self.data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k", max_refused=1.0)
        self.ddl(f"CREATE TABLE {self.data_set.name} (k Int32, d Date, {columns}) "
                 "ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k")  # fmt: skip

    def ddl(self, sql: str) -> None:
        step = Step(f"clickhouse/{self.data_set.name}/table.sql", self.data_set.name, "clickhouse", sql)
        with Cluster(self.endpoints.clickhouse) as cluster:
            for shard in cluster.shards:
                cluster.on_shard(shard, Statement(local_ddl(step, shard)))

    def job(self, month: str, *options: str) -> Job:
        self.spark.catalog.clearCache()
        arguments = ["--data-set", self.data_set.to_json(), "--start", month, "--run", "values", *options]
        return Job(arguments, endpoints=self.endpoints, spark=self.spark)

    def commit(self, month: str, frame: Any, **options: Any) -> None:
        with self.job(month) as job:
            job.commit(frame, **options)

    def commit_file(self, month: str, schema: str, forced_by: str = "") -> None:
        with self.job(month, *(["--accept-refused", forced_by] if forced_by else [])) as job:
            batch = job.read(schema)
            job.commit(batch.rows, batch)

    def publish(self, month: str) -> Any:
        """Publish a month of the current snapshot; the report."""
        from trilake.spark.publish import publish

        return publish(self.endpoints, self.data_set, (month,), run_id="values")

    def rows(self, listed: str) -> list[list[Any]]:
        """The rows of all shards, as text, sorted."""
        with Cluster(self.endpoints.clickhouse) as cluster:
            sql = f"SELECT {listed} FROM {{shard}}.{self.data_set.local_table}"
            return sorted(
                [list(row) for found in cluster.every_shard(Statement(sql)).values() for row in found], key=str
            )

    def drop(self) -> None:
        with Cluster(self.endpoints.clickhouse) as cluster:
            cluster.every_shard(Statement(f"DROP TABLE IF EXISTS {{shard}}.{self.data_set.local_table} SYNC"))
        for table in (self.data_set.curated, self.data_set.quarantine):
            self.spark.sql(f"DROP TABLE IF EXISTS lake.{table} PURGE")
        with connect(self.endpoints.lake) as connection, connection.cursor() as cursor:
            for table in ("publications", "publication_attempts"):
                cursor.execute(f"DELETE FROM {table} WHERE table_name = %s", (self.data_set.table,))


@contextmanager
def both(spark: Any, columns: str) -> Iterator[Both]:
    made = Both(spark, columns)
    try:
        yield made
    finally:
        made.drop()


def said(work: Any) -> str:
    """The error of some work; empty: it succeeded."""
    try:
        work()
    except TrilakeError as e:
        return str(e)
    return ""


# --- columns that change

EVOLUTIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "nothing": ([], []),
    "reorder": (["ALTER COLUMN b FIRST"], []),
    "widen": (["ALTER COLUMN b TYPE bigint"], ["MODIFY COLUMN b Nullable(Int64)"]),
    "add": (["ADD COLUMN c int"], ["ADD COLUMN c Nullable(Int32)"]),
    "drop": (["DROP COLUMN b"], ["DROP COLUMN b"]),
    "drop and add by one name": (["DROP COLUMN b", "ADD COLUMN b int"], []),
    "rename": (["RENAME COLUMN b TO c"], ["RENAME COLUMN b TO c"]),
    "swap": (["RENAME COLUMN a TO x", "RENAME COLUMN b TO a", "RENAME COLUMN x TO b"], []),
}


def evolve(spark: Any) -> Any:
    """A table whose columns change after January was committed: January's rows in the lake and in ClickHouse."""
    outcome = {}
    for label, (lake, clickhouse) in EVOLUTIONS.items():
        with both(spark, "a Nullable(Int32), b Nullable(Int32)") as table:
            name = f"lake.{table.data_set.curated}"
            frame = spark.sql("SELECT id AS k, DATE'2013-01-05' AS d, id * 10 AS a, -id AS b FROM range(1, 4)")
            table.commit(JANUARY, frame.selectExpr("int(k) k", "d", "int(a) a", "int(b) b"))
            for change in lake:
                spark.sql(f"ALTER TABLE {name} {change}")
            for change in clickhouse:
                table.ddl(f"ALTER TABLE {table.data_set.name} {change}")
            columns = sorted(spark.table(name).columns)
            report = table.publish(JANUARY)
            there = sorted([list(map(str, row)) for row in spark.table(name).select(*columns).collect()])
            listed = ", ".join(f"ifNull(toString({column}), 'None')" for column in columns)
            outcome[label] = [there, table.rows(listed), list(report.unverified)]
    return outcome


def refuse_evolutions(spark: Any) -> Any:
    """What a publication says of columns that it cannot fill."""
    outcome = {}
    with both(spark, "a Int32") as table:
        frame = spark.sql("SELECT int(id) AS k, DATE'2013-01-05' AS d FROM range(1, 4)")
        table.commit(JANUARY, frame)
        outcome["not in the lake"] = said(lambda: table.publish(JANUARY))
        spark.sql(f"ALTER TABLE lake.{table.data_set.curated} ADD COLUMN a int")
        outcome["added later, without NULL"] = said(lambda: table.publish(JANUARY))
        outcome["rows"] = table.rows("k")
    with both(spark, "s Tuple(x Nullable(Int32), z Nullable(Int32))") as table:
        frame = spark.sql("SELECT int(id) AS k, DATE'2013-01-05' AS d, struct(int(id) AS x) AS s FROM range(1, 4)")
        table.commit(JANUARY, frame)
        spark.sql(f"ALTER TABLE lake.{table.data_set.curated} ADD COLUMN s.z int")
        outcome["a field added inside"] = said(lambda: table.publish(JANUARY))
    return outcome


# --- commits of other types

TYPE_CHANGES: dict[str, tuple[str, str]] = {
    "int, then double": ("int(1)", "double(1.75)"),
    "int, then bigint": ("int(1)", "bigint(3000000000)"),
    "decimal, then a longer one": ("cast(1.25 AS decimal(5, 2))", "cast(1.25 AS decimal(20, 2))"),
    "left out": ("int(5)", ""),
    "a field more": ("named_struct('a', 1)", "named_struct('a', 1, 'b', 2)"),
    "elements wider": ("array(int(1))", "array(bigint(3000000000))"),
}


def change_types(spark: Any) -> Any:
    """January with one expression, then February with another: the error, the rows, the table's type."""
    outcome = {}
    for label, (first, then) in TYPE_CHANGES.items():
        with both(spark, "v Int32") as table:
            name = f"lake.{table.data_set.curated}"

            def frame(month: str, expression: str) -> Any:
                value = f", {expression} AS v" if expression else ""
                return spark.sql(f"SELECT int(1) AS k, DATE'{month}-05' AS d{value}")

            table.commit(JANUARY, frame(JANUARY, first))
            error = said(lambda table=table, then=then, frame=frame: table.commit(FEBRUARY, frame(FEBRUARY, then)))
            rows = [list(map(str, row)) for row in spark.table(name).orderBy("d").collect()]
            outcome[label] = [error, rows, spark.table(name).schema.simpleString()]
    return outcome


def replace_column(spark: Any) -> Any:
    with both(spark, "v Int32") as table:
        name = f"lake.{table.data_set.curated}"
        for month, value in ((JANUARY, "int(1)"), (FEBRUARY, "double(1.75)")):
            frame = spark.sql(f"SELECT int(1) AS k, DATE'{month}-05' AS d, {value} AS v")
            table.commit(month, frame, **({"replace_columns": ["v"]} if month == FEBRUARY else {}))
        return [[str(row.d), row.v] for row in spark.table(name).orderBy("d").collect()]


def refuse_all_lines(spark: Any) -> Any:
    """A good month, then a file of the same month in another form: the error, the rows, the reasons in quarantine."""
    from trilake import s3

    outcome: list[Any] = []
    with both(spark, "at DateTime64(6, 'UTC')") as table:
        data_set = DataSet(table.data_set.name, grain="month", date="d", shard_by="k")
        table.data_set = data_set
        store = s3.client(table.endpoints.s3)
        for text in ("2013-01-05T10:00:00Z", "05.01.2013 10:00"):
            content = "k,d,at\n" + "".join(f"{number},2013-01-05,{text}\n" for number in range(3))
            store.put_object(Bucket="raw", Key=data_set.raw_key(JANUARY, "a.csv"), Body=content.encode())
            outcome.append(said(lambda: table.commit_file(JANUARY, "k int NOT NULL, d date NOT NULL, at timestamp")))
        outcome.append(spark.table(f"lake.{data_set.curated}").count())
        outcome.append(sorted(row.reason for row in spark.table(f"lake.{data_set.quarantine}").collect()))
        outcome.append(said(lambda: table.commit_file(JANUARY, "k int NOT NULL, d date NOT NULL, at timestamp", "ann")))
        outcome.append(spark.table(f"lake.{data_set.curated}").count())
        store.delete_object(Bucket="raw", Key=data_set.raw_key(JANUARY, "a.csv"))
    return outcome


def without_key(spark: Any) -> Any:
    outcome = []
    with both(spark, "v Int32") as table:
        for key, day in (("int(NULL)", "DATE'2013-01-05'"), ("int(1)", "date(NULL)")):
            frame = spark.sql(f"SELECT {key} AS k, {day} AS d")
            outcome.append(said(lambda frame=frame: table.commit(JANUARY, frame)))
    return outcome


# --- every type

NAN, INFINITY = float("nan"), float("inf")
# Spark's type -> ClickHouse's type, values
TYPES: dict[str, tuple[str, list[Any]]] = {
    "tinyint": ("Int32", [0, 127, -128]),
    "smallint": ("Int32", [0, 2**15 - 1, -(2**15)]),
    "int": ("Int32", [0, -1, 2**31 - 1, -(2**31)]),
    "bigint": ("Int64", [0, 2**63 - 1, -(2**63), 2**53 + 1]),
    "float": ("Float32", [0.0, -0.0, NAN, INFINITY, -INFINITY, 1.401298464324817e-45, 3.4028234663852886e38]),
    "double": ("Float64", [0.0, -0.0, NAN, INFINITY, -INFINITY, 5e-324, 1.7976931348623157e308, 0.1]),
    "decimal(38,10)": ("Decimal(38, 10)", [Decimal(f"{10**27 * 9}.0123456789"), Decimal("-0.0000000001")]),
    "decimal(5,0)": ("Decimal(5, 0)", [Decimal(-99999), Decimal(0)]),
    "decimal(38,38)": ("Decimal(38, 38)", [Decimal("0." + "9" * 38), Decimal("-0." + "0" * 37 + "1"), Decimal(0)]),
    "decimal(18,4)": ("Decimal(18, 4)", [Decimal("99999999999999.9999"), Decimal("1.5000")]),
    "boolean": ("Bool", [True, False]),
    "date": ("Date32", [dt.date(1900, 1, 1), dt.date(2299, 12, 31), dt.date(1970, 1, 1), dt.date(1969, 12, 31),
                         dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.date(1582, 10, 10), dt.date(2106, 2, 8)]),
    "timestamp": ("DateTime64(6, 'UTC')", [dt.datetime(1900, 1, 1), dt.datetime(2299, 12, 31, 23, 59, 59, 999999)]),
    "timestamp_ntz": ("DateTime64(6)", [dt.datetime(2013, 3, 31, 2, 30), dt.datetime(1969, 12, 31, 23, 59, 59, 1)]),
    "string": ("String", ["", "a\0b", "ä€\U0001f980", "\r\n", "'\"\\", "x" * 100_000]),
    "binary": ("String", [b"", b"\x00\xff", bytes(range(256))]),
    "array<date>": ("Array(Nullable(Date32))", [[dt.date(1, 1, 1), None], [dt.date(2299, 12, 31)]]),
    "array<timestamp>": (
        "Array(Nullable(DateTime64(6, 'UTC')))", [[], [None, dt.datetime(1969, 12, 31, 23, 59, 59, 1)]]),
    "array<boolean>": ("Array(Nullable(Bool))", [[True, None, False]]),
    "array<decimal(18,4)>": ("Array(Nullable(Decimal(18, 4)))", [[Decimal("0.0001"), None], []]),
    "array<binary>": ("Array(Nullable(String))", [[b"\x00\xff", None], [b""]]),
    "array<struct<b:bigint,a:map<string,double>>>": (
        "Array(Tuple(a Map(String, Nullable(Float64)), b Nullable(Int64)))", [[], [(2**63 - 1, {"": NAN, "k": None})]]),
    "map<int,array<string>>": ("Map(Int32, Array(Nullable(String)))", [{}, {-(2**31): ["", None]}, {1: []}]),
    "map<date,struct<x:timestamp>>": (
        "Map(Date32, Tuple(x Nullable(DateTime64(6, 'UTC'))))", [{dt.date(1900, 1, 1): (None,)}, {}]),
    "array<int>": ("Array(Nullable(Int32))", [[], [None], [1, None, -(2**31)]]),
    "array<string>": ("Array(Nullable(String))", [[], ["", None, "1:a"]]),
    "array<array<double>>": ("Array(Array(Nullable(Float64)))", [[], [[]], [[NAN, -0.0, None], [1.5]]]),
    "map<string,int>": ("Map(String, Nullable(Int32))", [{}, {"a": None, "": 1}]),
    "struct<y:string,x:array<decimal(5,2)>>": (
        "Tuple(x Array(Nullable(Decimal(5, 2))), y Nullable(String))",
        [("a", [Decimal("1.50"), None]), (None, [])],
    ),
}  # fmt: skip
_NOT_NULLABLE = ("array", "map", "struct")


def every_type(spark: Any, seed: str, rows: str, columns: str) -> Any:
    """So many columns, every type among them, with random values, from a frame to readers of ClickHouse.

    The two audits compare the values; here only what they found, and how many rows there are.
    """
    chance, count = random.Random(int(seed)), int(rows)
    kinds = [*TYPES, *chance.choices(list(TYPES), k=int(columns) - len(TYPES))]
    typed, listed, values = [], [], []
    for number, kind in enumerate(kinds):
        clickhouse, known = TYPES[kind]
        nullable = not kind.startswith(_NOT_NULLABLE) and chance.random() < 0.7
        typed.append(f"c{number} {f'Nullable({clickhouse})' if nullable else clickhouse}")
        listed.append(f"c{number} {kind}")
        values.append([None if nullable and chance.random() < 0.1 else chance.choice(known) for _ in range(count)])
    data = [(row, dt.date(2013, 1, 1 + row % 31), *(column[row] for column in values)) for row in range(count)]
    with both(spark, ", ".join(typed)) as table:
        frame = spark.createDataFrame(data, "k int, d date, " + ", ".join(listed))
        table.commit(JANUARY, frame)
        report = table.publish(JANUARY)
        return {"rows": report.total_rows, "unverified": list(report.unverified), "columns": len(kinds)}


def nulls_that_clickhouse_lacks(spark: Any) -> Any:
    """NULL arrays, maps and structs: ClickHouse reads them as empty ones."""
    outcome = {}
    for kind in ("array<int>", "map<string,int>", "struct<y:string,x:array<decimal(5,2)>>"):
        with both(spark, f"v {TYPES[kind][0]}") as table:
            frame = spark.sql(f"SELECT int(1) AS k, DATE'2013-01-05' AS d, cast(NULL AS {kind}) AS v")
            table.commit(JANUARY, frame)
            outcome[kind] = [said(lambda table=table: table.publish(JANUARY)), table.rows("k")]
    return outcome


def nulls_without_sums(spark: Any) -> Any:
    """The same in rows that another program wrote, and inside of other values: there are no sums to compare."""
    outcome = {}
    for kind, value in (
        ("array<int>", "cast(NULL AS array<int>)"),
        ("array<array<double>>", "array(array(double(1)), NULL)"),
        ("map<string,int>", "cast(NULL AS map<string, int>)"),
        ("struct<y:string,x:array<decimal(5,2)>>", "named_struct('y', 'a', 'x', cast(NULL AS array<decimal(5, 2)>))"),
    ):
        with both(spark, f"v {TYPES[kind][0]}") as table:
            frame = "SELECT int(1) AS k, DATE'2013-01-05' AS d, {} AS v"
            good = {"array": "array()", "map": "map()", "struct": "named_struct('y', 'a', 'x', array())"}
            typed = f"cast({good[kind.partition('<')[0]]} AS {kind})"
            table.commit(JANUARY, spark.sql(frame.format(typed)))
            spark.sql(f"INSERT INTO lake.{table.data_set.curated} {frame.format(typed)}")
            reports = list(table.publish(JANUARY).unverified)
            spark.sql(f"INSERT INTO lake.{table.data_set.curated} {frame.format(f'cast({value} AS {kind})')}")
            outcome[kind] = [reports, said(lambda table=table: table.publish(JANUARY)), table.rows("k")]
    return outcome
