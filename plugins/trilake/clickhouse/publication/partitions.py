"""Whether a table's PARTITION BY makes exactly the partitions that a data set is published by.

A publication replaces a partition of ClickHouse by its id, such as ``201302``. So all days of a partition must have
that id. ClickHouse makes the id from the value of PARTITION BY: a Date is written as YYYYMMDD, an integer as it is, and
any other value as its raw number or as a hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta

from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.columns import Columns
from trilake.errors import ConfigurationError
from trilake.lake.data_set import DataSet

_UNKNOWN_IDENTIFIER = 47
_INTEGER = re.compile(r"U?Int\d+")
_ONE_ELEMENT = re.compile(r"Tuple\((.*)\)")


class PartitionByError(ConfigurationError):
    """The table's PARTITION BY makes other partitions than its data set has. Nothing was published."""


def check_partition_by(cluster: Cluster, data_set: DataSet, columns: Columns, partitions: Iterable[str]) -> None:
    """Ask the server for the ids of the first and the last day of each partition.

    :raises PartitionByError: an id differs from `DataSet.partition_id`. The message names the expression.
    """
    table = quote_text(data_set.local_table)
    shard = cluster.shards[0]
    key = cluster.on_shard(
        shard,
        Statement(
            f"SELECT partition_key FROM system.tables WHERE database = {quote_text(shard.database)} AND name = {table}"
        ),
    )[0][0].replace("tuple()", "")
    if data_set.grain is None:
        if key:
            raise _refused(
                data_set, key, "it is a dimension table, which is replaced as a whole", "Remove PARTITION BY."
            )
        return
    if not key:
        raise _refused(data_set, key, f"the data set is published by {data_set.grain}", _advice(data_set))
    days: dict[str, str] = {}
    for partition in partitions:
        window = data_set.window(partition)
        for day in (window.start, window.stop - timedelta(days=1)):
            days[day.isoformat()] = data_set.partition_id(partition)
    kind = columns.types[columns.names.index(data_set.date)] if data_set.date in columns.names else ""
    if not kind:
        raise _refused(data_set, key, f"the table has no column {data_set.date} that can be filled", _advice(data_set))
    for name, made, held in _ids(cluster, data_set, key, kind, days):
        if held != name:
            raise PartitionByError(
                f"Column {data_set.date} of {data_set.local_table} is {kind}, which cannot hold {name}. Nothing was "
                "published.",
                hint=f"Create the table with {data_set.date} as Date32.",
            )
        if made != days[name]:
            what = f"{name} is in its partition {made}, and not in {days[name]}" if made else f"{name} has another id"
            raise _refused(data_set, key, what, _advice(data_set))


def ttl_of(cluster: Cluster, data_set: DataSet) -> str:
    """The table's TTL, which may remove rows; empty: it has none."""
    shard = cluster.shards[0]
    sql = (
        "SELECT extract(engine_full, ' TTL (.*?)(?: SETTINGS |$)') FROM system.tables "
        f"WHERE database = {quote_text(shard.database)} AND name = {quote_text(data_set.local_table)}"
    )
    rows = cluster.on_shard(shard, Statement(sql))
    return str(rows[0][0]) if rows else ""


def _ids(cluster: Cluster, data_set: DataSet, key: str, kind: str, days: Iterable[str]) -> list[tuple[str, str, str]]:
    """Each day with the id of its partition, and the day that the column holds. An empty id stands for a hash or a raw
    number.
    """
    date = quote_name(data_set.date or "")
    listed = ", ".join(f"toDate32({quote_text(day)})" for day in days)
    sql = (
        "SELECT toString(`_day`), toTypeName(`_key`), toString(`_key`), toString(toDate32(`_held`)) FROM "
        f"(SELECT `_day`, {key} AS `_key`, {date} AS `_held` FROM "
        f"(SELECT `_day`, CAST(`_day`, {quote_text(kind)}) AS {date} FROM (SELECT arrayJoin([{listed}]) AS `_day`)))"
    )
    try:
        rows = cluster.on_shard(cluster.shards[0], Statement(sql))
    except ClickHouseError as e:
        if e.code != _UNKNOWN_IDENTIFIER:
            raise
        what = f"it needs other columns than {data_set.date}"
        raise _refused(data_set, key, what, _advice(data_set)) from None
    return [(day, _id(made_of, text), held) for day, made_of, text, held in rows]


def _id(kind: str, text: str) -> str:
    if (match := _ONE_ELEMENT.fullmatch(kind)) and "," not in match[1]:
        kind, text = match[1], text.strip("()").strip("'")
    if kind == "Date":
        return text.replace("-", "")
    return text if _INTEGER.fullmatch(kind) else ""


def _refused(data_set: DataSet, key: str, what: str, hint: str) -> PartitionByError:
    expression = f"PARTITION BY {key}" if key else "no PARTITION BY"
    return PartitionByError(
        f"Table {data_set.local_table} has {expression}, but {what}. Nothing was published.", hint=hint
    )


def _advice(data_set: DataSet) -> str:
    date = data_set.date or ""
    works = f"toYYYYMM({date})" if data_set.grain == "month" else f"toYYYYMMDD({date})"
    also = f", or PARTITION BY {date} if it is a Date" if data_set.grain == "day" else ""
    return (
        f"Create the table with PARTITION BY {works}{also}. The partition of an existing table cannot be altered: drop "
        "the table on every shard, apply the migrations, and publish its partitions again."
    )
