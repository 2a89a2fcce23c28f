"""Plain objects of S3, named and counted by whoever wrote them, as a plan of what is to be published."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError, TrilakeError
from trilake.lake.data_set import WHOLE, DataSet
from trilake.lake.plan import PLAIN_OBJECTS, DataFile, LoadPlan, PartitionPlan, PlainFormat

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Keys that s3() would read as a pattern, or that do not survive a URL.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.=+,-]+(/[A-Za-z0-9_.=+,-]+)*")
_FORMATS: Mapping[str, PlainFormat] = {"parquet": "Parquet", "csv": "CSVWithNames"}
_SUFFIX = re.compile(r"\.(parquet|csv)(\.(gz|zst|lz4|snappy|xz|bz2))?$")
# Requests for one object each that are under way at once
_HEADS = 8
_FORM = (
    'Give {partition: {key: rows}} such as {"2013-01": {"orders/2013-01/a.parquet": 120}}, or a list of objects with '
    "partition, key and rows; a data set without a grain needs no partition. A template gives it as JSON: `| tojson`."
)


class ObjectError(TrilakeError):
    """An object is missing, or is not the one that was counted."""


def is_plain_key(key: str) -> bool:
    """Whether s3() reads the key as it stands: as no pattern, and as no way into another bucket."""
    return bool(_PLAIN_KEY.fullmatch(key)) and not {".", ".."} & set(key.split("/"))


def read_objects(data_set: DataSet, value: Any) -> dict[str, tuple[DataFile, ...]]:
    """What was given for `objects`, as files by partition.

    :param value: ``{partition: {key: rows}}``, or objects with ``partition``, ``key``, ``rows`` and perhaps ``etag``
        (other fields are passed over), or either as JSON. Without a grain, ``{key: rows}`` will do.
    :raises ConfigurationError: it is neither, or an object is named twice.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConfigurationError(f"The objects of {data_set.name} are no JSON.", hint=_FORM) from None
    found: dict[str, list[DataFile]] = {}
    if isinstance(value, Mapping):
        if data_set.grain is None and all(isinstance(rows, int) for rows in value.values()):
            value = {WHOLE: value}
        for partition, objects in value.items():
            files = found.setdefault(_partition(data_set, partition), [])
            if isinstance(objects, Mapping):
                files += [_file(data_set, key, rows) for key, rows in objects.items()]
            else:
                files += [_record(data_set, one) for one in _listed(data_set, objects)]
    else:
        for one in _listed(data_set, value):
            file = _record(data_set, one)
            found.setdefault(_partition(data_set, one.get("partition", WHOLE)), []).append(file)
    keys = [file.key for files in found.values() for file in files]
    if len(keys) != len(set(keys)):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigurationError(f"{twice} is named twice among the objects of {data_set.name}.")
    return {partition: tuple(sorted(files, key=lambda file: file.key)) for partition, files in sorted(found.items())}


def plan_objects(
    client: S3Client,
    data_set: DataSet,
    bucket: str,
    objects: Mapping[str, Sequence[DataFile]],
    *,
    version: int,
    file_format: str | None = None,
) -> LoadPlan:
    """Objects as they are now, pinned by ETag. A partition without an object is published empty.

    :param version: orders the loads of a partition: a lower one does not replace a higher one.
    :param file_format: ``parquet`` or ``csv`` (with names); None: as the keys end.
    :raises ConfigurationError: a key that s3() would read as a pattern, or an unknown format.
    :raises ObjectError: an object is missing, or has none or another ETag than was given.
    """
    files = [file for some in objects.values() for file in some]
    for file in files:
        if not is_plain_key(file.key):
            raise ConfigurationError(
                f"The key {file.key!r} cannot be named to ClickHouse without being read as a pattern.",
                hint="Use letters, digits and _ . = + , - in keys, parted by single slashes.",
            )
    with ThreadPoolExecutor(_HEADS) as pool:
        pinned = {file.key: file for file in pool.map(lambda file: _pin(client, bucket, file), files)}
    return LoadPlan(
        data_set,
        version,
        version,
        buckets=None,
        partitions=tuple(
            PartitionPlan(partition, some := tuple(pinned[file.key] for file in given), _digest(bucket, some))
            for partition, given in objects.items()
        ),
        source=PLAIN_OBJECTS,
        bucket=bucket,
        plain=_format(data_set, [file.key for file in files], file_format),
    )


def _listed(data_set: DataSet, value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise ConfigurationError(f"The objects of {data_set.name} are not named and counted.", hint=_FORM)
    return value


def _record(data_set: DataSet, one: Mapping[str, Any]) -> DataFile:
    return _file(data_set, one.get("key"), one.get("rows"), one.get("etag") or "")


def _file(data_set: DataSet, key: Any, rows: Any, etag: Any = "") -> DataFile:
    if not isinstance(key, str) or not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise ConfigurationError(f"An object of {data_set.name} has key {key!r} and {rows!r} rows.", hint=_FORM)
    return DataFile(key, rows, 0, None, str(etag).strip('"'))


def _partition(data_set: DataSet, partition: Any) -> str:
    if data_set.grain is None:
        if partition != WHOLE:
            raise ConfigurationError(f"Data set {data_set.name} has no grain, and so no partition {partition!r}.")
        return WHOLE
    return data_set.window(str(partition)).partitions[0]


def _pin(client: S3Client, bucket: str, file: DataFile) -> DataFile:
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=file.key)
    except ClientError as e:
        raise ObjectError(
            f"s3://{bucket}/{file.key} cannot be read ({e.response['Error']['Code']}).",
            hint="Nothing was published. Is it written by now, and by this name?",
        ) from None
    etag = head.get("ETag", "").strip('"')
    if not etag:
        raise ObjectError(
            f"s3://{bucket}/{file.key} has no ETag, so a change of it could not be noticed.",
            hint="Nothing was published. The store's disk may have been full: make room, and put the object again.",
        )
    if file.etag not in ("", etag):
        raise ObjectError(
            f"s3://{bucket}/{file.key} is not the object that was counted: its ETag is {etag}, not {file.etag}.",
            hint="Nothing was published. Count it anew.",
        )
    return DataFile(file.key, file.rows, head["ContentLength"], None, etag)


def _digest(bucket: str, files: Sequence[DataFile]) -> int:
    """Stands for exactly these objects, as a positive number of 63 bits."""
    lines = [bucket, *(f"{file.key} {file.etag} {file.rows}" for file in files)]
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8], "big") >> 1


def _format(data_set: DataSet, keys: Sequence[str], file_format: str | None) -> PlainFormat:
    if file_format is None:
        found = {match[1] if (match := _SUFFIX.search(key)) else key for key in keys} or {"parquet"}
        if len(found) == 1:
            file_format = found.pop()
    if file_format is None or file_format not in _FORMATS:
        raise ConfigurationError(
            f"The objects of {data_set.name} are neither all Parquet nor all CSV"
            f"{f' ({file_format} is unknown)' if file_format else ' by their names'}.",
            hint="Say which: file_format='parquet' or 'csv'.",
        )
    return _FORMATS[file_format]
