"""Which columns a data file of an Iceberg table has, by field id.

Iceberg identifies a column by its field id; ClickHouse reads a Parquet file by name. After a column was dropped and
added again, renamed or swapped with another one, the same name means another column in older files. The ids are in each
file's footer. Iceberg's manifests do not show them: they are merged under the current schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from trilake.errors import TrilakeError

if TYPE_CHECKING:
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.types import IcebergType

# Requests for footers at a time. Each is two small reads.
_PARALLEL = 8


class UnreadableColumnsError(TrilakeError):
    """ClickHouse cannot read the columns of a file as Iceberg means them."""


def never_changed(table: Table) -> bool:
    """Whether the table has had one schema since it was created: then the names in all its files are the ids."""
    return len(table.metadata.schemas) == 1 and table.schema().schema_id == 0


def names_in_files(table: Table, schema: Schema, paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each file: column of `schema` -> its name in the file. A column that the file does not have is left out.

    :param paths: of data files of the table, in Parquet.
    :raises UnreadableColumnsError: a file has no field ids, or a field inside a column was changed after the file was
        written.
    """
    listed = list(paths)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return dict(zip(listed, pool.map(lambda path: _names(table, schema, path), listed), strict=True))


def _names(table: Table, schema: Schema, path: str) -> dict[str, str]:
    from pyarrow import parquet
    from pyiceberg.io.pyarrow import pyarrow_to_schema

    with table.io.new_input(path).open() as file:
        footer = parquet.ParquetFile(file).schema_arrow
    if any(field.metadata is None or b"PARQUET:field_id" not in field.metadata for field in footer):
        raise UnreadableColumnsError(
            f"{path} has no field ids, and the columns of its table were changed. So its columns are unknown.",
            hint="Rewrite the file: run the window of its partition again.",
        )
    in_file = {field.field_id: field for field in pyarrow_to_schema(footer).fields}
    names = {}
    for field in schema.fields:
        if (found := in_file.get(field.field_id)) is None:
            continue
        if _inner(found.field_type) != _inner(field.field_type):
            raise UnreadableColumnsError(
                f"{path}: a field inside of column {field.name} was added, dropped, renamed or moved after this file "
                "was written.",
                hint="Run the window of its partition again, so that the file has the table's fields.",
            )
        names[field.name] = found.name
    return names


def _inner(kind: IcebergType) -> list[tuple[int, str]]:
    """Ids and names of the fields inside of a type, in order."""
    from pyiceberg.types import ListType, MapType, StructType

    match kind:
        case StructType():
            return [pair for field in kind.fields for pair in ((field.field_id, field.name), *_inner(field.field_type))]
        case ListType():
            return [(kind.element_id, "element"), *_inner(kind.element_type)]
        case MapType():
            return [(kind.key_id, "key"), *_inner(kind.key_type), (kind.value_id, "value"), *_inner(kind.value_type)]
    return []


def same(names: Mapping[str, str], columns: Iterable[str]) -> bool:
    """Whether a file has all these columns by their own names."""
    return all(names.get(column) == column for column in columns)
