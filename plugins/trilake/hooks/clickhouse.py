"""A ClickHouse cluster as an Airflow connection: the official hook with fixes and additions."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook as OfficialClickHouseHook
from airflow.sdk import get_current_context

from trilake import retry
from trilake.clickhouse import queries
from trilake.clickhouse.blocks import (
    RefusedColumnError,
    Target,
    columns_of_arrow,
    columns_of_frame,
    columns_of_rows,
)
from trilake.clickhouse.cluster import STATEMENT_TIMEOUT_S, ClickHouseError, Cluster, error_of
from trilake.clickhouse.exact import UTC_NAMES, bound_in_utc
from trilake.clickhouse.reading import checked_text, read_exactly
from trilake.clickhouse.sql import refuse_session_statement, split_statements
from trilake.clickhouse.tab_separated import columns_of_lines
from trilake.endpoints import CLICKHOUSE_CONNECTION, ClickHouseEndpoint, is_on
from trilake.errors import ConfigurationError, TrilakeError
from trilake.hooks.clickhouse_cursor import IdentifiedConnection
from trilake.hooks.task_instance import TaskInstance, as_comment, joined
from trilake.retry import retry_while_unreachable

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from airflow.sdk import Context
    from clickhouse_connect.driver.client import Client
    from clickhouse_connect.driver.insert import InsertContext

# Rows of one INSERT: about as many as the server puts into one part, and few enough to hold in memory.
BLOCK_ROWS = 1_000_000
# The client waits a little longer than the server works, so that the server's own error arrives.
_ANSWER_SLACK_S = 30
_PORT, _SECURE_PORT = 8123, 8443
_DUMP_FORMAT = "TabSeparated"
# Lines of a file that are in memory at the same time.
_LOAD_ROWS = 100_000
_ZONE = re.compile(r"DateTime(?:64)?\((?:\d, )?'([^']*)'\)")
# A text in JSON stays a text, also if it looks like a date.
_AS_WRITTEN = {"input_format_try_infer_dates": 0, "input_format_try_infer_datetimes": 0}


def log_comment(context: Context | None) -> dict[str, Any]:
    """What the query log records about a task's statements; empty outside of a task."""
    return TaskInstance.of(context).log_comment() if context else {}


def remaining_seconds(context: Context | None) -> int | None:
    """Seconds left of the task's ``execution_timeout``, at least 1; None: the task has no timeout."""
    task, instance = (context or {}).get("task"), (context or {}).get("ti")
    limit, started = getattr(task, "execution_timeout", None), getattr(instance, "start_date", None)
    if limit is None or started is None:
        return None
    return max(1, int(started.timestamp() + limit.total_seconds() - time.time()))


def current_context() -> Context | None:
    """The context of the running task; None outside of a task."""
    try:
        return get_current_context()
    except RuntimeError:
        return None


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


class ClickHouseHook(OfficialClickHouseHook):
    """The official hook for a connection of type ``clickhouse_cluster``, which has all shards, or ``clickhouse``.

    The operators, sensors and checks of common.sql get this hook through the connection type. They use the first host,
    where the database ``analytics`` has the tables over all shards. `cluster` connects to every shard.

    Every statement has a query id and a ``log_comment`` (dag, task, run, map index, try, as JSON). Its time limit
    (``max_execution_time``) is the time that its task has left of ``execution_timeout``.

    :param database: overrides the database of the connection; `SQLExecuteQueryOperator(database=...)` sets it too.
    :param session_settings: server settings, as a mapping or a JSON string of an object.
    :param client_kwargs: further arguments of `clickhouse_connect.get_client`, as a mapping or a JSON string of an
        object.
    :param context: the task's context, if it is not the running task's.
    """

    conn_name_attr = "clickhouse_conn_id"
    default_conn_name = CLICKHOUSE_CONNECTION
    conn_type = "clickhouse_cluster"
    hook_name = "ClickHouse cluster"

    def __init__(
        self,
        *args: Any,
        database: str | None = None,
        session_settings: Mapping[str, Any] | str | None = None,
        client_kwargs: Mapping[str, Any] | str | None = None,
        context: Context | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            database=database or kwargs.pop("schema", None),
            session_settings=_json_object("session_settings", session_settings),
            client_kwargs=_json_object("client_kwargs", client_kwargs),
            **kwargs,
        )
        self._context = context

    @property
    def schema(self) -> str | None:
        """The database, under the name that common.sql's operators use."""
        database: str | None = self.database
        return database

    @schema.setter
    def schema(self, name: str | None) -> None:
        self.database = name

    # --- the cluster

    @property
    def endpoint(self) -> ClickHouseEndpoint:
        """:raises ConfigurationError: the connection has no shards."""
        return ClickHouseEndpoint.from_connection(self.get_connection(self.get_conn_id()))

    @property
    def servers(self) -> ClickHouseEndpoint:
        """All servers of the connection, for lookups of queries. A connection without shards is a single server."""
        return ClickHouseEndpoint.of_servers(self.get_connection(self.get_conn_id())).for_questions()

    def cluster(self, context: Context | None = None) -> Cluster:
        """Connects to all shards and waits until each answers; a context manager.

        :param context: the task's context, for the query log.
        :raises ClusterError: some shards do not answer; it names them.
        """
        cluster = Cluster(self.endpoint, comment=log_comment(context or self.context))
        try:
            cluster.await_hosts(retry.RESTART_S)
        except TrilakeError:
            cluster.close()
            raise
        return cluster

    def kill(self, query_id: str = "", *, comment: Mapping[str, str] | None = None) -> int:
        """Kills queries on every host, and waits until they are gone.

        :param query_id: id of one query.
        :param comment: keys and values in the ``log_comment`` of the queries.
        :returns: how many queries were running.
        :raises ClusterError: some hosts do not answer; it names them. Queries on the other hosts are killed.
        """
        with Cluster(self.servers, comment=log_comment(self.context)) as cluster:
            return queries.kill(cluster, query_id, comment=comment)

    # --- one connection

    @property
    def context(self) -> Context | None:
        return self._context or current_context()

    def _get_client_kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._get_client_kwargs()
        connection = self.get_connection(self.get_conn_id())
        kwargs["secure"] = is_on(connection.extra_dejson.get("secure", False))
        kwargs["verify"] = is_on(connection.extra_dejson.get("verify", True))
        kwargs["port"] = connection.port or (_SECURE_PORT if kwargs["secure"] else _PORT)
        # A session does not allow parallel queries, and no code here needs a session.
        kwargs["autogenerate_session_id"] = False
        # The connection pool must not send a statement twice on its own.
        kwargs.setdefault("query_retries", 0)
        context = self.context
        settings = kwargs["settings"] = dict(kwargs.get("settings") or {})
        if comment := log_comment(context):
            settings.setdefault("log_comment", as_comment(comment))
        settings.update(self._limits(settings))
        limit = int(settings.get("max_execution_time") or 0)
        kwargs.setdefault("send_receive_timeout", limit + _ANSWER_SLACK_S if limit else STATEMENT_TIMEOUT_S)
        return kwargs

    def _limits(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The server's time limit: the shorter of the task's and the settings' limit. So a query ends with its task."""
        remaining = remaining_seconds(self.context)
        limit = int(float(settings.get("max_execution_time") or 0))
        if remaining is None:
            return {}
        return {"max_execution_time": min(remaining, limit) if limit else remaining}

    def new_query_id(self) -> str:
        """A unique query id that names the task."""
        words: list[str] = []
        if context := self.context:
            instance = TaskInstance.of(context)
            words = [*instance.words, str(instance.try_number)]
        return joined([*words, uuid.uuid4().hex])

    def identify(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The settings of a statement: those of `settings`, a new query id, and the task's remaining time as limit."""
        own = dict(settings or {})
        return {"query_id": self.new_query_id(), **own, **self._limits({**self.session_settings, **own})}

    def get_conn(self) -> IdentifiedConnection:
        return IdentifiedConnection(self.get_client(), self.identify, self.where)

    def get_client(self) -> Client:
        """
        :raises UnreachableError: the host does not answer.
        :raises ClickHouseError: the host refused the connection.
        """

        def connect() -> Client:
            try:
                return read_exactly(_without_insert_retries(super(ClickHouseHook, self).get_client()))
            except Exception as e:
                raise error_of(self.where, e) from None

        return retry_while_unreachable(connect)

    @property
    def where(self) -> str:
        """The host, for errors."""
        kwargs = self._get_client_kwargs()
        return f"ClickHouse ({kwargs['host']}:{kwargs['port']})"

    @staticmethod
    def split_sql_string(sql: str, strip_semicolon: bool = False) -> list[str]:
        """The statements of a text, for ``split_statements=True``, by ClickHouse's own rules. Without semicolons."""
        return split_statements(sql)

    def run(self, sql: Any, *args: Any, **kwargs: Any) -> Any:
        """See `DbApiHook.run`.

        :raises ConfigurationError: a statement only changes its session, such as USE or SET. Nothing was sent.
        """
        texts = [sql] if isinstance(sql, str) else list(sql)
        split = kwargs.get("split_statements", args[3] if len(args) > 3 else False)
        statements = split_statements(texts[0]) if split and isinstance(sql, str) else texts
        for number, statement in enumerate(statements, start=1):
            refuse_session_statement(statement, number, "this call")
        return super().run(sql if isinstance(sql, str) else texts, *args, **kwargs)

    def _run_command(self, cur: Any, sql_statement: str, parameters: Any) -> None:
        logs, self.log_sql = self.log_sql, False
        if logs:  # the official hook logs the parameters too, which may be secrets
            self.log.info("Running statement: %s", sql_statement)
        try:
            super()._run_command(cur, sql_statement, parameters)
        finally:
            self.log_sql = logs

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client whose errors name the host, but not the statement, which may hold a secret."""
        client = self.get_client()
        try:
            yield client
        except Exception as e:
            raise error_of(self.where, e) from None
        finally:
            client.close()

    def get_uri(self) -> str:
        """The same client as a SQLAlchemy URL, with quoted parts and with the settings. It contains the password."""
        kwargs = self._get_client_kwargs()
        user, password, database = (quote(str(kwargs[key]), safe="") for key in ("username", "password", "database"))
        address = f"{user}:{password}" if password else user
        options = {
            name: value
            for name, value in kwargs.items()
            if isinstance(value, (str, int, float, bool)) and name not in ("host", "port", *_IN_ADDRESS)
        }
        # The dialect treats names with this prefix as server settings.
        options |= {f"ch_{name}": value for name, value in kwargs["settings"].items()}
        query = urlencode({name: str(v).lower() if isinstance(v, bool) else v for name, v in options.items()})
        host = f"[{kwargs['host']}]" if ":" in kwargs["host"] else kwargs["host"]
        return f"clickhousedb://{address}@{host}:{kwargs['port']}/{database}?{query}"

    # --- writing

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

    # --- reading

    def query_arrow(self, sql: str, parameters: Mapping[str, Any] | None = None, *, text: bool = True) -> pyarrow.Table:
        """The whole result as an Arrow table. Parameters ``{name:Type}`` are bound on the server.

        :param text: String columns are text. False: they are bytes, which need not be UTF-8.
        :raises UnreadableValueError: a String is not UTF-8.
        """
        with self.client() as client:
            return checked_text(
                client.query_arrow(
                    sql, parameters=bound_in_utc(sql, parameters or {}), settings=self.identify(), use_strings=text
                )
            )

    def query_df(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """The whole result as a pandas frame. Parameters ``{name:Type}`` are bound on the server.

        A NULL is what pandas writes for a missing value. In a column of floats that is NaN.

        :raises UnreadableValueError: a value that pandas cannot hold exactly.
        """
        with self.client() as client:
            return client.query_df(sql, parameters=bound_in_utc(sql, parameters or {}), settings=self.identify())

    def _get_pandas_df(self, sql: Any, parameters: Any = None, **kwargs: Any) -> pandas.DataFrame:
        """For `get_df`. pandas' own reader makes floats of Decimals, and of integers if one is NULL."""
        if kwargs:  # arguments of pandas.read_sql
            lenient: pandas.DataFrame = super()._get_pandas_df(sql, parameters, **kwargs)
            return lenient
        with closing(self.get_conn()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            return _frame(names, cursor.fetchall())

    def stream_rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Iterator[tuple[Any, ...]]:
        """The result row by row; memory does not grow with it. Close the iterator to end the query early.

        :raises UnreadableValueError: a value that Python cannot hold exactly.
        """
        for block in self._stream("query_row_block_stream", sql, parameters):
            yield from map(tuple, block)

    def stream_arrow(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, text: bool = True
    ) -> Iterator[pyarrow.RecordBatch]:
        """The result as record batches; memory does not grow with it. Close the iterator to end the query early.

        :param text: see `query_arrow`.
        """
        rows = 0
        for batch in self._stream("query_arrow_stream", sql, parameters, use_strings=text):
            yield checked_text(batch, rows)
            rows += batch.num_rows

    def _stream(self, method: str, sql: str, parameters: Mapping[str, Any] | None, **options: Any) -> Iterator[Any]:
        settings, closed = self.identify(), False
        try:
            with (
                self.client() as client,
                getattr(client, method)(
                    sql, parameters=bound_in_utc(sql, parameters or {}), settings=settings, **options
                ) as stream,
            ):
                try:
                    yield from stream
                except GeneratorExit:
                    # On close, the client reads a response to its end. Killing the query ends the response.
                    closed = True
                    self.kill(settings["query_id"])
                    raise
        except Exception:
            if not closed:
                raise


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


def _frame(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> pandas.DataFrame:
    """Rows as a frame that holds each value. A column of integers or booleans with NULLs has a type that can be NA."""
    import pandas

    columns = []
    for number in range(len(names)):
        values = [row[number] for row in rows]
        series = pandas.Series(values, dtype=object)
        kinds = set(map(type, values))
        if kinds == {float, type(None)}:
            series = series.astype("float64")
        elif kinds == {bool, type(None)}:
            series = series.astype("boolean")
        elif kinds == {int, type(None)}:
            present = [value for value in values if value is not None]
            if min(present) >= -(1 << 63) and max(present) < 1 << 63:
                series = series.astype("Int64")
        else:
            series = series.infer_objects()
        columns.append(series)
    frame = pandas.concat(columns, axis=1) if columns else pandas.DataFrame()
    frame.columns = pandas.Index(names)
    return frame


def _without_insert_retries(client: Client) -> Client:
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


# The URL has these before the question mark, or they are handled separately.
_IN_ADDRESS = ("username", "password", "database", "settings")


def _json_object(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """:raises ConfigurationError: the text is not a JSON object. It is not shown, because it may contain a secret."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError:
            value = ""
        if not isinstance(value, dict):
            raise ConfigurationError(f"{name} is not a JSON object.", hint='Write it as {"max_threads": 4}.')
    return dict(value or {})


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
