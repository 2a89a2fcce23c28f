"""Pins the input of a run: records its objects and their ETags. So a change is noticed before the run commits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trilake.errors import TrilakeError
from trilake.lake.data_set import RAW_BUCKET, DataSet
from trilake.s3 import etag_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HEADER_BYTES = 65_536
# The small profile has enough memory to parse several lines of this size at once.
LINE_BYTES = 8 * 1024**2
SUFFIX = ".csv"
# Files of a partition that a snapshot's properties list. The properties are read with the table's metadata, each time.
MAX_LISTED = 20
# Objects that are requested in parallel.
REQUESTS = 8
# Hadoop reads these characters in a path as a pattern. It skips names that begin with a dot or an underscore.
_PATTERN = re.compile(r"[*?\[\]{}\\]|//|/[._][^/]*$")


class InputError(TrilakeError):
    """An input is missing, changed while it was read, or does not have the format that the job reads."""


@dataclass(frozen=True)
class Input:
    """One object below bucket ``raw``."""

    key: str
    etag: str
    size: int
    partition: str

    @property
    def uri(self) -> str:
        return f"s3a://{RAW_BUCKET}/{self.key}"


def pin(client: S3Client, data_set: DataSet, partitions: Iterable[str]) -> tuple[Input, ...]:
    """The objects that are now below the prefixes of these partitions.

    :raises S3Error: an object has no ETag.
    :raises InputError: a partition has no object, or an object is not ``.csv``, or its name looks like a pattern or a
        hidden file to Spark: Spark would read other files, or skip this one.
    """
    inputs: list[Input] = []
    for partition in partitions:
        prefix = data_set.raw_key(partition)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=RAW_BUCKET, Prefix=prefix)
        objects = [
            Input(item["Key"], etag_of(RAW_BUCKET, item["Key"], item), item["Size"], partition)
            for page in pages
            for item in page.get("Contents", ())
            if not item["Key"].endswith("/")
        ]
        if not objects:
            raise InputError(
                f"Nothing was ingested for {data_set.name} {partition}: s3://{RAW_BUCKET}/{prefix} is empty.",
                hint="Run the ingest for this window first, or choose a window that the source has.",
            )
        for item in objects:
            check_name(item.key)
        inputs += objects
    return tuple(inputs)


def check_name(key: str) -> None:
    """:raises InputError: the name does not end in ``.csv``, or Spark would read other files or none by this name."""
    if not key.endswith(SUFFIX):
        raise InputError(
            f"s3://{RAW_BUCKET}/{key} is not a {SUFFIX} file.",
            hint="Jobs read uncompressed CSV. Unpack the file, write it as CSV (PostgresToS3Operator: "
            "file_format='csv'), or move it to another prefix.",
        )
    if _PATTERN.search(key):
        raise InputError(
            f"s3://{RAW_BUCKET}/{key} has a name that Spark reads as a pattern or as a hidden file.",
            hint="Rename it: use no * ? [ ] { } or backslash, and no dot or underscore at the beginning.",
        )


def check_header(client: S3Client, inputs: Iterable[Input], header: str) -> None:
    """:raises InputError: the first line of a file is not `header`: its columns or their order differ."""

    def check(item: Input) -> None:
        if not item.size:
            raise InputError(f"s3://{RAW_BUCKET}/{item.key} is empty.", hint="A file needs at least its header line.")
        answer = client.get_object(Bucket=RAW_BUCKET, Key=item.key, Range=f"bytes=0-{HEADER_BYTES - 1}")
        # Remove exactly what `without_end` removes, so that both compare the same header.
        first = answer["Body"].read().split(b"\n", 1)[0].removesuffix(b"\r").decode("utf-8", errors="replace")
        if first != header:
            raise InputError(
                f"The header of s3://{RAW_BUCKET}/{item.key} is {first[:200]!r}, but the job expects {header!r}.",
                hint="Fix the file, or the job's schema.",
            )

    _each(check, inputs)


def check_unchanged(
    client: S3Client, inputs: Iterable[Input], *, hint: str = "Nothing was committed. Run it again."
) -> None:
    """:raises InputError: an object is not the one that was pinned."""
    from botocore.exceptions import ClientError

    def check(item: Input) -> None:
        try:
            etag = etag_of(RAW_BUCKET, item.key, client.head_object(Bucket=RAW_BUCKET, Key=item.key))
        except ClientError as e:
            if e.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise  # for example a missing permission
            etag = "gone"
        if etag != item.etag:
            raise InputError(f"s3://{RAW_BUCKET}/{item.key} changed while the job read it.", hint=hint)

    _each(check, inputs)


def check_whole(inputs: Iterable[Input], read: Mapping[str, int], *, header_bytes: int) -> None:
    """Checks that every byte of the files was read, except the line ends of the header and of the last line.

    :param read: bytes of the lines that were read from each file, by key; without its header.
    :raises InputError: bytes of a file were not read: a line of it is longer than `LINE_BYTES`.
    """
    for item in inputs:
        missing = item.size - read.get(item.key, 0) - header_bytes
        if missing > 1:  # one byte may be the carriage return of the header, if its line ends as on Windows
            raise InputError(
                f"s3://{RAW_BUCKET}/{item.key} has lines of more than {LINE_BYTES // 1024**2} MiB: {missing} of its "
                f"{item.size} bytes were not read.",
                hint="Nothing was committed. Fix the file: probably a line end is missing.",
            )


def _each(check: Callable[[Input], None], inputs: Iterable[Input]) -> None:
    """Checks files in parallel, because each check is a request to S3. Stops at the first error."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        try:
            for _ in pool.map(check, inputs):
                pass
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise


def listed(inputs: Iterable[Input]) -> str:
    """Key, ETag and size of the files, by partition, as JSON for a snapshot's property. Of each partition at most
    `MAX_LISTED` files are in it. Their number is.
    """
    by_partition: dict[str, dict[str, Any]] = {}
    for item in inputs:
        of_partition = by_partition.setdefault(item.partition, {"files": [], "number": 0})
        of_partition["number"] += 1
        if len(of_partition["files"]) < MAX_LISTED:
            of_partition["files"].append([item.key, item.etag, item.size])
    return json.dumps(by_partition)


def digest(inputs: Iterable[Input]) -> str:
    """Digest of all inputs, for the snapshot's properties."""
    lines = sorted(f"{item.key} {item.etag}" for item in inputs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
