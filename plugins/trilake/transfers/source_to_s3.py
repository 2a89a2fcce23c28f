"""Ingests from a source: writes its files, unchanged, below the data set's raw prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from trilake.assets import landed
from trilake.errors import ConfigurationError
from trilake.hooks.lake import LakeHook
from trilake.hooks.task_instance import TaskInstance
from trilake.lake import DataSet, Window
from trilake.lake.data_set import RAW_BUCKET
from trilake.operators.window import WindowedOperator
from trilake.s3 import ObjectWriter

if TYPE_CHECKING:
    from airflow.sdk import Context


class SourceToS3Operator(WindowedOperator):
    """Writes a source's files to ``s3://raw/<data set>/<partition>/<file name>``. A second run replaces them.

    :param data_set: the data set of the raw files.
    :param source: yields (partition, content) for a window.
    :param file_name: the last part of the key.
    """

    def __init__(
        self,
        *,
        data_set: DataSet,
        source: Callable[[Window], Iterator[tuple[str, bytes]]],
        file_name: str,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("outlets", [landed(data_set)])
        super().__init__(data_set=data_set, **kwargs)
        self.source = source
        self.file_name = file_name

    def execute(self, context: Context) -> dict[str, dict[str, Any]]:
        """Returns key, ETag, bytes and lines of the object of each partition.

        :raises ConfigurationError: the source has nothing for a partition of the window, yields a partition twice, or
            yields one that is not in the window.
        """
        window = self.window(context)
        data_set: DataSet = self.data_set  # type: ignore[assignment]  # this operator's constructor requires it
        lake = LakeHook()
        client, arrivals = lake.s3_client(), lake.arrivals(data_set)
        written: dict[str, dict[str, Any]] = {}
        for partition, content in self.source(window):
            if partition in written or partition not in window.partitions:
                raise ConfigurationError(
                    f"The source of {data_set.name} yields {partition} "
                    f"{'twice' if partition in written else f'for {window}, which does not have it'}.",
                    hint="It must yield each partition of the window once, with its complete content. "
                    "This content was not written.",
                )
            key = data_set.raw_key(partition, self.file_name)
            # The writer sends large content in parts, because some stores hold a whole request in memory. It also
            # aborts the incomplete upload of a killed try.
            with (
                arrivals.putting(partition, key, TaskInstance.of(context).run),
                ObjectWriter(client, RAW_BUCKET, key) as target,
            ):
                target.write(content)
                etag = target.commit()
            written[partition] = {
                "key": key,
                "etag": etag,
                "bytes": len(content),
                "lines": content.count(b"\n"),
            }
            self.log.info("s3://%s/%s: %s bytes", RAW_BUCKET, key, len(content))
        missing = [partition for partition in window if partition not in written]
        if missing:
            raise ConfigurationError(
                f"The source of {data_set.name} has nothing for {', '.join(missing[:3])}"
                f"{' and more' if len(missing) > 3 else ''}.",
                hint="Choose a window that the source has.",
            )
        for outlet in self.outlets:
            context["outlet_events"][outlet].add_partitions(sorted(written))
        return written
