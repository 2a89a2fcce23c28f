"""An agent's query in Spark SQL. Its rows become Parquet files below the agent's prefix of bucket ``exports``.

Each task writes the rows of its partition to one object, counts them, and says what it has written. Then the driver
reads each object's footer and compares. The manifest is written last: while it exists, the files are complete.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trilake import s3
from trilake.endpoints import LAKE_CONNECTION, S3_CONNECTION, EnvironmentConnection, PostgresEndpoint, S3Endpoint
from trilake.errors import CountMismatchError, RefusedError
from trilake.lake.data_set import EXPORTS_BUCKET
from trilake.spark.readonly import QueryRefusedError, open_query
from trilake.spark.session import build_session

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 10**9
_PART = "part-"
# Class 22 of SQLSTATE: the query and its data do not fit, such as a division by zero.
_DATA_ERROR = re.compile(r"\[[A-Z_.]+\] [^\n]* SQLSTATE: 22\w{3}")
_TOO_LARGE = "QueryRefusedError: The result has more than"


@dataclass(frozen=True)
class Part:
    """One file of a result.

    :param file: its name below the agent's prefix.
    """

    file: str
    rows: int
    bytes: int
    etag: str


@dataclass(frozen=True)
class Result:
    """A complete result: the content of its manifest.

    :param columns: (name, Spark's type) in the order of the files.
    """

    manifest: str
    rows: int
    bytes: int
    files: tuple[Part, ...]
    columns: tuple[tuple[str, str], ...]
    sql: str


@dataclass(frozen=True)
class _Services:
    """What an agent's job reaches: S3, and the catalog of the lake. It has no other connection."""

    s3: S3Endpoint
    lake: PostgresEndpoint


def address(agent: str, key: str) -> str:
    """The address of the manifest of an agent's query."""
    return f"s3://{EXPORTS_BUCKET}/{_below(agent, key)}manifest.json"


def write(
    frame: DataFrame, sql: str, agent: str, key: str, *, max_bytes: int = MAX_BYTES, store: S3Endpoint | None = None
) -> Result:
    """Write a query's rows to ``s3://exports/agents/<agent>/<key>/``. The files of an earlier try are removed first.

    :param max_bytes: of all files. Tasks that run at the same time may go beyond it, and then nothing is kept.
    :param store: default: S3 from the environment, as the tasks use it.
    :raises QueryRefusedError: the result is too large, two of its columns have one name, or Parquet has no such type.
    :raises CountMismatchError: an object does not hold the rows that were sent to it.
    """
    columns = _columns(frame)
    client = s3.client(store or _store())
    below = _below(agent, key)
    bucket, manifest = s3.split_uri(address(agent, key))
    # from here on no earlier result of this key is complete
    client.delete_object(Bucket=bucket, Key=manifest)
    s3.remove(client, bucket, s3.list_keys(client, bucket, below + _PART))
    with suppress(RefusedError):  # a key that may only use one prefix cannot list uploads
        s3.abort_uploads(client, bucket, below)
    counted = _run(frame, _writer(below, max_bytes), max_bytes)
    if not counted:
        counted = [_write_empty(client, frame, below)]
    parts = tuple(sorted((_checked(client, key, *told) for key, *told in counted), key=lambda part: part.file))
    if left := set(s3.list_keys(client, bucket, below + _PART)) - {_prefix(agent) + part.file for part in parts}:
        raise CountMismatchError(f"s3://{bucket}/{min(left)} is not part of the result.", hint="Run the task again.")
    size = sum(part.bytes for part in parts)
    if size > max_bytes:
        s3.remove(client, bucket, [_prefix(agent) + part.file for part in parts])
        raise _too_large(max_bytes)
    name = manifest.removeprefix(_prefix(agent))
    done = Result(name, sum(part.rows for part in parts), size, parts, columns, sql)
    client.put_object(
        Bucket=bucket, Key=manifest, Body=json.dumps(asdict(done), indent=1).encode(), ContentType="application/json"
    )
    log.warning("s3://%s/%s has %s rows in %s bytes", bucket, below, done.rows, done.bytes)
    return done


def run(spark: SparkSession, sql: str, tables: Collection[str], agent: str, key: str) -> Result:
    """Check a query and write its rows. See `open_query` and `write`."""
    return write(open_query(spark, sql, tables), sql, agent, key)


def _columns(frame: DataFrame) -> tuple[tuple[str, str], ...]:
    """:raises QueryRefusedError: these columns cannot be written."""
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import to_arrow_type

    names = [name.lower() for name in frame.columns]
    if twice := [name for name in frame.columns if names.count(name.lower()) > 1]:
        raise QueryRefusedError(f"Two columns are named {twice[0]}.", hint="Give one of them another name with AS.")
    for field in frame.schema.fields:
        try:
            to_arrow_type(field.dataType)
        except PySparkException:
            raise QueryRefusedError(
                f"Column {field.name} is {field.dataType.simpleString()}, which Parquet does not have.",
                hint="Convert it in the query, such as CAST(x AS STRING).",
            ) from None
    return tuple((field.name, field.dataType.simpleString()) for field in frame.schema.fields)


def _run(frame: DataFrame, writer: Callable[..., Any], max_bytes: int) -> list[tuple[Any, ...]]:
    """What each task has written: key, rows, bytes and ETag."""
    try:
        told = frame.mapInArrow(writer, "key string, rows long, bytes long, etag string").collect()
    except Exception as e:
        if _TOO_LARGE in str(e):
            raise _too_large(max_bytes) from None
        if match := _DATA_ERROR.search(str(e)):
            raise QueryRefusedError(f"Spark cannot run the query: {match[0][:500]}", hint="Correct it.") from None
        raise
    return [tuple(row) for row in told]


def _writer(below: str, max_bytes: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def write_part(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        from pyarrow import parquet
        from pyspark import TaskContext

        nonempty = (batch for batch in batches if batch.num_rows)
        first = next(nonempty, None)
        if first is None:
            return
        context = TaskContext.get()
        assert context is not None  # noqa: S101 - a task has one
        key, client = f"{below}{_PART}{context.partitionId():05}.parquet", s3.client(_store())
        others = client.get_paginator("list_objects_v2").paginate(Bucket=EXPORTS_BUCKET, Prefix=below + _PART)
        left = max_bytes - sum(x["Size"] for page in others for x in page.get("Contents", ()) if x["Key"] != key)
        rows = 0
        with s3.ObjectWriter(client, EXPORTS_BUCKET, key, abort_others=False) as target:
            with parquet.ParquetWriter(target, first.schema, compression="zstd") as file:
                batch: pa.RecordBatch | None = first
                while batch is not None:
                    rows += batch.num_rows
                    file.write_batch(batch)
                    if target.size > left:
                        raise _too_large(max_bytes)
                    batch = next(nonempty, None)
            etag = target.commit()
        yield pa.RecordBatch.from_pydict({"key": [key], "rows": [rows], "bytes": [target.size], "etag": [etag]})

    return write_part


def _write_empty(client: Any, frame: DataFrame, below: str) -> tuple[Any, ...]:
    """A file without rows, so that a reader gets the columns of an empty result."""
    from pyarrow import parquet
    from pyspark.sql.pandas.types import to_arrow_schema

    key = f"{below}{_PART}00000.parquet"
    with s3.ObjectWriter(client, EXPORTS_BUCKET, key, abort_others=False) as target:
        parquet.ParquetWriter(target, to_arrow_schema(frame.schema), compression="zstd").close()
        return key, 0, target.size, target.commit()


def _checked(client: Any, key: str, rows: int, size: int, etag: str) -> Part:
    """:raises CountMismatchError: the object does not hold the rows that were sent to it."""
    from pyarrow import parquet

    stored = parquet.ParquetFile(s3.ObjectReader(client, EXPORTS_BUCKET, key, size, etag)).metadata.num_rows
    if stored != rows:
        raise CountMismatchError(
            f"{rows} rows were sent to s3://{EXPORTS_BUCKET}/{key}, and it holds {stored}.", hint="Run the task again."
        )
    return Part(key.split("/", 2)[2], rows, size, etag)


def _too_large(max_bytes: int) -> QueryRefusedError:
    return QueryRefusedError(
        f"The result has more than {max_bytes} bytes.",
        hint="Read fewer rows or columns, or write parts with several keys.",
    )


def _prefix(agent: str) -> str:
    return f"agents/{agent}/"


def _below(agent: str, key: str) -> str:
    return f"{_prefix(agent)}{key}/"


def _store() -> S3Endpoint:
    return S3Endpoint.from_connection(EnvironmentConnection.read(S3_CONNECTION))


def main(arguments: Sequence[str]) -> Result:
    """The job. Its result is the manifest."""
    parser = argparse.ArgumentParser(description="A query of an agent", allow_abbrev=False)
    parser.add_argument("--sql", required=True, type=json.loads, help="the query, as a JSON string")
    parser.add_argument("--agent", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--tables", required=True, type=json.loads, help="the data sets that may be read: a JSON list")
    parser.add_argument("--run", default="")
    parser.add_argument("--result", default="", help="where the manifest is")
    options = parser.parse_args(list(arguments))
    services = _Services(_store(), PostgresEndpoint.from_connection(EnvironmentConnection.read(LAKE_CONNECTION)))
    spark = build_session(services, f"query of {options.agent}")
    spark.sparkContext.setLogLevel("WARN")
    try:
        return run(spark, options.sql, options.tables, options.agent, options.key)
    finally:
        spark.stop()
