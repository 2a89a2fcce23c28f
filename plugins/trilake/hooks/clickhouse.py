"""A ClickHouse cluster as an Airflow connection: the official hook with fixes and additions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow.sdk import get_current_context

from trilake import retry
from trilake.clickhouse import queries
from trilake.clickhouse.cluster import STATEMENT_TIMEOUT_S, Cluster, error_of
from trilake.clickhouse.exact import bound_in_utc
from trilake.clickhouse.reading import UnreadableValueError, checked_text, read_exactly
from trilake.clickhouse.sql import first_word, refuse_statement, split_statements
from trilake.endpoints import CLICKHOUSE_CONNECTION, ClickHouseEndpoint, is_on
from trilake.errors import ConfigurationError, TrilakeError
from trilake.hooks.clickhouse_cursor import IdentifiedConnection
from trilake.hooks.clickhouse_inserts import (
    BLOCK_ROWS,
    InsertFailedError,
    ValueRefusedError,
    _InsertingHook,
    without_insert_retries,
)
from trilake.hooks.task_instance import TaskInstance, as_comment, joined
from trilake.retry import retry_while_unreachable

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from airflow.sdk import Context
    from clickhouse_connect.driver.client import Client

__all__ = [
    "BLOCK_ROWS",
    "ClickHouseHook",
    "InsertFailedError",
    "ValueRefusedError",
    "current_context",
    "log_comment",
    "remaining_seconds",
]

# The client waits a little longer than the server works, so that the server's own error arrives.
_ANSWER_SLACK_S = 30
_PORT, _SECURE_PORT = 8123, 8443


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


class ClickHouseHook(_InsertingHook):
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
                return read_exactly(without_insert_retries(super(ClickHouseHook, self).get_client()))
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

        :raises ConfigurationError: a statement only changes its session, such as USE or SET, or names the format of its
            result. Nothing was sent.
        """
        texts = [sql] if isinstance(sql, str) else list(sql)
        split = kwargs.get("split_statements", args[3] if len(args) > 3 else False)
        statements = split_statements(texts[0]) if split and isinstance(sql, str) else texts
        for number, statement in enumerate(statements, start=1):
            refuse_statement(statement, number, "this call")
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

    # --- reading

    def query_arrow(self, sql: str, parameters: Mapping[str, Any] | None = None, *, text: bool = True) -> pyarrow.Table:
        """The whole result as an Arrow table. Parameters ``{name:Type}`` are bound on the server.

        :param text: String columns are text. False: they are bytes, which need not be UTF-8.
        :raises UnreadableValueError: a String is not UTF-8, or a column is an AggregateFunction.
        """
        with self.client() as client:
            bound = bound_in_utc(sql, parameters or {})
            found = client.query_arrow(sql, parameters=bound, settings=self.identify(), use_strings=text)
        self._refuse_states(found, sql, bound)
        return checked_text(found)

    def _refuse_states(self, data: pyarrow.Table | pyarrow.RecordBatch, sql: str, bound: dict[str, Any]) -> None:
        """Refuse columns of AggregateFunction: ClickHouse writes addresses of its memory to Arrow instead of states.

        In Arrow they are binary. So the types are only asked for if such a column is there.
        """
        import pyarrow as pa

        if not any(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) for kind in data.schema.types):
            return
        if first_word(sql) not in ("SELECT", "WITH", "FROM"):
            return
        statement = split_statements(sql)[0]
        with self.client() as client:
            described = client.query(f"DESCRIBE TABLE (\n{statement}\n)", parameters=bound, settings=self.identify())
        for name, kind in ((row[0], row[1]) for row in described.result_rows):
            if "AggregateFunction(" in kind.replace("SimpleAggregateFunction(", ""):
                raise UnreadableValueError(
                    f"Column {name} has the type {kind}, whose values Arrow cannot hold.",
                    hint="Select finalizeAggregation(column).",
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
            if not rows:
                self._refuse_states(batch, sql, bound_in_utc(sql, parameters or {}))
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
        elif len(kinds - {type(None)}) <= 1:  # of integers and floats, pandas would make floats
            series = series.infer_objects()
        columns.append(series)
    frame = pandas.concat(columns, axis=1) if columns else pandas.DataFrame()
    frame.columns = pandas.Index(names)
    return frame


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
