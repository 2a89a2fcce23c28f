"""Publishes plain objects of S3 in ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from trilake.errors import ConfigurationError
from trilake.lake.data_set import RAW_BUCKET
from trilake.lake.objects import plan_objects, read_objects
from trilake.operators.publications import PublishOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from trilake.hooks.lake import LakeHook
    from trilake.lake.plan import LoadPlan

_1970 = datetime(1970, 1, 1, tzinfo=UTC)


class S3ToClickHouseOperator(PublishOperator):
    """Publishes Parquet files, or CSV files whose first line names the columns. `PublishOperator` describes the checks
    and the XCom.

    The objects are pinned by ETag. Each shard reads all objects of a partition and keeps the rows whose
    ``icebergBucket(shards, key)`` is its own; without a grain it keeps all rows. Columns are matched by name. A column
    that the table does not have is ignored; a missing column is an error. A value that a column cannot hold is an error
    too. In CSV an empty field and ``\\N`` are NULL, ``""`` is the empty string. The key's suffix sets the compression.

    Objects have no order, so each load has a version: a lower one never replaces a higher one, except with `force`. The
    same version with the same objects changes nothing; with other objects (a run that was cleared and wrote again) it
    replaces what it published before.

    :param objects: ``{partition: {key: rows}}``, or a list of objects with partition, key, rows and optionally etag
        (then the object must still have it), or either as JSON; templated, and may be another task's output. They must
        name exactly the window's partitions. A partition without an object is published empty. Without a grain: ``{key:
        rows}``.
    :param bucket: the bucket of the objects; ClickHouse reads it by the named collection of the same name. Templated.
    :param file_format: ``parquet`` or ``csv``; None: from the keys' suffix.
    :param version: a whole number, or a time in ISO 8601, which becomes microseconds since 1970; templated. Default:
        the time when the run was due (``run_after``), so the run that was due later has the higher version.
    """

    template_fields: Sequence[str] = (*PublishOperator.template_fields, "objects", "bucket", "version")
    template_fields_renderers = {"objects": "json"}

    def __init__(
        self,
        *,
        objects: Any,
        bucket: str = RAW_BUCKET,
        file_format: Literal["parquet", "csv"] | None = None,
        version: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objects = objects
        self.bucket = bucket
        self.file_format = file_format
        self.version = version

    def plan(self, context: Context, lake: LakeHook) -> LoadPlan:
        """:raises trilake.lake.objects.ObjectError: an object is missing, or is not the one that was counted.
        :raises ConfigurationError: `objects` or `version` is invalid, or `objects` does not match the window.
        """
        data_set = self.data_set
        objects = read_objects(data_set, self.objects)
        if data_set.grain:
            window = self.window(context)
            unexpected = [name for name in objects if name not in set(window)]
            missing = [name for name in window if name not in objects]
            if unexpected or missing:
                raise ConfigurationError(
                    f"The objects of {data_set.name} do not match the window {window}: "
                    + "; ".join(
                        f"{what} {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
                        for what, names in (("it does not have", unexpected), ("they do not name", missing))
                        if names
                    )
                    + ".",
                    hint="Choose another window (start, end); or name a partition without objects to publish it empty.",
                )
        version = self._version(context)
        return plan_objects(
            lake.s3_client(), data_set, self.bucket, objects, version=version, file_format=self.file_format
        )

    def _version(self, context: Context) -> int:
        if self.version in (None, "", "None"):
            run: Any = context["dag_run"]
            return _microseconds(run.run_after)
        try:
            text = str(self.version)
            version = int(text) if text.isdigit() else _microseconds(datetime.fromisoformat(text))
            if not 0 <= version < 2**63:  # the ledger stores it as a bigint
                raise ValueError
            return version
        except ValueError:
            raise ConfigurationError(
                f"{self.version!r} is not a version of {self.data_set.name}.",
                hint="Set a whole number, or a time in ISO 8601 such as {{ ts }}.",
            ) from None


def _microseconds(moment: datetime) -> int:
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _1970) // timedelta(microseconds=1)
