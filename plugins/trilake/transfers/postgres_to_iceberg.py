"""Copies small tables of PostgreSQL to the lake with PyIceberg. A few thousand rows do not need Spark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from trilake.endpoints import OLTP_CONNECTION, PostgresEndpoint
from trilake.errors import ConfigurationError
from trilake.hooks.lake import LakeHook
from trilake.hooks.task_instance import TaskInstance
from trilake.lake import DataSet
from trilake.lake.dimensions import replace_table
from trilake.postgres.connection import await_answer, connect
from trilake.postgres.locks import lock_mart

if TYPE_CHECKING:
    from airflow.sdk import Context


class PostgresToIcebergOperator(BaseOperator):
    """Replaces a dimension data set by a table of PostgreSQL. All rows are read at one point in time. If two tasks run
    at once, the second one reads after the first one has committed. So older rows never replace newer ones.

    If the source has changed, the Iceberg table gets new columns and wider types in the same commit. The task fails if
    the source no longer has a column, or if a new type could change values: a person decides with `replace_columns`.

    :param data_set: a data set without a grain.
    :param table: the table, view or materialized view to read, `schema.table` or `table`; default: the name of the data
        set.
    :param replace_columns: columns of the Iceberg table that may be dropped, or may get a type that does not hold their
        earlier values. Earlier snapshots keep them. It has no effect on a column that need not change.
    """

    ui_color = "#bfdbfe"

    def __init__(
        self,
        *,
        data_set: DataSet,
        table: str | None = None,
        replace_columns: Sequence[str] = (),
        postgres_conn_id: str = OLTP_CONNECTION,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        if data_set.grain is not None:
            raise ConfigurationError(
                f"Data set {data_set.name} has a grain, but this operator replaces whole tables.",
                hint="Use a data set without a grain, or ingest the partitions with PostgresToS3Operator.",
            )
        self.data_set = data_set
        if isinstance(replace_columns, str):
            raise ConfigurationError(
                f"Task {self.task_id} has one text as replace_columns.", hint="Set it to a list of column names."
            )
        self.table = table or data_set.name
        self.replace_columns = tuple(replace_columns)
        self.postgres_conn_id = postgres_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Returns the table, the snapshot and the number of rows.

        :raises trilake.lake.dimensions.SourceChangedError: the source has other columns or types. Nothing was written.
        :raises trilake.postgres.extract.ExtractError: the type of a column in Iceberg cannot hold a value.
        :raises CountMismatchError: the rows in the lake differ from those that were read.
        """
        lake = LakeHook()
        source = PostgresEndpoint.from_connection(lake.get_connection(self.postgres_conn_id))
        await_answer(source)
        catalog = lake.catalog()
        try:
            with connect(source) as connection:
                lock_mart(connection, self.data_set.curated)
                snapshot_id, rows = replace_table(
                    catalog,
                    self.data_set,
                    connection,
                    self.table,
                    run_id=TaskInstance.of(context).run,
                    replace_columns=self.replace_columns,
                )
        finally:
            catalog.close()
        self.log.info("%s: snapshot %s, %s rows", self.data_set.curated, snapshot_id, rows)
        return {"table": self.data_set.curated, "snapshot_id": snapshot_id, "rows": rows}
