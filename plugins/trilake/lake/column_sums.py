"""Sums that show whether a reader sees the values that a job wrote, column by column.

A job computes them in Spark, and a publication computes them in ClickHouse. So a mistake of one reader or writer, or of
one set of types, is not on both sides. For each partition and column there are the number of values that are not NULL,
and the sum of the CRC32 (the one of zlib) of each value's canonical bytes.

Canonical bytes of a value:

- an integer: its decimal digits; a decimal: its decimal digits, without zeros at the end of the fraction
- a boolean: ``true`` or ``false``
- a float or double: the decimal digits of its IEEE 754 bits, as a double, as a signed integer. Every NaN is the one
  that Java's ``doubleToLongBits`` gives. -0.0 differs from 0.0.
- a date: days since 1970-01-01; a timestamp: microseconds since 1970-01-01 UTC, both in decimal digits
- a string or binary: its bytes
- an array: the number of its elements, ``[``, a piece for each element, ``]``; a map: the same with two pieces for each
  entry, in the order of the entries; a struct: ``(``, a piece for each field in the order of their names, ``)``
- a piece: ``N`` for NULL, else the number of the value's bytes, ``:``, its bytes

So a wider type of the same value has the same bytes. A column with binary inside of another type has no sum: ClickHouse
cannot tell binary from string there.

The job writes the sums to an object of the lake's bucket, and the snapshot's properties name the object. Its key
contains the SHA-256 of its content.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import CountMismatchError
from trilake.lake.data_set import LAKE_BUCKET

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

SUMS_PROPERTY = "trilake.sums"
# Below this prefix and not in a table's folder, where the removal of orphan files would find them.
_PREFIX = "audit"


class SumsError(CountMismatchError):
    """The object with the sums of a commit is missing, or is not the one that the commit wrote."""


@dataclass(frozen=True)
class ColumnSum:
    """:param values: how many values are not NULL.
    :param crc32: the sum of their CRC32, modulo 2^64.
    """

    values: int
    crc32: int


# Field id of Iceberg -> sum. None: the commit knew the column, and has no sum of it.
SumsById = Mapping[int, ColumnSum | None]


def prefix_of(table: str) -> str:
    """Where the sums of a table are in the lake's bucket. `table` is ``namespace.table``."""
    return f"{_PREFIX}/{table}/"


def write(client: S3Client, table: str, by_partition: Mapping[str, SumsById]) -> str:
    """Write the sums of one commit. Returns the key, which the snapshot's property has."""
    document = {
        partition: {str(field): [total.values, total.crc32] if total else None for field, total in sums.items()}
        for partition, sums in by_partition.items()
    }
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    # A key of this commit alone: maintenance may remove the same content of an earlier commit at this moment.
    key = f"{prefix_of(table)}{uuid.uuid4().hex}-{hashlib.sha256(content).hexdigest()}.json"
    client.put_object(Bucket=LAKE_BUCKET, Key=key, Body=content, ContentType="application/json")
    return key


def parse(key: str, content: bytes) -> dict[str, SumsById]:
    """:raises SumsError: the content is not the one that the key names."""
    if not key.endswith(f"-{hashlib.sha256(content).hexdigest()}.json"):
        raise SumsError(f"s3://{LAKE_BUCKET}/{key} was changed after its commit.", hint="Run the window again.")
    return {
        partition: {int(field): ColumnSum(*total) if total else None for field, total in sums.items()}
        for partition, sums in json.loads(content).items()
    }


def sums_at(table: Table, snapshot: Snapshot, partitions: list[str], *, counts_property: str) -> dict[str, SumsById]:
    """The sums of each partition as it is at a snapshot. A partition without sums is left out.

    The sums of a partition are those of the last commit that wrote it. Rewrites of small files keep all rows. After a
    snapshot of another program, or if an older snapshot has expired, the sums of a partition are unknown.

    :param counts_property: the property that names the partitions of a commit.
    :raises SumsError: the object with the sums is missing or was changed.
    """
    found: dict[str, SumsById] = {}
    wanted, current = set(partitions), snapshot
    while wanted:
        properties = current.summary.additional_properties if current.summary else {}
        operation = str(getattr(current.summary, "operation", "")).rsplit(".", 1)[-1].lower()
        if operation != "replace":
            if counts_property not in properties:
                break
            written = wanted & set(json.loads(properties[counts_property]))
            if written and (key := properties.get(SUMS_PROPERTY)):
                sums = _read(table, key)
                found |= {partition: sums[partition] for partition in written if partition in sums}
            wanted -= written
        parent = table.snapshot_by_id(current.parent_snapshot_id) if current.parent_snapshot_id else None
        if parent is None:
            break
        current = parent
    return found


def _read(table: Table, key: str) -> dict[str, SumsById]:
    try:
        with table.io.new_input(f"s3a://{LAKE_BUCKET}/{key}").open() as file:
            return parse(key, file.read())
    except FileNotFoundError:
        raise SumsError(
            f"s3://{LAKE_BUCKET}/{key}, the sums of a commit, does not exist.", hint="Run the window again."
        ) from None
