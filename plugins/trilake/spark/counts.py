"""Accounts for every row: rows in = rows curated + rows quarantined + exact duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import CountMismatchError, TrilakeError
from trilake.lake import DataSet, Window
from trilake.lake.column_sums import ColumnSum
from trilake.spark import column_sums
from trilake.spark.batch import Batch, partition_of
from trilake.spark.delimited import REASON

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


# Without max_refused: a partition may have this share of refused lines, or this many.
_REFUSED_SHARE, _REFUSED_LINES = 0.05, 20


class TooManyRefusedError(TrilakeError):
    """So many lines were refused that the rest may not replace what the table holds. The table was not changed."""


@dataclass(frozen=True)
class Counts:
    """Numbers of rows of one partition. `rows_in` must be the sum of the others."""

    rows_in: int = 0
    curated: int = 0
    quarantined: int = 0
    duplicates: int = 0

    def check(self, where: str) -> None:
        """:raises CountMismatchError: `rows_in` is not the sum of the others."""
        if self.rows_in != self.curated + self.quarantined + self.duplicates:
            raise CountMismatchError(
                f"{where}: {self.rows_in} rows were read, but {self.curated} curated + {self.quarantined} quarantined "
                f"+ {self.duplicates} exact duplicates = {self.curated + self.quarantined + self.duplicates}.",
                hint="The job's transformation must keep every row: use no inner join and no filter.",
            )

    def too_many_refused(self, limit: float | None) -> bool:
        """Whether a job must not replace a partition with what is left.

        :param limit: see `DataSet.max_refused`.
        """
        if limit is not None:
            return self.quarantined > limit * self.rows_in
        share = self.quarantined > _REFUSED_SHARE * self.rows_in and self.quarantined > _REFUSED_LINES
        return share or 0 < self.quarantined == self.rows_in


def count_lines(batch: Batch) -> dict[str, Counts]:
    """Lines and refused lines of a batch that the rows to write are not made from, row for row."""
    from pyspark.sql import functions as F

    rows = (
        batch.parsed.groupBy("partition").agg(F.count("*").alias("lines"), F.count(REASON).alias("refused")).collect()
    )
    return {row["partition"]: Counts(rows_in=row["lines"], quarantined=row["refused"]) for row in rows}


def check_refused(data_set: DataSet, counts: Mapping[str, Counts], *, target: DataSet | None = None) -> None:
    """
    :param target: the data set of the table that the job writes; default: `data_set`.
    :raises TooManyRefusedError: names the partitions with more refused lines than `data_set` allows.
    """
    wrong = [
        f"{name} ({count.quarantined} of {count.rows_in})"
        for name, count in counts.items()
        if count.too_many_refused(data_set.max_refused)
    ]
    if wrong:
        raise TooManyRefusedError(
            f"{data_set.name}: too many lines were refused in {', '.join(wrong)}. They are in {data_set.quarantine} "
            f"with their reasons; {(target or data_set).curated} was not changed.",
            hint="Ask the source for correct files, or change the job's schema. To commit what is left, run the DAG "
            'with the param "force": true, or set max_refused in the data set.',
        )


def count_rows(
    data_set: DataSet, window: Window, curated: DataFrame, batch: Batch | None
) -> tuple[dict[str, Counts], dict[str, dict[str, ColumnSum]]]:
    """Counts by partition, and the sums of the columns of `curated` by partition and column.

    Lines, refused lines, copies and the rows to write are counted independently.

    :param batch: the batch that `curated` was made from. None: only the rows of `curated` can be counted.
    :raises CountMismatchError: rows are outside of the window.
    """
    from pyspark.sql import functions as F

    by_date = partition_of(data_set, F.col(str(data_set.date)))
    rows = (
        curated.select(
            by_date.alias("_partition"),
            F.col(str(data_set.shard_by)).isNull().alias("_keyless"),
            *column_sums.projections(curated.schema),
        )
        .groupBy("_partition")
        .agg(F.count("*"), F.count_if("_keyless"), *column_sums.aggregates(curated.schema))
        .collect()
    )
    curated_rows = {row[0]: row[1] for row in rows}
    for what, column, number in (
        ("date", data_set.date, curated_rows.get(None, 0)),
        ("shard key", data_set.shard_by, sum(row[2] for row in rows)),
    ):
        if number:
            raise CountMismatchError(
                f"{number} rows of {data_set.name} {window} have NULL in {column}, which is the data set's {what}. "
                "Nothing was committed.",
                hint=f"Give every row a value, or read {column} as NOT NULL, so that such lines are quarantined.",
            )
    outside = sorted(str(name) for name in curated_rows if name not in window.partitions)
    if outside:
        raise CountMismatchError(
            f"The job made rows of {data_set.name} outside of its window {window}: {', '.join(outside[:5])}."
        )
    sums = {row[0]: dict(column_sums.read(curated.schema, row)) for row in rows}
    if batch is None:
        return {name: Counts(curated_rows.get(name, 0), curated_rows.get(name, 0)) for name in window}, sums
    lines = {
        row["partition"]: row
        for row in batch.parsed.groupBy("partition")
        .agg(F.count("*").alias("lines"), F.count(REASON).alias("refused"))
        .collect()
    }
    copies = {
        row["partition"]: row["extra"]
        for row in batch.distinct.groupBy("partition").agg((F.sum("copies") - F.count("*")).alias("extra")).collect()
    }
    counts = {
        name: Counts(
            rows_in=lines[name]["lines"] if name in lines else 0,
            curated=curated_rows.get(name, 0),
            quarantined=lines[name]["refused"] if name in lines else 0,
            duplicates=copies.get(name, 0),
        )
        for name in window
    }
    return counts, sums


def totals(counts: Mapping[str, Counts]) -> str:
    """The sums over all partitions, in one line."""
    rows = [vars(count) for count in counts.values()]
    return ", ".join(f"{name} {sum(row[name] for row in rows)}" for name in vars(Counts()))
