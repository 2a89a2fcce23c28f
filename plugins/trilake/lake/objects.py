"""Plain objects of S3, which their producer names and counts, as a plan to publish them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError, TrilakeError
from trilake.lake.data_set import WHOLE, DataSet
from trilake.lake.nested_nulls import null_rows
from trilake.lake.plan import PLAIN_OBJECTS, DataFile, LoadPlan, PartitionPlan, PlainFormat
from trilake.s3 import ObjectReader

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# s3() would read other keys as a pattern, or a URL would change them.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.=+,-]+(/[A-Za-z0-9_.=+,-]+)*")
_FORMATS: Mapping[str, PlainFormat] = {"parquet": "Parquet", "csv": "CSVWithNames"}
_SUFFIX = re.compile(r"\.(parquet|csv)(\.(gz|zst|lz4|snappy|xz|bz2))?$")
# Parallel requests, one object each.
_HEADS = 8
_FORM = (
    'Give {partition: {key: rows}}, such as {"2013-01": {"orders/2013-01/a.parquet": 120}}, or a list of objects with '
    "partition, key and rows. A data set without a grain needs no partition. In a template, add `| tojson`."
)


class ObjectError(TrilakeError):
    """An object is missing, or is not the one that was counted."""


def is_plain_key(key: str) -> bool:
    """Whether s3() takes the key literally: it is not a pattern and does not lead to another bucket."""
    return bool(_PLAIN_KEY.fullmatch(key)) and not {".", ".."} & set(key.split("/"))


def read_objects(data_set: DataSet, value: Any) -> dict[str, tuple[DataFile, ...]]:
    """The value of an operator's `objects`, as files by partition.

    :param value: ``{partition: {key: rows}}``; or a list of objects with ``partition``, ``key``, ``rows`` and
        optionally ``etag`` (other fields are ignored); or one of these as JSON. Without a grain, ``{key: rows}`` is
        enough.
    :raises ConfigurationError: the value has none of these forms, or an object is named twice.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConfigurationError(f"The objects of {data_set.name} are not valid JSON.", hint=_FORM) from None
    by_partition: dict[str, list[DataFile]] = {}
    if isinstance(value, Mapping):
        if data_set.grain is None and all(isinstance(rows, int) for rows in value.values()):
            value = {WHOLE: value}
        for partition, objects in value.items():
            files = by_partition.setdefault(_partition(data_set, partition), [])
            if isinstance(objects, Mapping):
                files += [_file(data_set, key, rows) for key, rows in objects.items()]
            else:
                files += [_record(data_set, item) for item in _listed(data_set, objects)]
    else:
        for item in _listed(data_set, value):
            file = _record(data_set, item)
            by_partition.setdefault(_partition(data_set, item.get("partition", WHOLE)), []).append(file)
    keys = [file.key for files in by_partition.values() for file in files]
    if len(keys) != len(set(keys)):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigurationError(f"{twice} is named twice among the objects of {data_set.name}.")
    return {
        partition: tuple(sorted(files, key=lambda file: file.key)) for partition, files in sorted(by_partition.items())
    }


def plan_objects(
    client: S3Client,
    data_set: DataSet,
    bucket: str,
    objects: Mapping[str, Sequence[DataFile]],
    *,
    version: int,
    file_format: str | None = None,
) -> LoadPlan:
    """A plan of the objects as they are now, pinned by ETag. A partition without objects is published empty.

    :param version: orders the loads of a partition: a lower version does not replace a higher one.
    :param file_format: ``parquet`` or ``csv`` (with names); None: by the keys' suffixes.
    :raises ConfigurationError: s3() would not take a key literally, or the format is unknown.
    :raises ObjectError: an object is missing, has no ETag, or has another ETag than the named one.
    """
    files = [file for of_partition in objects.values() for file in of_partition]
    for file in files:
        if not is_plain_key(file.key):
            raise ConfigurationError(
                f"ClickHouse could read the key {file.key!r} as a pattern or as another key.",
                hint="Use only letters, digits and _ . = + , - in keys, with single slashes between folders.",
            )
    plain = _format(data_set, [file.key for file in files], file_format)
    with ThreadPoolExecutor(_HEADS) as pool:
        pinned = {file.key: file for file in pool.map(lambda file: _pin(client, bucket, file), files)}
    if plain == "Parquet":
        nulls = null_rows(
            lambda key: ObjectReader(client, bucket, key, pinned[key].size, pinned[key].etag),
            ((file.key, None) for file in files),
        )
        pinned = {key: replace(file, null_rows=nulls[key]) for key, file in pinned.items()}
    return LoadPlan(
        data_set,
        version,
        version,
        buckets=None,
        partitions=tuple(
            PartitionPlan(partition, current := tuple(pinned[file.key] for file in named), _digest(bucket, current))
            for partition, named in objects.items()
        ),
        source=PLAIN_OBJECTS,
        bucket=bucket,
        plain=plain,
    )


def objects_document(plan: LoadPlan, partition: PartitionPlan) -> dict[str, Any]:
    """What the ledger records of a partition of plain objects: enough for `plan_again`."""
    return {
        "data_set": json.loads(plan.data_set.to_json()),
        "bucket": plan.bucket,
        "format": next(name for name, kind in _FORMATS.items() if kind == plan.plain),
        "objects": [{"key": file.key, "rows": file.rows, "etag": file.etag} for file in partition.files],
    }


def plan_again(client: S3Client, partition: str, document: Mapping[str, Any], *, version: int) -> LoadPlan:
    """The plan of a partition that was published before, of exactly the same objects.

    :param document: what `objects_document` made of it.
    :raises ObjectError: an object is missing, or was changed since.
    """
    data_set = DataSet.from_json(json.dumps(document["data_set"]))
    files = tuple(_record(data_set, item) for item in document["objects"])
    return plan_objects(
        client, data_set, document["bucket"], {partition: files}, version=version, file_format=document["format"]
    )


def _listed(data_set: DataSet, value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise ConfigurationError(f"The objects of {data_set.name} are not given with key and rows.", hint=_FORM)
    return value


def _record(data_set: DataSet, item: Mapping[str, Any]) -> DataFile:
    return _file(data_set, item.get("key"), item.get("rows"), item.get("etag") or "")


def _file(data_set: DataSet, key: Any, rows: Any, etag: Any = "") -> DataFile:
    if not isinstance(key, str) or not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise ConfigurationError(f"An object of {data_set.name} has key {key!r} and {rows!r} rows.", hint=_FORM)
    return DataFile(key, rows, 0, None, str(etag).strip('"'))


def _partition(data_set: DataSet, partition: Any) -> str:
    if data_set.grain is None:
        if partition != WHOLE:
            raise ConfigurationError(
                f"Data set {data_set.name} has no grain, so it has no partition {partition!r}.", hint=_FORM
            )
        return WHOLE
    return data_set.window(str(partition)).partitions[0]


def _pin(client: S3Client, bucket: str, file: DataFile) -> DataFile:
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=file.key)
    except ClientError as e:
        raise ObjectError(
            f"s3://{bucket}/{file.key} cannot be read ({e.response['Error']['Code']}).",
            hint="Nothing was published. Check that its producer has written it, under this name.",
        ) from None
    etag = head.get("ETag", "").strip('"')
    if not etag:
        raise ObjectError(
            f"s3://{bucket}/{file.key} has no ETag, so a later change could not be detected.",
            hint="Nothing was published. The store's disk may have been full: free space, and upload the object again.",
        )
    if file.etag not in ("", etag):
        raise ObjectError(
            f"s3://{bucket}/{file.key} is not the object that was counted: its ETag is {etag}, not {file.etag}.",
            hint="Nothing was published. Count its rows again.",
        )
    return DataFile(file.key, file.rows, head["ContentLength"], None, etag)


def _digest(bucket: str, files: Sequence[DataFile]) -> int:
    """A digest of exactly these objects, as a positive number of 63 bits."""
    lines = [bucket, *(f"{file.key} {file.etag} {file.rows}" for file in files)]
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8], "big") >> 1


def _format(data_set: DataSet, keys: Sequence[str], file_format: str | None) -> PlainFormat:
    if file_format is None:
        suffixes = {match[1] if (match := _SUFFIX.search(key)) else key for key in keys} or {"parquet"}
        if len(suffixes) == 1:
            file_format = suffixes.pop()
    if file_format is None or file_format not in _FORMATS:
        raise ConfigurationError(
            f"The objects of {data_set.name} are neither all Parquet nor all CSV"
            f"{f' ({file_format} is unknown)' if file_format else ' by their names'}.",
            hint="Set file_format='parquet' or file_format='csv'.",
        )
    return _FORMATS[file_format]
