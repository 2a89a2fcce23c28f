"""Find arrays, maps and structs that are NULL in Parquet files.

ClickHouse has no such values: it reads them as empty ones, without an error. A job's sums show the difference, see
`trilake.lake.column_sums`. This module looks into files of columns without sums, and into plain objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import FileMetaData
    from pyiceberg.schema import Schema

# Files at a time, and rows that are in memory of each.
_PARALLEL, _ROWS = 4, 10_000


def nested_columns(schema: Schema) -> list[str]:
    """The columns that are arrays, maps or structs."""
    return [field.name for field in schema.fields if not field.field_type.is_primitive]


def null_rows(
    opened: Callable[[str], Any], files: Iterable[tuple[str, Mapping[str, str] | None]]
) -> dict[str, dict[str, int] | None]:
    """For each file: column -> number, from 1, of the first row with an array, map or struct that is NULL. It may be
    inside of another one. A column without such a row is left out. None: the file is not Parquet.

    :param opened: opens a file by its path, as pyarrow reads files.
    :param files: path, and the columns to look into with their names in the file; None: all nested ones.
    """
    listed = [(path, names) for path, names in files if names is None or names]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        found = pool.map(lambda file: _null_rows(opened, *file), listed)
        return dict(zip((path for path, _ in listed), found, strict=True))


def _null_rows(opened: Callable[[str], Any], path: str, names: Mapping[str, str] | None) -> dict[str, int] | None:
    import pyarrow as pa
    from pyarrow import parquet

    found: dict[str, int] = {}
    with opened(path) as content:
        try:
            file = parquet.ParquetFile(content)
        except pa.ArrowInvalid:
            return None
        if names is None:
            names = {field.name: field.name for field in file.schema_arrow if pa.types.is_nested(field.type)}
        wanted = {name: inside for name, inside in names.items() if _may_have_nulls(file.metadata, inside)}
        row = 0
        for batch in file.iter_batches(_ROWS, columns=sorted(wanted.values())) if wanted else ():
            for name, inside in list(wanted.items()):
                column = batch.column(batch.schema.get_field_index(inside))
                holds = _has_null(column.type)
                at = next((at for at, value in enumerate(column.to_pylist()) if holds(value)), None)
                if at is not None:
                    found[name] = row + at + 1
                    del wanted[name]
            row += batch.num_rows
    return found


def _may_have_nulls(footer: FileMetaData, column: str) -> bool:
    """Whether the statistics leave it open. They count a list that is NULL, one that is empty, and an element alike."""
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for at in range(group.num_columns):
            chunk = group.column(at)
            if chunk.path_in_schema.split(".", 1)[0] == column and (
                chunk.statistics is None or not chunk.statistics.has_null_count or chunk.statistics.null_count
            ):
                return True
    return False


def _has_null(kind: pyarrow.DataType) -> Callable[[Any], bool]:
    """A function: whether a value of a nested type is NULL, or has one inside that is."""
    import pyarrow as pa

    if pa.types.is_map(kind):
        key, item = _has_null(kind.key_type), _has_null(kind.item_type)
        return lambda value: value is None or any(key(one) or item(other) for one, other in value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        element = _has_null(kind.value_type)
        return lambda value: value is None or any(map(element, value))
    if pa.types.is_struct(kind):
        fields = [(field.name, _has_null(field.type)) for field in kind]
        return lambda value: value is None or any(holds(value[name]) for name, holds in fields)
    return lambda value: False
