"""Export: all shards write their rows to S3 in parallel. A manifest, which is written last, lists the objects.

Each attempt writes below its own prefix. So the files of a retry never mix with those of a process that was wrongly
declared dead. The manifest is below the same prefix and never changes: its key identifies a complete export.

The next attempt for the same task removes what earlier attempts left: a killed process's objects, statements that still
run for it, and uploads that were never completed. Attempts without a manifest are removed when the next one begins, the
others when it has written its own manifest. An attempt removes only attempts that existed when it began, so a late
process removes nothing of its successor.

The rows of a shard are from one moment. Two shards, or two partitions, may be read at slightly different times.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.sql import has_result, parameter_names, split_statements
from trilake.endpoints import ClickHouseShard
from trilake.errors import ConfigurationError, CountMismatchError, TrilakeError
from trilake.lake.data_set import EXPORTS_BUCKET, WHOLE, DataSet
from trilake.s3 import abort_uploads, etag_of, list_keys, list_uploads, remove

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# ClickHouse's named collection with the bucket's address and access key. Statements contain neither.
EXPORTS_COLLECTION = EXPORTS_BUCKET
MANIFEST = "manifest.json"
SHARD = "{shard}"

# Write Parquet's logical types, whatever the server's profile says, and never overwrite an existing file.
_WRITE = {
    "output_format_parquet_string_as_string": 1,
    "output_format_parquet_datetime_as_uint32": 0,
    "output_format_parquet_date_as_uint16": 0,
    "s3_truncate_on_insert": 0,
    "s3_create_new_file_on_insert": 0,
}

# Types that ClickHouse does not write as Parquet. Those of geometry it writes as bytes (WKB) and calls them text.
_NO_PARQUET = re.compile(
    r"\b(AggregateFunction|BFloat16|Dynamic|Interval[A-Z]\w+|Nothing|QBit|Time|Time64|Variant|Geometry|Point|Ring|Polygon|"
    r"LineString|MultiPoint|MultiLineString|MultiPolygon)(?=[(,)]|$)"
)
# Names of an Enum or a tuple's elements may look like types.
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|\b\w+(?= [A-Z])")


class ExportError(CountMismatchError):
    """The objects do not hold the rows that the shards wrote. There is no manifest."""


@dataclass(frozen=True)
class Source:
    """The rows of one partition of an export: the same SELECT on each shard.

    :param sql: one statement. `{shard}` in it is replaced by the shard's database, quoted.
    :param parameters: values for ``{name:Type}``, bound on the server. Names that the statement does not use are
        ignored.
    :param every_shard: False if each shard holds all rows. Then only the first shard writes them.
    """

    sql: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    every_shard: bool = True

    def __post_init__(self) -> None:
        statements = split_statements(self.sql)
        if len(statements) != 1 or not has_result(statements[0]):
            raise ConfigurationError("An export needs one statement that returns rows.", hint="Write one SELECT.")
        if self.every_shard and SHARD not in self.sql:
            raise ConfigurationError(
                "The query of an export does not contain {shard}, so every shard would write the same rows.",
                hint="Read the local tables: SELECT ... FROM {shard}.<table>_local.",
            )

    def on(self, shard: ClickHouseShard) -> str:
        return split_statements(self.sql)[0].replace(SHARD, quote_name(shard.database))

    @property
    def bound(self) -> dict[str, Any]:
        used = parameter_names(self.sql)
        return {name: value for name, value in self.parameters.items() if name in used}


def table_sources(
    data_set: DataSet,
    partitions: Sequence[str] | None = None,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Source]:
    """Sources of a data set's table in ClickHouse: one for each of `partitions`, or ``all`` for the whole table.

    :param columns: names of the columns. Empty: all columns.
    :param where: a condition on the rows, with parameters ``{name:Type}``.
    """
    listed = ", ".join(map(quote_name, columns)) or "*"
    sources = {}
    for partition in [WHOLE] if partitions is None else partitions:
        conditions = [f"(\n{where}\n)"] if where else []
        if partitions is not None:
            conditions.append(f"_partition_id = {quote_text(data_set.partition_id(partition))}")
        sql = f"SELECT {listed} FROM {SHARD}.{quote_name(data_set.local_table)}"
        sql += f" WHERE {' AND '.join(conditions)}" if conditions else ""
        # every shard has a full copy of a dimension table
        sources[partition] = Source(sql, parameters or {}, every_shard=data_set.grain is not None)
    return sources


@dataclass(frozen=True)
class ExportedObject:
    """One Parquet file. `bytes` is the object's size."""

    key: str
    partition: str
    shard: int
    rows: int
    bytes: int
    etag: str


@dataclass(frozen=True)
class Export:
    """A complete export: the content of its manifest.

    :param columns: (name, ClickHouse's type) in the order of the files.
    :param objects: one for each partition and shard, also if it has no rows.
    """

    prefix: str
    attempt: str
    run_id: str
    columns: tuple[tuple[str, str], ...]
    objects: tuple[ExportedObject, ...]

    @property
    def manifest(self) -> str:
        """The manifest's key."""
        return f"{self.prefix}/{self.attempt}/{MANIFEST}"

    @property
    def rows(self) -> int:
        return sum(item.rows for item in self.objects)

    @property
    def by_partition(self) -> dict[str, dict[str, int]]:
        """Partition -> key -> rows: the form that a load of plain objects takes."""
        rows: dict[str, dict[str, int]] = {}
        for item in self.objects:
            rows.setdefault(item.partition, {})[item.key] = item.rows
        return rows

    def to_json(self) -> str:
        return json.dumps({"bucket": EXPORTS_BUCKET, "format": "Parquet", "rows": self.rows, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Export:
        document = json.loads(text)
        return cls(
            document["prefix"],
            document["attempt"],
            document["run_id"],
            tuple((name, kind) for name, kind in document["columns"]),
            tuple(ExportedObject(**item) for item in document["objects"]),
        )


def read_manifest(client: S3Client, key: str) -> Export:
    """The export whose manifest has this key in bucket ``exports``."""
    return Export.from_json(client.get_object(Bucket=EXPORTS_BUCKET, Key=key)["Body"].read())


def new_attempt() -> str:
    return secrets.token_hex(6)


def export(
    cluster: Cluster,
    client: S3Client,
    prefix: str,
    sources: Mapping[str, Source],
    *,
    run_id: str = "",
    attempt: str | None = None,
) -> Export:
    """Write the rows of `sources` (by partition) below ``s3://exports/<prefix>/<attempt>/``: one Parquet file for each
    partition and shard, and then the manifest. No row passes through this process.

    :param prefix: belongs to one task of one run. Objects of earlier attempts below it are removed, and their
        statements are killed.
    :param attempt: from `new_attempt`, if the caller needs it for `cancel`.
    :raises ExportError: the objects do not hold the rows that the shards wrote.
    :raises ClusterError: names the shards that failed. There is no manifest, and the attempt's objects are removed.
    """
    attempt = attempt or new_attempt()
    cancel(cluster, prefix)
    earlier, complete = attempts_below(client, prefix)
    remove_attempts(client, prefix, earlier - complete)
    try:
        columns = columns_of(cluster, next(iter(sources.values()))) if sources else ()
        _check_types(columns)
        cells = [
            (shard, partition, source, f"{prefix}/{attempt}/{partition}/shard_{shard.number}.parquet")
            for partition, source in sources.items()
            for shard in (cluster.shards if source.every_shard else cluster.shards[:1])
        ]
        counts = cluster.on_shards([(shard, partial(_write, source, key)) for shard, _, source, key in cells])
        objects = []
        for (shard, partition, _, key), (rows, stored) in zip(cells, counts, strict=True):
            if rows != stored:
                raise ExportError(
                    f"{shard} wrote {rows} rows to s3://{EXPORTS_BUCKET}/{key}, but the object holds {stored}.",
                    hint="Run the task again.",
                )
            objects.append(ExportedObject(key, partition, shard.number, rows, *_size_and_etag(client, key)))
        done = Export(prefix, attempt, run_id, columns, tuple(objects))
        client.put_object(
            Bucket=EXPORTS_BUCKET, Key=done.manifest, Body=done.to_json().encode(), ContentType="application/json"
        )
    except BaseException:
        with _left_to_the_next(prefix):
            cancel(cluster, f"{prefix}/{attempt}")
            remove_attempts(client, prefix, {attempt})
        raise
    with _left_to_the_next(prefix):
        remove_attempts(client, prefix, earlier)
    return done


def _check_types(columns: Sequence[tuple[str, str]]) -> None:
    """:raises ConfigurationError: ClickHouse cannot write a column as Parquet, or readers would not understand it."""
    problems = [f"column {name} is {kind}" for name, kind in columns if not can_be_exported(kind)]
    if problems:
        raise ConfigurationError(
            f"The export cannot be written as Parquet: {'; '.join(problems)}. Nothing was written.",
            hint="Convert the column in the query: toString(column), finalizeAggregation(column), or CAST(column, "
            "'Tuple(Float64, Float64)') for a point.",
        )


def can_be_exported(kind: str) -> bool:
    """Whether the values of a type of ClickHouse arrive in Parquet. Those of `_NO_PARQUET` do not, also inside."""
    plain = _QUOTED.sub("", kind.replace("SimpleAggregateFunction(", "("))
    return _NO_PARQUET.search(plain) is None


def cancel(cluster: Cluster, prefix: str) -> None:
    """Kill the statements that write below a prefix, on every host, and wait until they have ended.

    They are selected by kind too, because the KILL statement also contains the prefix.
    """
    mine = f"query_kind = 'Insert' AND position(query, {quote_text(f'{prefix}/')}) > 0"
    cluster.every_host(Statement(f"KILL QUERY WHERE {mine} SYNC"))


def _write(source: Source, key: str, client: Client, shard: ClickHouseShard) -> tuple[int, int]:
    """The number of rows that the server reports as written, and the number of rows in the object."""
    target = f"s3({EXPORTS_COLLECTION}, filename = {quote_text(key)}, format = 'Parquet')"
    answer: Any = client.command(
        f"INSERT INTO FUNCTION {target} {source.on(shard)}", parameters=source.bound, settings=_WRITE
    )
    stored = client.query(f"SELECT count() FROM {target}").result_rows[0][0]
    return int(answer.summary["written_rows"]), int(stored)


def _size_and_etag(client: S3Client, key: str) -> tuple[int, str]:
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=EXPORTS_BUCKET, Key=key)
    except ClientError as e:
        if e.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        raise ExportError(
            f"s3://{EXPORTS_BUCKET}/{key} was removed after this attempt wrote it.",
            hint="A later attempt of this task has begun. See the log of that attempt.",
        ) from None
    return head["ContentLength"], etag_of(EXPORTS_BUCKET, key, head)


def columns_of(cluster: Cluster, source: Source) -> tuple[tuple[str, str], ...]:
    """(name, ClickHouse's type) of each column of a source.

    :raises ClickHouseError: the columns differ between the shards.
    """

    def describe(client: Client, shard: ClickHouseShard) -> tuple[tuple[str, str], ...]:
        rows = client.query(f"DESCRIBE TABLE ({source.on(shard)}\n)", parameters=source.bound).result_rows
        return tuple((row[0], row[1]) for row in rows)

    by_shard = cluster.every_shard(describe)
    first = by_shard[cluster.shards[0].number]
    if any(columns != first for columns in by_shard.values()):
        raise ClickHouseError(
            "The columns of an export differ between the shards.", hint="Apply the migrations: `trilake migrate`."
        )
    return first


def attempts_below(client: S3Client, prefix: str) -> tuple[set[str], set[str]]:
    """The attempts with objects or unfinished uploads below a prefix, and those of them with a manifest."""
    below = f"{prefix}/"
    keys = list_keys(client, EXPORTS_BUCKET, below) + [key for key, _ in list_uploads(client, EXPORTS_BUCKET, below)]
    parts = [key.removeprefix(below).split("/") for key in keys]
    return {part[0] for part in parts}, {part[0] for part in parts if part[1:] == [MANIFEST]}


def remove_attempts(client: S3Client, prefix: str, attempts: Iterable[str]) -> None:
    """Remove the objects and the unfinished uploads of attempts below a prefix."""
    for attempt in attempts:
        below = f"{prefix}/{attempt}/"
        abort_uploads(client, EXPORTS_BUCKET, below)
        keys = list_keys(client, EXPORTS_BUCKET, below)
        # remove the manifest first: while a manifest exists, its files must exist
        remove(client, EXPORTS_BUCKET, [key for key in keys if key == below + MANIFEST])
        remove(client, EXPORTS_BUCKET, [key for key in keys if key != below + MANIFEST])


@contextmanager
def _left_to_the_next(prefix: str) -> Iterator[None]:
    """Log an error of a clean-up instead of raising it, so that it does not hide the attempt's own result."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (TrilakeError, BotoCoreError, ClientError) as e:
        log.warning(
            "Objects below s3://%s/%s could not be removed now; the next attempt removes them: %s",
            EXPORTS_BUCKET,
            prefix,
            e,
        )
