"""The whole result of a query, as a Parquet file below the agent's prefix of bucket ``exports``.

The query runs as the agents' user with ``readonly=1``, and its rows come through this process. So an agent cannot make
ClickHouse write anything, and the writer's rights are not used. Rows are counted as they come, and again in the object.
The manifest is written last: while it exists, the file is complete.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trilake import s3
from trilake.agents.files import own_key
from trilake.agents.questions import refusal_of, request_of
from trilake.agents.refusals import CallError
from trilake.agents.statement import Statement
from trilake.clickhouse.export import MANIFEST, can_be_exported
from trilake.endpoints import ClickHouseEndpoint, S3Endpoint
from trilake.errors import CountMismatchError, UnreachableError
from trilake.lake.data_set import EXPORTS_BUCKET

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 10**9
MAX_SECONDS = 3_600
_FILE = "rows.parquet"
# Rows of a row group. Several blocks of ClickHouse are put together, so that the file is read fast.
_GROUP_ROWS = 1 << 17
QUESTION_SECONDS = 30


@dataclass(frozen=True)
class AgentExport:
    """A complete export: the content of its manifest.

    :param file: its name for the tool `file_url`; `manifest`: the name of the manifest.
    :param columns: (name, ClickHouse's type) in the order of the file.
    """

    file: str
    manifest: str
    rows: int
    bytes: int
    etag: str
    columns: tuple[tuple[str, str], ...]
    sql: str


def export(
    clickhouse: ClickHouseEndpoint,
    store: S3Endpoint,
    statement: Statement,
    agent: str,
    key: str,
    *,
    max_bytes: int = MAX_BYTES,
) -> AgentExport:
    """Run a checked SELECT and write its rows to ``s3://exports/agents/<agent>/<key>/``. A second call replaces the
    files of the first one.

    :param clickhouse: with the agents' user; `store`: with the agents' identity.
    :param max_bytes: the largest file.
    :raises CallError: ClickHouse refused the query, a column cannot be written as Parquet, or the file is too large.
        There is no manifest.
    :raises CountMismatchError: the object does not hold the rows that came.
    """
    columns = _columns(clickhouse, statement, agent)
    if wrong := [f"{name} is {kind}" for name, kind in columns if not can_be_exported(kind)]:
        raise CallError("bad_type", f"Column {wrong[0]}, which Parquet does not have.",
                        hint="Convert it in the query, such as toString(column).")  # fmt: skip
    client = s3.client(store)
    file, manifest = f"{key}/{_FILE}", f"{key}/{MANIFEST}"
    # from here on no earlier export of this key is complete
    client.delete_object(Bucket=EXPORTS_BUCKET, Key=own_key(agent, manifest))
    with s3.ObjectWriter(client, EXPORTS_BUCKET, own_key(agent, file), abort_others=False) as target:
        rows = _write(_batches(clickhouse, statement, agent), target, max_bytes)
        etag = target.commit()
        size = target.size
    stored = _rows_of(s3.ObjectReader(client, EXPORTS_BUCKET, own_key(agent, file), size, etag))
    if stored != rows:
        raise CountMismatchError(
            f"{rows} rows came from ClickHouse, and s3://{EXPORTS_BUCKET}/{own_key(agent, file)} holds {stored}.",
            hint="Run the task again.",
        )
    done = AgentExport(file, manifest, rows, size, etag, columns, statement.sql)
    client.put_object(
        Bucket=EXPORTS_BUCKET,
        Key=own_key(agent, manifest),
        Body=json.dumps(asdict(done), indent=1).encode(),
        ContentType="application/json",
    )
    log.info("s3://%s/%s has %s rows in %s bytes", EXPORTS_BUCKET, own_key(agent, file), rows, size)
    return done


def _columns(clickhouse: ClickHouseEndpoint, statement: Statement, agent: str) -> tuple[tuple[str, str], ...]:
    """Name and ClickHouse's type of each column of the query's answer."""
    sql = f"DESCRIBE TABLE (\n{statement.sql}\n)"  # the last line may be a comment
    with _answer(clickhouse, sql, agent, "JSONCompact", QUESTION_SECONDS) as response:
        return tuple((str(row[0]), str(row[1])) for row in json.loads(response.read())["data"])


def _batches(clickhouse: ClickHouseEndpoint, statement: Statement, agent: str) -> Iterator[Any]:
    """The schema, and then the record batches of the query's answer."""
    import pyarrow as pa

    with _answer(clickhouse, statement.sql, agent, "ArrowStream", MAX_SECONDS) as response:
        try:
            with pa.ipc.open_stream(io.BufferedReader(_Body(response.iter_bytes()))) as reader:
                yield reader.schema
                yield from reader
        except pa.ArrowInvalid as e:
            raise UnreachableError(f"ClickHouse ended the query in the middle of its answer: {e}.") from None


@contextmanager
def _answer(
    clickhouse: ClickHouseEndpoint, sql: str, agent: str, answer: str, seconds: int
) -> Iterator[httpx.Response]:
    """The answer of the first shard's server, which has the tables over all shards.

    :raises CallError: ClickHouse refused the query.
    :raises UnreachableError: it does not answer, or broke its answer off.
    """
    import httpx

    settings = {"readonly": 1, "max_execution_time": seconds, "cancel_http_readonly_queries_on_client_close": 1}
    shard = clickhouse.shards[0]
    with httpx.Client(trust_env=False, verify=clickhouse.verify) as http:
        request = request_of(http, clickhouse, shard, sql, settings, agent, answer, seconds)
        try:
            response = http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    response.read()
                    raise refusal_of(response.text)
                yield response
            finally:
                response.close()
        except httpx.HTTPError as e:
            raise UnreachableError(
                f"ClickHouse ({shard.host}:{shard.port}) did not send its whole answer ({type(e).__name__})."
            ) from None


def _write(batches: Iterator[Any], target: s3.ObjectWriter, max_bytes: int) -> int:
    """Write record batches as Parquet. Returns the number of rows that came."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = next(batches)
    rows, waiting, kept = 0, 0, list[pa.RecordBatch]()
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in batches:
            rows += batch.num_rows
            waiting += batch.num_rows
            kept.append(batch)
            if waiting >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(kept))
                waiting = 0
                kept.clear()
            if target.size > max_bytes:
                raise CallError(
                    "too_large", f"The file has more than {max_bytes} bytes after {rows} rows.",
                    hint="Read fewer rows or columns, or export parts with several keys.",
                )  # fmt: skip
        if kept:
            writer.write_table(pa.Table.from_batches(kept))
    return rows


def _rows_of(content: s3.ObjectReader) -> int:
    from pyarrow import parquet

    return int(parquet.ParquetFile(content).metadata.num_rows)


class _Body(io.RawIOBase):
    """An answer's pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        length = min(len(buffer), len(self._rest))
        buffer[:length], self._rest = self._rest[:length], self._rest[length:]
        return length
