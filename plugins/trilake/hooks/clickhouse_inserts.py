"""What the ClickHouse hook writes: inserts in blocks, and tables to and from tab-separated files."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook as OfficialClickHouseHook

from trilake.clickhouse.blocks import (
    RefusedColumnError,
    Target,
    columns_of_arrow,
    columns_of_frame,
    columns_of_rows,
)
from trilake.clickhouse.cluster import ClickHouseError, error_of
from trilake.clickhouse.exact import UTC_NAMES
from trilake.clickhouse.tab_separated import columns_of_lines
from trilake.errors import ConfigurationError, TrilakeError

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from clickhouse_connect.driver.client import Client
    from clickhouse_connect.driver.insert import InsertContext

# Rows of one INSERT: about as many as the server puts into one part, and few enough to hold in memory.
BLOCK_ROWS = 1_000_000
_DUMP_FORMAT = "TabSeparated"
# Lines of a file that are in memory at the same time.
_LOAD_ROWS = 100_000
_ZONE = re.compile(r"DateTime(?:64)?\((?:\d, )?'([^']*)'\)")
# A text in JSON stays a text, also if it looks like a date.
_AS_WRITTEN = {"input_format_try_infer_dates": 0, "input_format_try_infer_datetimes": 0}


class InsertFailedError(ClickHouseError):
    """A block of rows was sent, but ClickHouse did not confirm it. The table has all of its rows or none.

    :ivar sent: number of rows of the earlier blocks, which are in the table.
    """

    def __init__(self, table: str, sent: int, error: TrilakeError, *, safe: bool) -> None:
        hint = "Run it again: rows that are in the table are not inserted twice."
        if not safe:
            hint = f"{error.hint} Check the table before you run it again: its rows would be inserted a second time."
        message = f"{table}: {sent} rows were inserted, then a block failed: {error.message}"
        super().__init__(message, code=getattr(error, "code", 0), hint=hint.strip())
        self.sent = sent


class ValueRefusedError(InsertFailedError):
    """A column cannot hold a value exactly, so no row of its block was sent.

    :ivar sent: number of rows of the earlier blocks, which are in the table.
    :ivar column: the column's name.
    :ivar row: the row's number among all rows of the call, from 1.
    """

    def __init__(self, table: str, sent: int, error: RefusedColumnError, *, safe: bool) -> None:
        self.column, self.row, self.sent = error.column, sent + error.row + 1, sent
        earlier = f"{sent} rows of earlier blocks are in the table." if sent else "No row was inserted."
        hint = "Correct the value at its source, convert it in the query, or alter the column."
        if sent:
            hint += (
                " Then run it again: rows that are in the table are not inserted twice."
                if safe
                else " Remove the earlier rows before you run it again: they would be inserted a second time."
            )
        ClickHouseError.__init__(
            self,
            f"{table}, column {error.column}, row {self.row}: {error.shown} is refused for {error.kind}: {error}. "
            f"Nothing of its block was sent. {earlier}",
            hint=hint,
        )


class _InsertingHook(OfficialClickHouseHook):
    """The official hook with inserts that write each value exactly. `ClickHouseHook` has the connection."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The host, for errors."""

    @abstractmethod
    def client(self) -> AbstractContextManager[Client]:
        """A client whose errors name the host."""

    @abstractmethod
    def identify(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The settings of a statement, with a query id of its own."""

    def insert_rows(
        self,
        table: str,
        rows: Iterable[Sequence[Any]],
        target_fields: Sequence[str] | None = None,
        commit_every: int = BLOCK_ROWS,
        replace: bool = False,
        deduplication_token: str = "",
        **kwargs: Any,
    ) -> int:
        """Inserts rows in columnar blocks, with one INSERT for each block.

        The table has all rows of a block or none (if all its rows belong to one partition). If a block fails, the
        blocks before it stay in the table. No block is sent twice automatically.

        Each value arrives exactly, or is converted exactly as docs/reference/provider.md says, or is refused before its
        block is sent. A datetime without a time zone is in UTC, no matter in which zone the worker is.

        :param target_fields: names of the columns; None: all columns of the table.
        :param commit_every: rows of a block; 0: all rows in one block.
        :param deduplication_token: names these rows in this order, such as a run id. A second run with the same token
            does not insert blocks twice. The table must have ``non_replicated_deduplication_window`` (blocks) set.
        :param kwargs: arguments of other databases' hooks (``executemany``, ``autocommit``, ...); they have no effect.
        :returns: how many rows were sent.
        :raises ConfigurationError: `replace` is set, or the table has no such column; nothing was sent.
        :raises ValueRefusedError: a column cannot hold a value exactly. It names the column, the row and the value.
        :raises InsertFailedError: a block was refused, or its response did not arrive.
        """
        if replace:
            raise ConfigurationError(
                f"Rows of {table} cannot be replaced by inserting: ClickHouse has no REPLACE INTO.",
                hint="Publish the partition again, or insert into a ReplacingMergeTree without replace=True.",
            )
        remaining = iter(rows)
        blocks = iter(lambda: list(islice(remaining, commit_every or None)), [])
        return self._insert_blocks(table, blocks, target_fields or (), columns_of_rows, deduplication_token)

    def bulk_insert_rows(
        self, table: str, rows: list[tuple[Any, ...]], column_names: list[str], batch_size: int | None = None
    ) -> None:
        """The official hook's way to call `insert_rows`.

        :param batch_size: rows of a block; None: all rows in one block.
        """
        self.insert_rows(table, rows, column_names, commit_every=batch_size or 0)

    def insert_arrow(
        self,
        table: str,
        data: pyarrow.Table | pyarrow.RecordBatchReader | Iterable[pyarrow.RecordBatch],
        *,
        block_rows: int = BLOCK_ROWS,
        deduplication_token: str = "",
    ) -> int:
        """Inserts Arrow data with one INSERT for about `block_rows` rows. The rows of a reader are streamed.

        :param deduplication_token: see `insert_rows`.
        :returns: how many rows were sent.
        :raises ValueRefusedError, InsertFailedError: see `insert_rows`.
        """
        return self._insert_blocks(
            table, _arrow_blocks(data, block_rows), _arrow_names, columns_of_arrow, deduplication_token
        )

    def insert_df(
        self, table: str, df: pandas.DataFrame, *, block_rows: int = BLOCK_ROWS, deduplication_token: str = ""
    ) -> int:
        """Inserts a pandas frame, by column name, with one INSERT for `block_rows` rows.

        :param deduplication_token: see `insert_rows`.
        :returns: how many rows were sent.
        :raises ValueRefusedError, InsertFailedError: see `insert_rows`.
        """
        blocks = (df.iloc[start : start + block_rows] for start in range(0, len(df), block_rows))
        return self._insert_blocks(table, blocks, list(map(str, df.columns)), columns_of_frame, deduplication_token)

    def _insert_blocks(
        self,
        table: str,
        blocks: Iterable[Any],
        names: Sequence[str] | Callable[[Any], Sequence[str]],
        columns_of: Callable[[Target, Any], list[Sequence[Any]] | None],
        token: str,
    ) -> int:
        """
        :param names: of the columns; empty: all columns of the table; or a function that takes the first block.
        :param columns_of: converts a block exactly. None: the block is an Arrow table that goes in as it is.
        """
        sent = 0
        with self.client() as client:
            insert: InsertContext | None = None
            for number, block in enumerate(blocks):
                once = {"insert_deduplication_token": f"{token}:{number}"} if token else {}
                try:
                    if insert is None:
                        insert = _insert_into(client, table, names(block) if callable(names) else names)
                    target = Target(tuple(insert.column_names), tuple(insert.column_types))
                    columns = columns_of(target, block)
                    settings = {**self.identify(), **once}
                    if columns is None:
                        client.insert_arrow(table, block, settings=settings)
                    else:
                        # The context keeps settings, so set them for each block: each is a statement with its own id.
                        insert.settings.update({**_AS_WRITTEN, **settings})
                        client.insert(data=columns, context=insert)
                except ConfigurationError:
                    raise
                except RefusedColumnError as e:
                    raise ValueRefusedError(table, sent, e, safe=bool(token)) from None
                except Exception as e:
                    error = error_of(self.where, e)
                    if not isinstance(error, TrilakeError):
                        raise
                    raise InsertFailedError(table, sent, error, safe=bool(token)) from None
                sent += len(block)
        self.log.info("%s: %s rows inserted", table, sent)
        return sent

    def bulk_load(self, table: str, tmp_file: str) -> None:
        """Inserts a tab-separated file (ClickHouse's TabSeparated, columns in the table's order), streamed in blocks.

        :raises ValueRefusedError, InsertFailedError: see `insert_rows`. A row's number is that of its line.
        """
        with Path(tmp_file).open("rb") as file:
            blocks = iter(lambda: list(islice(file, _LOAD_ROWS)), [])
            self._insert_blocks(table, blocks, (), columns_of_lines, "")

    def bulk_dump(self, table: str, tmp_file: str) -> None:
        """Writes a table to a tab-separated file, streamed. The file only appears when it is complete.

        A DateTime of a zone other than UTC is written in UTC, such as ``2013-07-01T12:00:00Z``: the local time alone
        could be one of two moments.
        """
        partial = Path(f"{tmp_file}.partial")
        try:
            with self.client() as client, partial.open("wb") as file:
                kinds = client.query(f"DESCRIBE TABLE {table}", settings=self.identify()).result_columns[1]
                zoned = any(zone not in UTC_NAMES for kind in kinds for zone in _ZONE.findall(kind))
                settings = {**self.identify(), "wait_end_of_query": 0}
                if zoned:
                    settings["date_time_output_format"] = "iso"
                with client.raw_stream(f"SELECT * FROM {table}", fmt=_DUMP_FORMAT, settings=settings) as stream:
                    while piece := stream.read(1 << 20):
                        file.write(piece)
            os.replace(partial, tmp_file)
        finally:
            partial.unlink(missing_ok=True)


def _insert_into(client: Client, table: str, names: Sequence[str]) -> InsertContext:
    """Reads the table's columns. Without `names` it is all columns.

    :raises ConfigurationError: the table has no such column, or it is computed.
    """
    from clickhouse_connect.driver.exceptions import ProgrammingError

    try:
        return client.create_insert_context(table, column_names=list(names) or "*", column_oriented=True)
    except ProgrammingError as e:
        raise ConfigurationError(
            f"{table}: {e}. No row was inserted.", hint="Name columns of the table that are not computed."
        ) from None


def _arrow_names(table: pyarrow.Table) -> Sequence[str]:
    return list(table.column_names)


def _arrow_blocks(data: Any, block_rows: int) -> Iterator[pyarrow.Table]:
    import pyarrow as pa

    if isinstance(data, pa.Table):
        yield from (data.slice(start, block_rows) for start in range(0, data.num_rows, block_rows))
        return
    batches: list[pyarrow.RecordBatch] = []
    for batch in data:
        batches.append(batch)
        if sum(part.num_rows for part in batches) >= block_rows:
            yield pa.Table.from_batches(batches)
            batches = []
    if any(part.num_rows for part in batches):
        yield pa.Table.from_batches(batches)


def without_insert_retries(client: Client) -> Client:
    """Stops the driver from repeating an INSERT when its connection is reset. The driver (1.12) has no option for this.

    The server may already have the rows, and would insert them twice.
    """

    def without_retries(send: Callable[..., Any]) -> Callable[..., Any]:
        def send_once(*arguments: Any) -> Any:
            return send(*(replace(a, retryable=False) if hasattr(a, "retryable") else a for a in arguments))

        return send_once

    backend = client._backend  # type: ignore[attr-defined]
    for name in ("execute_data_insert", "execute_raw_insert"):
        setattr(backend, name, without_retries(getattr(backend, name)))
    return client
