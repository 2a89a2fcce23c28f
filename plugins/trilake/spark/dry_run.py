"""A dry run of a job: it commits nothing, and writes what it would commit to a local folder.

`Job` takes ``--dry-run FOLDER [--limit N]``. The job reads and computes as usual. It ends where it would commit,
because the next steps (a publication, a table written elsewhere) need a commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilake.spark.delimited import REASON, kind_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from trilake.spark.batch import Batch
    from trilake.spark.counts import Counts

RESULT_FILE = "dry_run.json"
ROWS_FOLDER = "rows"
# Refused lines shown for each reason, and the maximum characters of each.
EXAMPLES = 3
_EXAMPLE_CHARACTERS = 300


class DryRunEnded(BaseException):
    """The job reached its commit. `Job` as a context manager suppresses this exception."""


class DryRun:
    """:param folder: gets ``dry_run.json`` and ``rows/`` (Parquet). Nothing else is written.
    :param limit: how many lines of each partition of the job's own data set are read; 0: all.
    """

    def __init__(self, folder: str, limit: int = 0) -> None:
        self._folder = Path(folder)
        self._limit = limit

    @property
    def whole(self) -> bool:
        """Whether the complete input is read."""
        return not self._limit

    def sample(self, lines: DataFrame, header: str, *, partitions: Sequence[str]) -> DataFrame:
        """The first lines of each partition; without a limit, all lines.

        A sample has no header lines, because they must not count. So a repeated header line in it is not refused.
        """
        from pyspark.sql import functions as F

        if not self._limit:
            return lines
        body = lines.where(F.col("raw") != header)
        parts = (body.where(F.col("partition") == name).limit(self._limit) for name in partitions)
        return reduce(lambda left, right: left.unionByName(right), parts)

    def end(self, curated: DataFrame, counts: Mapping[str, Counts], batches: Sequence[Batch]) -> None:
        """Writes the rows that would be committed, and a report.

        :raises DryRunEnded: always.
        """
        curated.write.parquet((self._folder / ROWS_FOLDER).as_uri())
        document: dict[str, Any] = {
            "counts": {partition: vars(count) for partition, count in counts.items()},
            "columns": {field.name: field.dataType.simpleString() for field in curated.schema.fields},
            "inputs": [item.uri.replace("s3a://", "s3://", 1) for batch in batches for item in batch.inputs],
            "refused": _refused(batches),
        }
        (self._folder / RESULT_FILE).write_text(json.dumps(document))
        raise DryRunEnded


def _refused(batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """For each data set the reasons, the most frequent first, with the number of lines and a few examples.

    It runs one query for all data sets.
    """
    from pyspark.sql import DataFrame, Window
    from pyspark.sql import functions as F

    if not batches:
        return []
    of_reason = Window.partitionBy("data_set", REASON)
    lines = reduce(
        DataFrame.unionByName,
        (
            batch.parsed.where(F.col(REASON).isNotNull()).select(
                F.lit(batch.data_set.name).alias("data_set"), kind_of(F.col(REASON)).alias(REASON), "file", "raw"
            )
            for batch in batches
        ),
    )
    rows = (
        lines.withColumn("rows", F.count("*").over(of_reason))
        .withColumn("number", F.row_number().over(of_reason.orderBy("file", "raw")))
        .where(F.col("number") <= EXAMPLES)
        .collect()
    )
    reasons: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["data_set"], -row["rows"], row[REASON], row["number"])):
        new = {"data_set": row["data_set"], "reason": row[REASON], "rows": row["rows"], "examples": []}
        reason = reasons.setdefault((row["data_set"], row[REASON]), new)
        reason["examples"].append({"file": row["file"], "raw": row["raw"][:_EXAMPLE_CHARACTERS]})
    return list(reasons.values())
