"""The interface of Spark jobs: `Job` reads the inputs, commits the output, and accounts for every row.

def main(arguments):
    with Job(arguments) as job:
        orders = job.read(SCHEMA)
        job.commit(curate(orders.rows), orders)

After that, a job can publish the commit in ClickHouse (`publish`), read from ClickHouse (`read_table`), and write a
mart to PostgreSQL (`write_postgres`).
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from trilake import s3
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError, CountMismatchError
from trilake.lake import DataSet, Window, column_sums
from trilake.lake.arrivals import Arrivals, Look, Object
from trilake.lake.catalog import CATALOG, COUNTS_PROPERTY, FILES_PROPERTY, load_table, open_catalog, plan
from trilake.lake.column_sums import SUMS_PROPERTY, ColumnSum
from trilake.spark import inputs
from trilake.spark.batch import Batch, read_batch
from trilake.spark.clickhouse import ClickHouseReader
from trilake.spark.column_sums import has_sum
from trilake.spark.counts import Counts, TooManyRefusedError, check_refused, count_lines, count_rows, totals
from trilake.spark.delimited import REASON, header_of, kind_of
from trilake.spark.dry_run import DryRun, DryRunEnded
from trilake.spark.locks import job_lock, partition_lock
from trilake.spark.overwrite import current_snapshot, replace, snapshot_of
from trilake.spark.postgres import Written, write_postgres
from trilake.spark.publish import publish
from trilake.spark.result import write_result
from trilake.spark.session import build_session
from trilake.spark.tables import check_curated, create_curated, create_quarantine

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from trilake.clickhouse.export import Source
    from trilake.clickhouse.publication.publisher import PublicationReport

log = logging.getLogger(__name__)

INPUTS_PROPERTY = "trilake.inputs"
FORCED_PROPERTY = "trilake.forced_by"


@dataclass(frozen=True)
class Commit:
    """The result of a commit. The job writes it to ``--result`` for the submitter."""

    table: str
    snapshot_id: int
    sequence_number: int
    counts: Mapping[str, Counts]
    seconds: float


class Job:
    """One run of one job. It is a context manager: at the end of the block it stops Spark.

    :param arguments: the command line: ``--data-set JSON --start 2013-01 --end 2013-12 --run ID [--result s3://...]``;
        with ``--dry-run FOLDER [--limit N]`` it ends where it would commit (`trilake.spark.dry_run`).
    :param endpoints: default: the endpoints from the environment variables.
    :param spark: default: a new session.
    """

    def __init__(
        self, arguments: Sequence[str], *, endpoints: Endpoints | None = None, spark: SparkSession | None = None
    ) -> None:
        options = _parser().parse_args(list(arguments))
        self.data_set = DataSet.from_json(options.data_set)
        self.window: Window = self.data_set.window(options.start, options.end or None)
        self.run_id: str = options.run
        self._result: str = options.result
        self._forced_by: str = options.accept_refused
        self.dry_run = DryRun(options.dry_run, options.limit) if options.dry_run else None
        self.endpoints = endpoints or Endpoints.from_environment()
        self._own_session = spark is None
        self._started = time.monotonic()
        self.spark = spark or build_session(self.endpoints, f"{self.data_set.name} {self.window}")
        self.spark.sparkContext.setLogLevel("WARN")
        self._batches: list[Batch] = []
        self._pinned: dict[str, list[Object]] = {}
        self._seen: Look | None = None
        # Batches that no commit has verified and quarantined yet.
        self._unsettled: list[Batch] = []
        self._committed: Commit | None = None
        self._opened = ExitStack()
        self._result_document: dict[str, Any] = {}
        if not self.dry_run:
            self._opened.enter_context(job_lock(self.endpoints, self.data_set))
        # The table's snapshot before any input is pinned. If another run commits after this, it may have read newer
        # files: then this run does not replace its commit.
        self._base = None if self.dry_run else current_snapshot(self.endpoints, self.data_set.curated)
        # The snapshots of the quarantine tables at that time, by table name.
        self._quarantine_bases: dict[str, int | None] = {}

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        try:
            self._opened.close()
        finally:
            if self._own_session:
                self.spark.stop()
        return kind is DryRunEnded

    @cached_property
    def _s3(self) -> Any:
        return s3.client(self.endpoints.s3)

    # --- reading

    def read(
        self,
        schema: StructType | str,
        data_set: DataSet | None = None,
        *,
        date: Column | None = None,
        missing: str = "",
    ) -> Batch:
        """Reads the raw CSV files of a data set in this run's window. Separates good and refused rows, drops
        duplicates.

        :param schema: schema of a line, or its DDL (``id int NOT NULL, name string``). A line without a value for a
            column that is NOT NULL is refused.
        :param data_set: default: the job's own.
        :param date: expression for a row's date, if the date is not a column of the schema.
        :param missing: a text that stands for a missing value in this source, such as ``NA``. An empty field without
            quotes is always NULL.
        :raises ConfigurationError: a CSV file cannot hold a type of the schema.
        :raises trilake.spark.inputs.InputError: a partition has no file, or a file has a different header.
        """
        from pyspark.sql.types import StructType

        fields = cast("StructType", StructType.fromDDL(schema)) if isinstance(schema, str) else schema
        data_set = data_set or self.data_set
        if not self.dry_run and data_set.quarantine not in self._quarantine_bases:
            if data_set != self.data_set:
                self._opened.enter_context(job_lock(self.endpoints, data_set))
            self._quarantine_bases[data_set.quarantine] = current_snapshot(self.endpoints, data_set.quarantine)
        pinned = self._pin(data_set)
        inputs.check_header(self._s3, pinned, header_of(fields))
        if self.dry_run and data_set == self.data_set:
            sample = partial(self.dry_run.sample, partitions=self.window.partitions)
            batch = read_batch(self.spark, data_set, pinned, fields, date=date, missing=missing, sample=sample)
        else:
            batch = read_batch(self.spark, data_set, pinned, fields, date=date, missing=missing)
        self._batches.append(batch)
        self._unsettled.append(batch)
        return batch

    def _pin(self, data_set: DataSet) -> tuple[inputs.Input, ...]:
        if self.dry_run or data_set != self.data_set or self._seen:
            return inputs.pin(self._s3, data_set, self.window)
        # The commit records these files as processed, so that they do not start another run. Only the job's first read
        # is recorded. The claims are read before the files are listed. If another run claims a partition after that,
        # it may have seen more files, and `committed` keeps its claim.
        self._seen = self._arrivals.look()
        pinned = inputs.pin(self._s3, data_set, self.window)
        for item in pinned:
            self._pinned.setdefault(item.partition, []).append((item.key, item.etag, item.size))
        return pinned

    @cached_property
    def _arrivals(self) -> Arrivals:
        return Arrivals(self.endpoints.lake, self._s3, self.data_set)

    def table(self, data_set: DataSet) -> DataFrame:
        """The current curated rows of a data set."""
        return self.spark.table(f"{CATALOG}.{data_set.curated}")

    def read_table(
        self,
        table: DataSet | Source,
        *,
        partitions: Sequence[str] | None = None,
        columns: Sequence[str] = (),
        where: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> DataFrame:
        """Reads a table from ClickHouse. The frame is valid until the job ends. See `ClickHouseReader.read_table`."""
        return self._clickhouse.read_table(
            self.spark, table, partitions=partitions, columns=columns, where=where, parameters=parameters
        )

    @cached_property
    def _clickhouse(self) -> ClickHouseReader:
        return self._opened.enter_context(ClickHouseReader(self.endpoints, run_id=self.run_id))

    # --- writing

    def publish(
        self, data_set: DataSet | None = None, *, snapshot_id: int | None = None, force: bool = False
    ) -> PublicationReport:
        """Publishes the window's partitions of this job's commit, exactly once: see `trilake.spark.publish`.

        ClickHouse pulls their files.

        The job's result has the report in ``published``, by the data set's name.

        :param data_set: default: the job's own. Without a grain, the whole table is published.
        :param snapshot_id: default: this job's commit; for another data set, its current snapshot.
        :raises ConfigurationError: the job has committed nothing.
        """
        data_set = data_set or self.data_set
        if data_set == self.data_set and snapshot_id is None:
            if self._committed is None:
                raise ConfigurationError(
                    f"Run {self.run_id} has committed nothing to {data_set.curated}.",
                    hint="Call commit first, or set snapshot_id.",
                )
            snapshot_id = self._committed.snapshot_id
        partitions = self.window.partitions if data_set.grain else ()
        report = publish(self.endpoints, data_set, partitions, run_id=self.run_id, snapshot_id=snapshot_id, force=force)
        log.warning("Published %s partitions of %s (%s rows); %s were current", len(report.published), data_set.name,
                    report.total_rows, len(report.current))  # fmt: skip
        self._add_to_result("published", {data_set.name: report.to_dict()})
        return report

    def write_postgres(
        self, frame: DataFrame, table: str, *, date: str | None = None, key: Sequence[str] = ()
    ) -> Written:
        """Writes rows to a table of PostgreSQL, in one transaction. It replaces the whole table; with `date`, only the
        rows of the job's window; with `key`, it merges rows. See `trilake.spark.postgres.write_postgres`.

        First it makes the checks of `commit` for everything that was read but not committed. It holds this window's
        partition lock while it replaces rows. If another run has committed since this run's commit, it fails, so that
        it does not replace the other run's rows.

        The job's result has the counts in ``postgres``, by the table's name.

        :raises trilake.spark.inputs.InputError: an input changed, or a line is too long; or lines were refused, and no
            commit has quarantined them. Nothing was written.
        :raises trilake.spark.locks.OvertakenError: another run has committed since. Nothing was written.
        :raises ConfigurationError: this is a dry run, which writes nothing.
        """
        if self.dry_run:
            raise ConfigurationError(
                f"Run {self.run_id} writes to PostgreSQL ({table}) before its commit. A dry run cannot do that.",
                hint="Call commit first. A dry run ends there.",
            )
        window = self.window if date else None
        with ExitStack() as until_written:

            def check() -> None:
                self._check_unsettled()
                until_written.enter_context(
                    partition_lock(self.endpoints, self.data_set, self.window, self.run_id, self._base)
                )

            written = write_postgres(frame, table, date=date, window=window, key=key, check=check)
        log.warning("Wrote %s rows to %s", written.rows, table)
        self._add_to_result("postgres", {table: vars(written)})
        return written

    def commit(self, curated: DataFrame, batch: Batch | None = None, *, replace_columns: Sequence[str] = ()) -> Commit:
        """Replaces the window's partitions of the job's Iceberg table by `curated`, in one snapshot.

        First, the refused rows of all reads are written to the quarantine tables. Two tables cannot commit together,
        but in both whole partitions are replaced. So if a run dies in between, the next run corrects it
        (`trilake.spark.locks`).

        The rows must have the table's columns and types. A new column is added. A type is widened if Iceberg can widen
        it (int to bigint, float to double, a decimal to more digits); the result names it in ``columns_changed``.

        :param batch: the batch that `curated` was made from: one row from each of its rows. If it is given, the job
            checks that no row was lost or added.
        :param replace_columns: columns that may change on purpose. If the table's column has another type than in
            `curated`, or is not in `curated`, the table drops it, and adds it again if `curated` has it. Partitions of
            other windows have NULL there until their windows run again. A column that fits stays, so the argument can
            stay too. The table is changed shortly before the commit: if that is refused, the column is empty.
        :raises trilake.spark.counts.TooManyRefusedError: more lines were refused than the data set allows. They are in
            the quarantine table; the job's own table was not changed.
        :raises CountMismatchError: rows were lost or added, or have no date or shard key. Nothing was committed.
        :raises trilake.spark.evolution.ColumnChangedError: a value could change, or a column of the table is missing.
            Nothing was committed.
        :raises trilake.spark.inputs.InputError: an input changed, or a line is too long. Either nothing was committed,
            or the error names the snapshot: run the window again to replace it.
        :raises trilake.spark.locks.OvertakenError: another run has committed first. Nothing was committed.
        """
        data_set = self.data_set
        if data_set.grain is None or data_set.date is None:
            raise ConfigurationError(
                f"Data set {data_set.name} has no grain, and a job commits only partitions.",
                hint="Replace the whole table with PostgresToIcebergOperator, or give the data set a grain.",
            )
        check_curated(self.spark, data_set, curated.schema, replaced=replace_columns)
        curated = curated.persist()
        counts, sums = count_rows(data_set, self.window, curated, batch)
        if self.dry_run:
            if self.dry_run.whole:
                self._check_inputs(self._batches)
            self.dry_run.end(curated, counts, self._batches)
        for partition, count in counts.items():
            if batch is not None:
                count.check(f"{data_set.name} {partition}")
        self._check_inputs(self._batches)
        with partition_lock(self.endpoints, data_set, self.window, self.run_id, self._base):
            try:
                check_refused(data_set, counts)
                for read in self._batches:
                    if read is not batch:
                        check_refused(read.data_set, count_lines(read), target=data_set)
            except TooManyRefusedError as e:
                if not self._forced_by:
                    self._quarantine_all()
                    raise
                log.warning("Committed because %s forces it: %s", self._forced_by, e.message)
                self._result_document["forced_by"] = self._forced_by
            commit = self._replace(curated, counts, sums, replace_columns)
        if self._seen:
            self._arrivals.committed(self._pinned, self._seen, self.run_id)
        self._base = commit.snapshot_id
        self._unsettled = []
        log.warning("Committed snapshot %s of %s: %s", commit.snapshot_id, commit.table, totals(counts))
        self._committed = commit
        self._result_document |= {
            "table": commit.table,
            "snapshot_id": commit.snapshot_id,
            "sequence_number": commit.sequence_number,
            "seconds": commit.seconds,
        }
        self._add_to_result("counts", {name: vars(count) for name, count in counts.items()})
        return commit

    def _replace(
        self,
        curated: DataFrame,
        counts: Mapping[str, Counts],
        sums: Mapping[str, Mapping[str, ColumnSum]],
        replaced: Sequence[str],
    ) -> Commit:
        from pyspark.sql import functions as F

        token = self._quarantine_all()
        shards = len(self.endpoints.clickhouse.shards)
        changes = create_curated(self.spark, self.data_set, curated.schema, shards=shards, replaced=replaced)
        if changes:
            self._result_document["columns_changed"] = [change.text for change in changes]
            log.warning("Changed %s: %s", self.data_set.curated, "; ".join(change.text for change in changes))
        date = F.col(str(self.data_set.date))
        replace(
            curated,
            self.data_set.curated,
            (date >= F.lit(self.window.start)) & (date < F.lit(self.window.stop)),
            window=self.window,
            run_id=self.run_id,
            token=token,
            base=self._base,
            properties={
                COUNTS_PROPERTY: json.dumps({name: vars(count) for name, count in counts.items()}),
                SUMS_PROPERTY: self._write_sums(curated.schema, sums),
                INPUTS_PROPERTY: inputs.digest(item for read in self._batches for item in read.inputs),
                FILES_PROPERTY: inputs.listed(item for read in self._batches for item in read.inputs),
                **({FORCED_PROPERTY: self._forced_by} if "forced_by" in self._result_document else {}),
            },
        )
        commit = self._verify(token, counts)
        # Check again: if an executor has died since the first check, Spark may have read changed files again.
        hint = (
            f"Snapshot {commit.snapshot_id} of {commit.table} may hold lines of the new file. Do not publish it. Run "
            "the window again to replace it."
        )
        for read in self._batches:
            inputs.check_unchanged(self._s3, read.inputs, hint=hint)
        return commit

    def _write_sums(self, schema: StructType, sums: Mapping[str, Mapping[str, ColumnSum]]) -> str:
        """Write the sums of the columns beside the table, for the audit of publications. Returns the object's key."""
        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            ids = {field.name: field.field_id for field in load_table(catalog, self.data_set.curated).schema().fields}
        finally:
            catalog.close()
        summed = {field.name for field in schema.fields if has_sum(field.dataType)}
        by_id = {
            name: {
                number: sums.get(name, {}).get(column, ColumnSum(0, 0)) if column in summed else None
                for column, number in ids.items()
            }
            for name in self.window.partitions
        }
        return column_sums.write(self._s3, self.data_set.curated, by_id)

    def _check_inputs(self, batches: Sequence[Batch]) -> None:
        """:raises trilake.spark.inputs.InputError: the files read are not the pinned ones, or were not read fully."""
        for read in batches:
            size = read.read_bytes()  # first, because it may start the read
            inputs.check_unchanged(self._s3, read.inputs)
            inputs.check_whole(read.inputs, size, header_bytes=len(read.header.encode()) + 1)

    def _check_unsettled(self) -> None:
        """The checks of a commit, for batches that no commit has verified. Only a commit quarantines refused lines, so
        here refused lines are an error.

        :raises trilake.spark.inputs.InputError: see `write_postgres`.
        """
        from pyspark.sql import functions as F

        self._check_inputs(self._unsettled)
        for read in self._unsettled:
            kind = kind_of(F.col(REASON)).alias(REASON)
            rows = read.parsed.where(F.col(REASON).isNotNull()).groupBy(kind).count().orderBy(REASON).collect()
            if rows:
                raise inputs.InputError(
                    f"Lines of {read.data_set.name} {self.window} were refused and are not in quarantine yet: "
                    f"{', '.join(f'{row[0]} ({row[1]})' for row in rows)}.",
                    hint="Nothing was written. Call commit first, which quarantines them; or fix the files.",
                )

    def _quarantine_all(self) -> str:
        """Write the refused lines of all reads to the quarantine tables. Returns the token of their snapshots."""
        token = uuid.uuid4().hex
        for read in self._batches:
            self._quarantine(read, token)
        return token

    def _quarantine(self, batch: Batch, token: str) -> None:
        from pyspark.sql import functions as F

        table = batch.data_set.quarantine
        create_quarantine(self.spark, table)
        refused = batch.parsed.where(F.col(REASON).isNotNull()).select(
            "partition",
            "file",
            REASON,
            "raw",
            F.lit(self.run_id).alias("run"),
            F.current_timestamp().alias("quarantined_at"),
        )
        replace(
            refused,
            table,
            F.col("partition").isin(*self.window.partitions),
            window=self.window,
            run_id=self.run_id,
            token=token,
            base=self._quarantine_bases[table],
        )
        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            self._quarantine_bases[table] = snapshot_of(load_table(catalog, table), token).snapshot_id
        finally:
            catalog.close()

    def _verify(self, token: str, counts: Mapping[str, Counts]) -> Commit:
        """Compares the counts with the files that were written. This finds rows that a retried task wrote twice."""
        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            table = load_table(catalog, self.data_set.curated)
            snapshot = snapshot_of(table, token)
            written = plan(table, self.data_set, self.window.partitions, snapshot.snapshot_id)
        finally:
            catalog.close()
        for partition in written.partitions:
            if partition.rows != counts[partition.partition].curated:
                raise CountMismatchError(
                    f"{self.data_set.curated} {partition.partition}: {counts[partition.partition].curated} rows were "
                    f"curated, but snapshot {snapshot.snapshot_id} has {partition.rows}.",
                    hint="Do not publish this snapshot. Run the window again to replace it.",
                )
        return Commit(
            table=self.data_set.curated,
            snapshot_id=written.snapshot_id,
            sequence_number=written.sequence_number,
            counts=counts,
            seconds=round(time.monotonic() - self._started, 1),
        )

    def _add_to_result(self, name: str, entries: Mapping[str, Any]) -> None:
        """Adds entries to the job's result and writes it. So the result is complete even if the job fails later."""
        self._result_document[name] = {**self._result_document.get(name, {}), **entries}
        if self._result:
            write_result(self.endpoints, self._result, self._result_document)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A Trilake Spark job")
    parser.add_argument("--data-set", required=True, help="the job's data set, as DataSet.to_json() writes it")
    parser.add_argument("--start", required=True, help="the first partition, such as 2013-02")
    parser.add_argument("--end", default="", help="the last partition; by default the first")
    parser.add_argument("--run", default="by hand", help="name of the run for the snapshot's properties: DAG/RUN")
    parser.add_argument("--result", default="", help="s3:// address for the job's result, as JSON")
    parser.add_argument(
        "--accept-refused", default="", help="user who forces a commit although many lines were refused"
    )
    parser.add_argument("--dry-run", default="", help="commit nothing; write what would be committed to this folder")
    parser.add_argument("--limit", type=int, default=0, help="lines of each partition in a dry run; 0: all")
    return parser
