"""The sums of `trilake.lake.column_sums`, computed by ClickHouse, and compared with those of the job."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import quote_name, quote_text
from trilake.clickhouse.publication.columns import AuditError, Columns
from trilake.clickhouse.publication.pull import STRICT
from trilake.clickhouse.publication.types import bare, holds_null, split_fields, split_types
from trilake.lake.column_sums import ColumnSum

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# What Java's doubleToLongBits gives for every NaN
_NAN = 9_221_120_237_041_090_560


def table_sums(client: Client, table: str, columns: Columns, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Column -> (values that are not NULL, sum of their CRC32 modulo 2^64) of a table, in one query.

    :param names: the columns to sum.
    """
    typed = [(name, kind) for name, kind in zip(columns.names, columns.types, strict=True) if name in names]
    if not typed:
        return {}
    listed = []
    for name, kind in typed:
        value = quote_name(name)
        listed += [f"count({value})", f"sum(CRC32({canonical(value, kind)}))"]
    row = client.query(f"SELECT {', '.join(listed)} FROM {table}", settings=STRICT).result_rows[0]
    return {name: (int(row[2 * n]), int(row[2 * n + 1] or 0)) for n, (name, _) in enumerate(typed)}


def canonical(value: str, kind: str) -> str:
    """An expression of type (Nullable) String: the canonical bytes of a value of this ClickHouse type."""
    inner = bare(kind)
    if inner in ("Float32", "Float64"):
        bits = f"reinterpretAsInt64(assumeNotNull(toFloat64({value})))"
        text = f"if(isNull({value}), NULL, if(isNaN({value}), toString({_NAN}), toString({bits})))"
    elif inner in ("Date", "Date32"):
        text = f"toString(toInt32({value}))"
    elif inner.startswith("DateTime64("):
        text = f"toString(toUnixTimestamp64Micro({value}))"
    elif inner.startswith("Array("):
        element = inner[len("Array(") : -1]
        pieces = f"arrayMap(e{_depth(value)} -> {_piece(f'e{_depth(value)}', element)}, {value})"
        text = f"concat(toString(length({value})), '[', arrayStringConcat({pieces}), ']')"
    elif inner.startswith("Map("):
        key_type, value_type = split_types(inner[len("Map(") : -1])
        key, item = f"e{_depth(value)}", f"f{_depth(value)}"
        entry = f"concat({_piece(key, key_type)}, {_piece(item, value_type)})"
        pieces = f"arrayMap(({key}, {item}) -> {entry}, mapKeys({value}), mapValues({value}))"
        text = f"concat(toString(length({value})), '[', arrayStringConcat({pieces}), ']')"
    elif inner.startswith("Tuple("):
        fields = split_fields(inner[len("Tuple(") : -1])
        listed = [_piece(f"tupleElement({value}, {quote_text(name)})", fields[name]) for name in sorted(fields)]
        text = f"concat('(', {', '.join(listed)}, ')')"
    elif inner == "String":
        text = f"CAST({value}, 'Nullable(String)')" if holds_null(kind) else f"CAST({value}, 'String')"
    else:
        text = f"toString({value})"
    return text


def _piece(value: str, kind: str) -> str:
    text = canonical(value, kind)
    piece = f"concat(toString(length({text})), ':', {text})"
    return f"ifNull({piece}, 'N')" if holds_null(kind) else piece


def _depth(value: str) -> int:
    """A number for the names of a lambda's arguments that those around it do not use."""
    return max(map(int, re.findall(r"\b[ef](\d+)\b", value)), default=-1) + 1


def compare(where: str, expected: Mapping[str, ColumnSum], found: Sequence[Mapping[str, tuple[int, int]]]) -> None:
    """Compare the job's sums of a partition with the sums of all shards.

    :param expected: by the table's column.
    :raises AuditError: names the first column whose values differ.
    """
    for name, total in expected.items():
        values = sum(shard[name][0] for shard in found if name in shard)
        crc32 = sum(shard[name][1] for shard in found if name in shard) % 2**64
        if (values, crc32) == (total.values, total.crc32):
            continue
        problem = (
            f"the job wrote {total.values} values that are not NULL, ClickHouse has {values}"
            if values != total.values
            else f"ClickHouse has {values} values as the job wrote, but not the same ones"
        )
        raise AuditError(
            f"{where}, column {name}: {problem}.",
            hint="Nothing was published. An array, map or struct that is NULL cannot be kept in ClickHouse: write an "
            "empty one in the job. Otherwise compare the types of the column in the lake and in ClickHouse.",
        )
