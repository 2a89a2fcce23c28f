"""Ingests from PostgreSQL: writes a query's result as raw files of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trilake.assets import landed
from trilake.endpoints import OLTP_CONNECTION, PostgresEndpoint
from trilake.errors import ConfigurationError
from trilake.hooks.lake import LakeHook
from trilake.hooks.task_instance import TaskInstance
from trilake.lake import DataSet
from trilake.lake.data_set import RAW_BUCKET
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator
from trilake.postgres.connection import await_answer, connect
from trilake.postgres.extract import Format, extract, one_moment

if TYPE_CHECKING:
    from airflow.sdk import Context


class PostgresToS3Operator(WindowedOperator, ProjectOperator):
    """Writes a query's result to ``s3://raw/<data set>/<partition>/<file name>``, one object for each partition.

    The query can use ``%(start)s`` and ``%(stop)s``: the partition's first day, and the first day after it. Any other
    percent sign is one, written once or twice. All partitions are read at one point in time. Rows are streamed: memory
    does not grow with them. An object is replaced as a whole. When all objects are written, the asset of the data set's
    raw files gets an event for each partition.

    :param sql: the query, or its file below ``sql/``; templated.
    :param file_name: the last part of the key; by default ``<data set>.parquet`` or ``.csv``.
    :param file_format: ``parquet`` (typed, timestamps in microseconds) or ``csv`` (with a header).
    :param parameters: more parameters of the query, as ``%(name)s``; templated.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "sql", "parameters")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json"}
    ui_color = "#bfdbfe"

    def __init__(
        self,
        *,
        data_set: DataSet,
        sql: str,
        file_name: str | None = None,
        file_format: Format = "parquet",
        parameters: Mapping[str, Any] | None = None,
        postgres_conn_id: str = OLTP_CONNECTION,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("outlets", [landed(data_set)])
        super().__init__(data_set=data_set, **kwargs)
        if file_format not in ("parquet", "csv"):
            raise ConfigurationError(
                f"Task {self.task_id} has the unknown file_format {file_format!r}.", hint="Set parquet or csv."
            )
        self.sql = sql
        self.file_name = file_name or f"{data_set.name}.{file_format}"
        self.file_format: Format = file_format
        self.parameters = parameters
        self.postgres_conn_id = postgres_conn_id

    def execute(self, context: Context) -> dict[str, dict[str, Any]]:
        """Returns key, ETag, rows and bytes of the object of each partition.

        :raises trilake.postgres.extract.ExtractError: the type of a column in Parquet cannot hold a value: the error
            names column, row and value.
        :raises CountMismatchError: the written rows are not those that PostgreSQL sent.
        :raises trilake.postgres.PostgresError: PostgreSQL refused the query.
        """
        window = self.window(context)
        data_set: DataSet = self.data_set  # type: ignore[assignment]  # this operator's constructor requires it
        lake = LakeHook()
        client, arrivals = lake.s3_client(), lake.arrivals(data_set)
        source = PostgresEndpoint.from_connection(lake.get_connection(self.postgres_conn_id))
        await_answer(source)
        written: dict[str, dict[str, Any]] = {}
        with connect(source) as connection, one_moment(connection) as cursor:
            for partition in window:
                days = data_set.window(partition)
                bound = {**(self.parameters or {}), "start": days.start, "stop": days.stop}
                key = data_set.raw_key(partition, self.file_name)
                with arrivals.putting(partition, key, TaskInstance.of(context).run):
                    done = extract(cursor, self.sql, bound, client, RAW_BUCKET, key, file_format=self.file_format)
                written[partition] = asdict(done)
                self.log.info("s3://%s/%s: %s rows, %s bytes", RAW_BUCKET, key, done.rows, done.bytes)
        for outlet in self.outlets:
            context["outlet_events"][outlet].add_partitions(sorted(written))
        return written
