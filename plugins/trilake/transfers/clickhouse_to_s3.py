"""Exports rows of ClickHouse as Parquet to S3. The shards write the files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trilake.clickhouse import export as core
from trilake.clickhouse.cluster import Cluster
from trilake.endpoints import CLICKHOUSE_CONNECTION, ClickHouseEndpoint
from trilake.errors import ConfigurationError
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.lake import LakeHook
from trilake.hooks.task_instance import TaskInstance
from trilake.lake import DataSet
from trilake.lake.data_set import EXPORTS_BUCKET, WHOLE
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

_UNSAFE_IN_KEY = re.compile(r"[^A-Za-z0-9_.-]+")
_LABEL_CHARACTERS = 100


class ClickHouseToS3Operator(WindowedOperator, ProjectOperator):
    """All shards export their rows in parallel to ``s3://exports/``; the manifest is written last. No row passes
    through Airflow. See `trilake.clickhouse.export`.

    It exports a data set's table or a query. For a table, it exports the window's partitions, one file for each
    partition and shard; a dimension table, or any table with ``whole=True``, is one partition named ``all``. A query
    runs on each shard. If the data set has a grain, the query runs once for each partition, and can use
    ``{start:Date}`` and ``{stop:Date}``: the partition's first day, and the first day after it.

    XCom has ``manifest`` (its key), ``bucket``, ``rows``, ``shards`` (rows by shard number) and ``objects``: partition
    -> key -> rows. A later try, or a cleared task, removes the files of earlier tries: read an export in the same run,
    or copy it.

    :param data_set: the data set of the table; with `sql`, the data set of the partitions.
    :param sql: the query, or its file below ``sql/``; templated. ``{shard}`` in it is the shard's database.
    :param columns: columns of the data set's table; default: all.
    :param where: a condition on the rows of the data set's table, with parameters ``{name:Type}``; templated.
    :param parameters: bound on the server; templated.
    :param whole: export all partitions of the data set's table as one.
    :param name: the first part of the keys; default: the data set's name, else the task's.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "sql", "where", "parameters")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "where": "sql", "parameters": "json"}
    ui_color = "#fed7aa"

    def __init__(
        self,
        *,
        data_set: DataSet | None = None,
        sql: str | None = None,
        columns: Sequence[str] = (),
        where: str = "",
        parameters: Mapping[str, Any] | None = None,
        whole: bool = False,
        name: str | None = None,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(data_set=data_set, **kwargs)
        if data_set is None and sql is None:
            raise ConfigurationError(f"Task {self.task_id} exports nothing.", hint="Set data_set or sql.")
        if sql is not None and (columns or where):
            raise ConfigurationError(
                f"Task {self.task_id} has sql, so it cannot have columns or where.", hint="Write them into the query."
            )
        self.sql = sql
        self.columns = tuple(columns)
        self.where = where
        self.parameters = parameters
        self.whole = whole
        self.name = name
        self.clickhouse_conn_id = clickhouse_conn_id
        self._attempt: tuple[ClickHouseEndpoint, str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Returns the manifest's key and its contents.

        :raises trilake.clickhouse.export.ExportError: the objects differ from what the shards wrote.
        :raises trilake.clickhouse.publication.shard_sets.ReshardedError: rows moved to other shards meanwhile.
        :raises trilake.clickhouse.cluster.ClusterError: some shards failed; it names them. There is no manifest.
        """
        prefix = self._prefix(context)
        hook = ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id)
        # Read here, because on_kill cannot ask Airflow for a connection.
        attempt = core.new_attempt()
        self._attempt = hook.endpoint, f"{prefix}/{attempt}"
        lake, sources = LakeHook(), self._sources(context)
        statements = [source.sql for source in sources.values()]
        with hook.cluster(context) as cluster, lake.ledger().shard_sets.no_rows_move(statements):
            done = core.export(
                cluster,
                lake.s3_client(),
                prefix,
                sources,
                run_id=TaskInstance.of(context).run,
                attempt=attempt,
            )
        shards: dict[str, int] = {}
        for item in done.objects:
            shards[str(item.shard)] = shards.get(str(item.shard), 0) + item.rows
        self.log.info(
            "s3://%s/%s lists %s objects, %s rows", EXPORTS_BUCKET, done.manifest, len(done.objects), done.rows
        )
        return {
            "manifest": done.manifest,
            "bucket": EXPORTS_BUCKET,
            "rows": done.rows,
            "shards": shards,
            "objects": done.by_partition,
        }

    def on_kill(self) -> None:
        """Kills this attempt's statements on every host, not those of other tries. The next try removes its objects."""
        if self._attempt is not None:
            endpoint, prefix = self._attempt
            with Cluster(endpoint) as cluster:
                core.cancel(cluster, prefix)

    def _sources(self, context: Context) -> dict[str, core.Source]:
        parameters = dict(self.parameters or {})
        windowed = self.data_set is not None and self.data_set.grain is not None and not self.whole
        partitions = self.window(context).partitions if windowed else None
        if self.sql is None:
            data_set: DataSet = self.data_set  # type: ignore[assignment]  # the constructor requires it without sql
            return core.table_sources(
                data_set, partitions, columns=self.columns, where=self.where, parameters=parameters
            )
        if partitions is None:
            return {WHOLE: core.Source(self.sql, parameters)}
        sources = {}
        for partition in partitions:
            window = self.data_set.window(partition)  # type: ignore[union-attr]  # `windowed` requires a data set
            sources[partition] = core.Source(self.sql, {**parameters, "start": window.start, "stop": window.stop})
        return sources

    def _prefix(self, context: Context) -> str:
        """The prefix of this task instance. It is the same for all tries."""
        words = TaskInstance.of(context).words
        label = _UNSAFE_IN_KEY.sub("_", ".".join(words))[:_LABEL_CHARACTERS]
        digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]
        name = self.name or (self.data_set.name if self.data_set else self.task_id)
        return f"{_UNSAFE_IN_KEY.sub('_', name)}/{label}-{digest}"
