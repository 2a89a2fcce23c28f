"""Accounts for every row: rows in = rows curated + rows quarantined + exact duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import CountMismatchError
from trilake.lake import DataSet, Window
from trilake.spark.batch import Batch, partition_of
from trilake.spark.delimited import REASON

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


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


def count_rows(data_set: DataSet, window: Window, curated: DataFrame, batch: Batch | None) -> dict[str, Counts]:
    """Counts by partition. Lines, refused lines, copies and the rows to write are counted independently.

    :param batch: the batch that `curated` was made from. None: only the rows of `curated` can be counted.
    :raises CountMismatchError: rows are outside of the window.
    """
    from pyspark.sql import functions as F

    by_date = partition_of(data_set, F.col(str(data_set.date)))
    curated_rows = {row[0]: row[1] for row in curated.groupBy(by_date).count().collect()}
    outside = sorted(str(name) for name in curated_rows if name not in window.partitions)
    if outside:
        raise CountMismatchError(
            f"The job made rows of {data_set.name} outside of its window {window}: {', '.join(outside[:5])}."
        )
    if batch is None:
        return {name: Counts(curated_rows.get(name, 0), curated_rows.get(name, 0)) for name in window}
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
    return {
        name: Counts(
            rows_in=lines[name]["lines"] if name in lines else 0,
            curated=curated_rows.get(name, 0),
            quarantined=lines[name]["refused"] if name in lines else 0,
            duplicates=copies.get(name, 0),
        )
        for name in window
    }


def totals(counts: Mapping[str, Counts]) -> str:
    """The sums over all partitions, in one line."""
    rows = [vars(count) for count in counts.values()]
    return ", ".join(f"{name} {sum(row[name] for row in rows)}" for name in vars(Counts()))
