"""Export: every shard writes its rows to S3 side by side, and a manifest that is written last says what there is.

An attempt writes below a prefix of its own, so that what a retry, or a process that was thought dead, writes never lies
among another's files. The manifest lies there too and is never changed: whoever was given its key has a complete
export. What earlier attempts have left (a killed process's objects, statements that still run for it, uploads that were
begun) goes with the next attempt under the same prefix: what has no manifest when it begins, the rest when its own
manifest is there. Earlier is what was there when it began: one that was overtaken removes nothing of its successor's.

A shard's rows are those of one moment; two shards, or two partitions, may have been read a little apart.
"""

from __future__ import annotations

import json
import logging
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

# The named collection of ClickHouse that knows the bucket's address and key; statements never carry either.
EXPORTS_COLLECTION = EXPORTS_BUCKET
MANIFEST = "manifest.json"
SHARD = "{shard}"

# Logical types as Parquet has them, whatever a server's profile says; and no file that is there is written over.
_WRITE = {
    "output_format_parquet_string_as_string": 1,
    "output_format_parquet_datetime_as_uint32": 0,
    "output_format_parquet_date_as_uint16": 0,
    "s3_truncate_on_insert": 0,
    "s3_create_new_file_on_insert": 0,
}


class ExportError(CountMismatchError):
    """The objects do not hold what the shards wrote. There is no manifest."""


@dataclass(frozen=True)
class Source:
    """The rows of one file set: the same SELECT on each shard.

    :param sql: one statement; `{shard}` in it is the shard's database, quoted.
    :param parameters: bound on the server, as ``{name:Type}``; those that the statement does not have are left out.
    :param every_shard: False where each shard holds all the rows: then the first one writes them.
    """

    sql: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    every_shard: bool = True

    def __post_init__(self) -> None:
        statements = split_statements(self.sql)
        if len(statements) != 1 or not has_result(statements[0]):
            raise ConfigurationError("An export takes one statement that gives rows.", hint="Write it as a SELECT.")
        if self.every_shard and SHARD not in self.sql:
            raise ConfigurationError(
                "The query of an export does not say {shard}: every shard would write the same rows.",
                hint="Read the local tables: SELECT ... FROM {shard}.<table>_local.",
            )

    def on(self, shard: ClickHouseShard) -> str:
        return split_statements(self.sql)[0].replace(SHARD, quote_name(shard.database))

    @property
    def bound(self) -> dict[str, Any]:
        known = parameter_names(self.sql)
        return {name: value for name, value in self.parameters.items() if name in known}


def table_sources(
    data_set: DataSet,
    partitions: Sequence[str] | None = None,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Source]:
    """A data set's table in ClickHouse: a source for each of `partitions`, or one, ``all``, for the whole table.

    :param columns: their names; none: all.
    :param where: a condition on its rows, with parameters ``{name:Type}``.
    """
    listed = ", ".join(map(quote_name, columns)) or "*"
    sources = {}
    for partition in [WHOLE] if partitions is None else partitions:
        conditions = [f"(\n{where}\n)"] if where else []
        if partitions is not None:
            conditions.append(f"_partition_id = {quote_text(data_set.partition_id(partition))}")
        sql = f"SELECT {listed} FROM {SHARD}.{quote_name(data_set.local_table)}"
        sql += f" WHERE {' AND '.join(conditions)}" if conditions else ""
        # a dimension table stands whole on every shard
        sources[partition] = Source(sql, parameters or {}, every_shard=data_set.grain is not None)
    return sources


@dataclass(frozen=True)
class ExportedObject:
    """One Parquet file. `bytes` are the object's."""

    key: str
    partition: str
    shard: int
    rows: int
    bytes: int
    etag: str


@dataclass(frozen=True)
class Export:
    """A complete export: what its manifest says.

    :param columns: (name, ClickHouse's type) in the files' order.
    :param objects: one a partition and shard, also where it has no row.
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
        """Partition -> key -> rows: what loading them again takes."""
        found: dict[str, dict[str, int]] = {}
        for item in self.objects:
            found.setdefault(item.partition, {})[item.key] = item.rows
        return found

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
    """The export whose manifest has this key below bucket ``exports``."""
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
    """Write the rows of `sources` (by partition) below ``s3://exports/<prefix>/<attempt>/``, a Parquet file a partition
    and shard, and then the manifest. No row passes through this process.

    :param prefix: belongs to one task of one run: what earlier attempts have left below it is removed, and their
        statements are ended.
    :param attempt: from `new_attempt`, where the caller has to know it for `cancel`.
    :raises ExportError: the objects do not hold what the shards wrote.
    :raises ClusterError: of the shards that failed. There is no manifest, and the attempt's objects are removed.
    """
    attempt = attempt or new_attempt()
    cancel(cluster, prefix)
    earlier, complete = attempts_below(client, prefix)
    remove_attempts(client, prefix, earlier - complete)
    try:
        columns = columns_of(cluster, next(iter(sources.values()))) if sources else ()
        cells = [
            (shard, partition, source, f"{prefix}/{attempt}/{partition}/shard_{shard.number}.parquet")
            for partition, source in sources.items()
            for shard in (cluster.shards if source.every_shard else cluster.shards[:1])
        ]
        counts = cluster.on_shards([(shard, partial(_write, source, key)) for shard, _, source, key in cells])
        objects = []
        for (shard, partition, _, key), (rows, found) in zip(cells, counts, strict=True):
            if rows != found:
                raise ExportError(f"{shard} wrote {rows} rows to s3://{EXPORTS_BUCKET}/{key}, which holds {found}.")
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


def cancel(cluster: Cluster, prefix: str) -> None:
    """End the statements that write below a prefix, on every host, and see them gone.

    By text and kind: the statement that ends them names the prefix, too.
    """
    mine = f"query_kind = 'Insert' AND position(query, {quote_text(f'{prefix}/')}) > 0"
    cluster.every_host(Statement(f"KILL QUERY WHERE {mine} SYNC"))


def _write(source: Source, key: str, client: Client, shard: ClickHouseShard) -> tuple[int, int]:
    """Rows that the server says it wrote, and those that the object holds."""
    target = f"s3({EXPORTS_COLLECTION}, filename = {quote_text(key)}, format = 'Parquet')"
    answer: Any = client.command(
        f"INSERT INTO FUNCTION {target} {source.on(shard)}", parameters=source.bound, settings=_WRITE
    )
    found = client.query(f"SELECT count() FROM {target}").result_rows[0][0]
    return int(answer.summary["written_rows"]), int(found)


def _size_and_etag(client: S3Client, key: str) -> tuple[int, str]:
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=EXPORTS_BUCKET, Key=key)
    except ClientError as e:
        if e.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        raise ExportError(
            f"s3://{EXPORTS_BUCKET}/{key} was written and is gone.", hint="A later attempt has begun: see the task's."
        ) from None
    return head["ContentLength"], etag_of(EXPORTS_BUCKET, key, head)


def columns_of(cluster: Cluster, source: Source) -> tuple[tuple[str, str], ...]:
    """(name, ClickHouse's type) of what a source gives, the same on every shard."""

    def describe(client: Client, shard: ClickHouseShard) -> tuple[tuple[str, str], ...]:
        rows = client.query(f"DESCRIBE TABLE ({source.on(shard)}\n)", parameters=source.bound).result_rows
        return tuple((row[0], row[1]) for row in rows)

    found = cluster.every_shard(describe)
    first = found[cluster.shards[0].number]
    if any(columns != first for columns in found.values()):
        raise ClickHouseError(
            "The columns of an export differ between the shards.", hint="Apply the migrations: `trilake migrate`."
        )
    return first


def attempts_below(client: S3Client, prefix: str) -> tuple[set[str], set[str]]:
    """The attempts that have left something, and those of them with a manifest."""
    below = f"{prefix}/"
    keys = list_keys(client, EXPORTS_BUCKET, below) + [key for key, _ in list_uploads(client, EXPORTS_BUCKET, below)]
    parts = [key.removeprefix(below).split("/") for key in keys]
    return {part[0] for part in parts}, {part[0] for part in parts if part[1:] == [MANIFEST]}


def remove_attempts(client: S3Client, prefix: str, attempts: Iterable[str]) -> None:
    """Remove what attempts have left below a prefix: objects, and uploads that were begun."""
    for attempt in attempts:
        below = f"{prefix}/{attempt}/"
        abort_uploads(client, EXPORTS_BUCKET, below)
        keys = list_keys(client, EXPORTS_BUCKET, below)
        # a manifest goes first: as long as it is there its files are
        remove(client, EXPORTS_BUCKET, [key for key in keys if key == below + MANIFEST])
        remove(client, EXPORTS_BUCKET, [key for key in keys if key != below + MANIFEST])


@contextmanager
def _left_to_the_next(prefix: str) -> Iterator[None]:
    """What cannot be cleaned up now is no reason to fail, and hides none."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (TrilakeError, BotoCoreError, ClientError) as e:
        log.warning("What lies below s3://%s/%s is left to the next attempt: %s", EXPORTS_BUCKET, prefix, e)
