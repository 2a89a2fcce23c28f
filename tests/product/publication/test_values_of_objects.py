"""Values of every type in plain objects: the table holds what the objects say, byte for byte. On the real engines."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from support.any_values import BYTES, NAN, SCALARS, Kind, columns_of, float_of, nullable, python, rows_sql
from support.publication_table import forget
from trilake import s3
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.export import Source, export
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.lake.data_set import WHOLE
from trilake.lake.objects import plan_objects
from trilake.lake.plan import DataFile
from trilake.postgres.connection import connect

SEEDS = int(os.environ.get("TRILAKE_SEEDS", "3"))
seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, SEEDS + 1))]
)
ROWS = 5
# Nanoseconds of 1900 and of 11 April 2262.
FIRST, LAST = -2_208_988_800 * 10**9, 9_223_286_400 * 10**9


class Loads:
    """A table, and another one with the same columns that SQL fills."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster) -> None:
        self.endpoints, self.cluster = endpoints, cluster
        self.data_set = DataSet(f"o_{secrets.token_hex(4)}")
        self.s3 = s3.client(endpoints.s3)
        self.expected = f"{self.data_set.name}_expected"

    def make(self, kinds: Sequence[Kind], rows: Sequence[Sequence[Any]]) -> None:
        columns = "".join(f", c{i} {kind.name}" for i, kind in enumerate(kinds))
        for name in (self.data_set.local_table, self.expected):
            sql = f"CREATE TABLE {{shard}}.{name} (n UInt32{columns}) ENGINE = MergeTree ORDER BY n"
            self.cluster.every_shard(Statement(sql))
        client = self.cluster.client(self.cluster.shards[0])
        for n, row in enumerate(rows):
            sql = rows_sql(kinds, [row]).replace("toUInt32(0) AS n", f"toUInt32({n}) AS n")
            target = f"{self.cluster.shards[0].database}.{self.expected}"
            client.command(f"INSERT INTO {target} {sql}", settings={"max_query_size": 10**8})

    def load(self, name: str, content: bytes, rows: int) -> None:
        key = f"{self.data_set.name}/{name}"
        self.s3.put_object(Bucket="raw", Key=key, Body=content)
        objects = {WHOLE: (DataFile(key, rows, 0, None),)}
        plan = plan_objects(self.s3, self.data_set, "raw", objects, version=1)
        Publisher(self.cluster, Ledger(self.endpoints.lake)).publish(plan, run_id="values", force=True)

    def content(self, table: str, listed: str = "*") -> bytes:
        client = self.cluster.client(self.cluster.shards[0])
        database = self.cluster.shards[0].database
        return client.raw_query(f"SELECT {listed} FROM {database}.{table} ORDER BY n", fmt="RowBinary")

    def check(self, kinds: Sequence[Kind], rows: Sequence[Sequence[Any]]) -> None:
        if self.content(self.data_set.local_table) == self.content(self.expected):
            return
        for i, kind in enumerate(kinds):
            found, expected = (self.content(name, f"c{i}") for name in (self.data_set.local_table, self.expected))
            assert found == expected, (kind.name, [row[i] for row in rows])

    def drop(self) -> None:
        for name in (self.data_set.local_table, self.expected):
            self.cluster.every_shard(Statement(f"DROP TABLE IF EXISTS {{shard}}.{name} SYNC"))
        with connect(self.endpoints.lake) as connection:
            forget(connection, self.data_set)


@pytest.fixture
def loads(endpoints: Endpoints) -> Iterator[Loads]:
    with Cluster(endpoints.clickhouse) as cluster:
        made = Loads(endpoints, cluster)
        yield made
        made.drop()


def field(kind: Kind, value: Any) -> bytes:
    """A value as a field of CSV, in a form of `csv-clickhouse`."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return b'"' + value.replace(b'"', b'""') + b'"'
    if kind.family in ("Float32", "Float64"):
        text = NAN if value == NAN else repr(float_of(value, int(kind.family[-2:])))
    elif kind.family == "Decimal":
        text = f"{value:f}"
    elif kind.family == "DateTime64":
        seconds, rest = divmod(value, 10**kind.digits)
        second = python(Kind("", "DateTime", kind.draw, kind.sql), seconds).strftime("%Y-%m-%dT%H:%M:%S")
        text = f"{second}.{rest:0{kind.digits}}Z" if kind.digits else f"{second}Z"
    elif kind.family in ("DateTime", "Date", "Date32"):
        text = python(kind, value).isoformat()
    elif kind.family in ("Time", "Time64"):
        text = kind.sql(value).strip("'")
    else:
        text = str(python(kind, value))
    return b'"' + text.replace('"', '""').encode() + b'"'


@seeds
def test_csv_is_loaded_as_it_says(loads: Loads, seed: int) -> None:
    chance = Random(seed)
    kinds = [nullable(kind) if chance.random() < 0.5 else kind for kind in (*SCALARS, BYTES)]
    rows = [[kind.value(chance) for kind in kinds] for _ in range(ROWS)]
    # nine digits of a second are read from 1900 on
    nine = next(i for i, kind in enumerate(kinds) if kind.family == "DateTime64" and kind.digits == 9)
    for row in rows:
        row[nine] = None if row[nine] is None else max(FIRST, min(row[nine], LAST))
    # this text is NULL in a column of texts that cannot be NULL, and so it is refused there
    rows = [
        [b"N" if value == b"\\N" and not kinds[i].nullable else value for i, value in enumerate(row)] for row in rows
    ]
    loads.make(kinds, rows)
    lines = [b",".join([b"n", *(b"c%d" % i for i in range(len(kinds)))])]
    lines += [b",".join([b"%d" % n, *map(field, kinds, row)]) for n, row in enumerate(rows)]
    loads.load("a.csv", b"\n".join(lines) + b"\n", ROWS)
    loads.check(kinds, rows)


def test_a_text_that_csv_reads_as_null_is_refused(loads: Loads) -> None:
    loads.make([BYTES], [])
    with pytest.raises(ClickHouseError, match=r"a\.csv: column c0 has"):
        loads.load("a.csv", b'n,c0\n1,"\\N"\n', 1)


# A text for each type that is not a value of it.
NO_VALUE = {
    "Int8": "128", "UInt8": "-1", "Int16": "1.0", "UInt16": " 1", "Int32": "1e3", "UInt32": "", "Int64": str(2**63),
    "UInt64": str(2**64), "Int128": "0x10", "UInt128": str(2**128), "Int256": "abc", "UInt256": "1_000",
    "Float32": "1e39",
    "Float64": "1,5", "Decimal": "0.00001e1", "Bool": "yes", "FixedString": "ab", "Enum8": "zz", "Date": "2013-02-30",
    "Date32": "2013-1-5", "DateTime": "2013-01-05 99:00:00", "DateTime64": "2013-01-05T10:00:00.1234567891Z",
    "Time": "10:00", "Time64": "x", "UUID": "61f0", "IPv4": "1.2.3", "IPv6": "1.2.3.4.5",
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 30))])
def test_a_text_that_is_no_value_of_its_type_is_named_and_nobody_reads_a_row(loads: Loads, seed: int) -> None:
    chance = Random(seed)
    kind = chance.choice([kind for kind in SCALARS if kind.family in NO_VALUE]) if seed else SCALARS[0]
    kind, bad = nullable(kind) if chance.random() < 0.5 else kind, NO_VALUE[kind.family].encode()
    loads.make([kind], [])
    good = [field(kind, kind.draw(chance)) for _ in range(2)]
    lines = [b"n,c0", b"0," + good[0], b'1,"' + bad + b'"', b"2," + good[1]]
    if kind.family == "DateTime64" and kind.digits == 9:
        lines = [b"n,c0", b'1,"' + bad + b'"']
    with pytest.raises(ClickHouseError) as caught:
        loads.load("a.csv", b"\n".join(lines) + b"\n", len(lines) - 1)
    assert f"{loads.data_set.name}/a.csv: column c0 has the value {bad.decode()!r}, which {kind.name}" in str(
        caught.value
    )
    assert "Nothing was published. Correct the file" in str(caught.value)
    assert loads.content(loads.data_set.local_table) == b""


# Types that Parquet has as they are, also inside of others.
OF_PARQUET = [
    kind
    for kind in SCALARS
    if kind.family in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64",
                       "Bool", "String", "FixedString", "UUID", "Date32", "Decimal")
    or kind.name in ("DateTime64(6, 'UTC')", "DateTime64(9, 'UTC')")
]  # fmt: skip
# And those that are converted.
CONVERTED = [
    kind for kind in SCALARS if kind.family in ("Enum8", "Date", "DateTime") or kind.name.startswith("DateTime64")
]


@seeds
def test_parquet_is_loaded_as_it_says(loads: Loads, seed: int) -> None:
    chance = Random(seed)
    kinds = columns_of(chance, OF_PARQUET, 20)
    kinds += [nullable(kind) if chance.random() < 0.5 else kind for kind in CONVERTED]
    rows = [[kind.value(chance) for kind in kinds] for _ in range(ROWS)]
    loads.make(kinds, rows)
    source = Source(f"SELECT * FROM {{shard}}.{loads.expected} ORDER BY n")
    done = export(loads.cluster, loads.s3, f"values/{loads.data_set.name}", {"all": source})
    content = loads.s3.get_object(Bucket="exports", Key=done.objects[0].key)["Body"].read()
    assert pq.read_metadata(io.BytesIO(content)).num_rows == ROWS
    loads.load("a.parquet", content, ROWS)
    loads.check(kinds, rows)
