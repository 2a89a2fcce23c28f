"""Small results of ClickHouse as marts in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trilake.endpoints import CLICKHOUSE_CONNECTION, OLTP_CONNECTION, PostgresEndpoint
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.lake import DataSet
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator
from trilake.postgres import connect, replace_rows

if TYPE_CHECKING:
    from airflow.sdk import Context


class ClickHouseToPostgresOperator(WindowedOperator, ProjectOperator):
    """Replaces a window of a mart by what a query of ClickHouse gives, in one transaction of PostgreSQL.

    The query is bound ``{start:Date}`` and ``{stop:Date}`` on the server: the window's first day, and the first day
    after it. Rows are streamed; readers see the old rows or the new ones, nothing between.

    :param sql: the query, or a file of it below ``sql/``; templated. Its columns are named as the mart's.
    :param table: the mart, `schema.table`.
    :param date: the mart's column that says which rows belong to the window.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "sql")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql"}
    ui_color = "#bbf7d0"

    def __init__(
        self,
        *,
        data_set: DataSet,
        sql: str,
        table: str,
        date: str,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        postgres_conn_id: str = OLTP_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_set=data_set, **kwargs)
        self.sql = sql
        self.table = table
        self.date = date
        self.clickhouse_conn_id = clickhouse_conn_id
        self.postgres_conn_id = postgres_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Gives the mart's table and how many rows were written.

        :raises CountMismatchError: the mart does not hold what the query gave.
        """
        window = self.window(context)
        hook = ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id)
        postgres = PostgresEndpoint.from_connection(hook.get_connection(self.postgres_conn_id))
        bounds = {"start": window.start, "stop": window.stop}
        with (
            hook.client() as client,
            client.query_row_block_stream(self.sql, parameters=bounds, settings=hook.identify()) as stream,
            connect(postgres) as connection,
        ):
            rows = replace_rows(
                connection,
                self.table,
                # of the result that is streamed; none where there is no row
                stream.source.column_names,
                (row for block in stream for row in block),
                where=f'"{self.date}" >= %s AND "{self.date}" < %s',
                parameters=(window.start, window.stop),
            )
        self.log.info("%s: %s rows for %s", self.table, rows, window)
        return {"table": self.table, "rows": rows}
