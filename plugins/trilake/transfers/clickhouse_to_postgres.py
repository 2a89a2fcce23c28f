"""Writes small results of ClickHouse queries to marts in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.marts import stage_result
from trilake.endpoints import CLICKHOUSE_CONNECTION, OLTP_CONNECTION, PostgresEndpoint
from trilake.errors import ConfigurationError
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.lake import DataSet
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator
from trilake.postgres.connection import await_answer, connect, quote
from trilake.postgres.locks import lock_mart
from trilake.postgres.marts import merge_from, replace_from

if TYPE_CHECKING:
    from airflow.sdk import Context
    from psycopg2.extensions import connection as Connection


class ClickHouseToPostgresOperator(WindowedOperator, ProjectOperator):
    """Writes the result of a ClickHouse query to a mart, in one transaction of PostgreSQL: readers see the old or the
    new rows. Rows are streamed, as text that ClickHouse writes. If several tasks write to one mart, each task starts
    its query after the earlier task has written. So older results never replace newer ones.

    Types are compared before the query runs, and values before the mart changes. A value that the mart's column would
    round, cut or shift is an error that names the column, the row and the value. docs/reference/provider.md lists which
    types fit.

    With `date`, the rows of the window are replaced. With `key`, rows are merged: rows with an existing key are
    updated, the others are inserted, none is removed; then the window is optional. If the data set has a grain, the
    query can use ``{start:Date}`` and ``{stop:Date}``, bound on the server: the window's first day, and the first day
    after it.

    :param data_set: the data set of the window.
    :param sql: the query, or its file below ``sql/``; templated. Its columns have the names of the mart's columns.
    :param table: the mart, `schema.table`.
    :param date: the mart's column that says which rows belong to the window that is replaced.
    :param key: columns of a primary key or unique constraint of the mart.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "sql")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql"}
    ui_color = "#bbf7d0"

    def __init__(
        self,
        *,
        sql: str,
        table: str,
        data_set: DataSet | None = None,
        date: str | None = None,
        key: Sequence[str] = (),
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        postgres_conn_id: str = OLTP_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_set=data_set, **kwargs)
        if bool(key) == bool(date) or isinstance(key, str):
            raise ConfigurationError(
                f"Task {self.task_id} needs either date or key to know which rows of {table} to replace.",
                hint="Set date to replace a window, or key (a tuple of columns) to merge; not both.",
            )
        self.sql = sql
        self.table = table
        self.date = date
        self.key = tuple(key)
        self.clickhouse_conn_id = clickhouse_conn_id
        self.postgres_conn_id = postgres_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Returns the mart's table and the number of rows written; with a key also ``inserted`` and ``updated``.

        :raises ConfigurationError: a column of the query has no equal in the mart. The query was not run.
        :raises trilake.postgres.staging.ValueRefusedError: a column of the mart cannot hold a value exactly.
        :raises CountMismatchError: the rows in the mart differ from the query's result.
        :raises trilake.postgres.DuplicateKeyError: two rows have one key. Nothing was written.
        """
        windowed = bool(self.date) or (self.data_set is not None and self.data_set.grain is not None)
        window = self.window(context) if windowed else None
        hook = ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id)
        postgres = PostgresEndpoint.from_connection(hook.get_connection(self.postgres_conn_id))
        await_answer(postgres)
        bound = {"start": window.start, "stop": window.stop} if window else {}
        result: dict[str, Any] = {"table": self.table}
        with connect(postgres) as connection, hook.client() as client:
            lock_mart(connection, self.table)
            with connection.cursor() as cursor:
                columns, staged, sent = stage_result(
                    client, cursor, self.table, self.sql, key=self.key, parameters=bound, settings=hook.identify
                )
            result |= self._write(connection, columns, staged, sent, bound)
        self.log.info("%s: %s%s", self.table, result, f" for {window}" if window else "")
        return result

    def _write(
        self, connection: Connection, columns: Sequence[str], staged: str, sent: int, bound: Mapping[str, date]
    ) -> dict[str, int]:
        if self.key:
            inserted, updated = merge_from(connection, self.table, columns, staged, sent, key=self.key)
            return {"rows": inserted + updated, "inserted": inserted, "updated": updated}
        column = quote(str(self.date)).replace("%", "%%")
        where, window = f"{column} >= %s AND {column} < %s", (bound["start"], bound["stop"])
        return {"rows": replace_from(connection, self.table, columns, staged, sent, where=where, parameters=window)}
