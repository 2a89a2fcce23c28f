"""What a commit does with columns that differ from the table's: nothing, an exact change of the table, or a refusal."""

from __future__ import annotations

import pytest
from pyspark.sql.types import StructType, _parse_datatype_json_string

from trilake.errors import ConfigurationError
from trilake.spark.evolution import ColumnChangedError, changes, check_types

_FIELD = '{{"name": "{}", "type": {}, "nullable": true, "metadata": {{}}}}'
SIMPLE = ("int", "bigint", "float", "double", "string", "binary", "boolean", "date", "timestamp", "timestamp_ntz")
_JSON = {"int": '"integer"', "bigint": '"long"'}


def kind(name: str) -> str:
    """A type as JSON: simple, ``decimal(p,s)``, ``array:T`` or ``struct:a=T;b=T``."""
    if name.startswith("array:"):
        return f'{{"type": "array", "elementType": {kind(name[6:])}, "containsNull": true}}'
    if name.startswith("map:"):
        inner = kind(name[4:])
        return f'{{"type": "map", "keyType": "string", "valueType": {inner}, "valueContainsNull": true}}'
    if name.startswith("struct:"):
        fields = ", ".join(_FIELD.format(*_pair(part)) for part in name[7:].split(";"))
        return f'{{"type": "struct", "fields": [{fields}]}}'
    return _JSON.get(name, f'"{name}"')


def _pair(part: str) -> tuple[str, str]:
    name, _, inner = part.partition("=")
    return name, kind(inner)


def schema(**columns: str) -> StructType:
    fields = ", ".join(_FIELD.format(name, kind(of)) for name, of in columns.items())
    made = _parse_datatype_json_string(f'{{"type": "struct", "fields": [{fields}]}}')
    assert isinstance(made, StructType)
    return made


def between(table: str, rows: str) -> list[str]:
    made = changes(schema(k="int", v=rows), schema(k="int", v=table), name="curated.t")
    return [change.sql for change in made]


@pytest.mark.parametrize("name", [*SIMPLE, "decimal(9,2)", "array:int", "map:double", "struct:a=int;b=array:string"])
def test_equal_types_need_nothing(name: str) -> None:
    assert between(name, name) == []


@pytest.mark.parametrize(
    ("table", "rows"),
    [("bigint", "int"), ("double", "float"), ("decimal(10,2)", "decimal(9,2)"), ("decimal(10,2)", "decimal(8,1)")],
)
def test_a_narrower_type_fits_as_it_is(table: str, rows: str) -> None:
    assert between(table, rows) == []


@pytest.mark.parametrize(
    ("table", "rows", "sql"),
    [
        ("int", "bigint", "ALTER COLUMN `v` TYPE bigint"),
        ("float", "double", "ALTER COLUMN `v` TYPE double"),
        ("decimal(9,2)", "decimal(12,2)", "ALTER COLUMN `v` TYPE decimal(12,2)"),
        ("array:int", "array:bigint", "ALTER COLUMN `v`.element TYPE bigint"),
        ("map:int", "map:bigint", "ALTER COLUMN `v`.value TYPE bigint"),
        ("struct:a=int", "struct:a=bigint", "ALTER COLUMN `v`.`a` TYPE bigint"),
        ("struct:a=int", "struct:a=int;b=string", "ADD COLUMN `v`.`b` string"),
    ],
)
def test_a_table_grows_as_iceberg_allows(table: str, rows: str, sql: str) -> None:
    assert between(table, rows) == [sql]


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("int", "double"),
        ("bigint", "double"),
        ("double", "bigint"),
        ("date", "timestamp"),
        ("timestamp", "date"),
        ("timestamp", "timestamp_ntz"),
        ("string", "int"),
        ("int", "string"),
        ("boolean", "string"),
        ("int", "boolean"),
        ("decimal(9,2)", "decimal(9,3)"),
        ("decimal(9,2)", "decimal(12,3)"),
        ("decimal(20,0)", "decimal(9,2)"),
        ("bigint", "decimal(20,0)"),
        ("array:double", "array:int"),
        ("map:int", "map:string"),
        ("struct:a=int;b=int", "struct:a=int"),
        ("struct:a=int", "struct:a=double"),
        ("array:int", "int"),
        ("int", "void"),
    ],
)
def test_what_could_change_a_value_is_refused_with_both_types(table: str, rows: str) -> None:
    with pytest.raises(ColumnChangedError, match=r"curated\.t: .*v.*Nothing was written"):
        between(table, rows)


def test_a_column_that_the_rows_lack_is_refused_and_a_new_one_is_added() -> None:
    with pytest.raises(ColumnChangedError, match="the rows have no column v"):
        changes(schema(k="int"), schema(k="int", v="int"), name="t")
    (added,) = changes(schema(k="int", v="int"), schema(k="int"), name="t")
    assert (added.sql, added.text) == ("ADD COLUMN `v` int", "v: added as int")


def test_a_replaced_column_is_dropped_and_added_again_and_a_key_is_not_replaced() -> None:
    rows, table = schema(k="int", v="double"), schema(k="int", v="int")
    assert [change.sql for change in changes(rows, table, name="t", replaced=["v"])] == [
        "DROP COLUMN `v`",
        "ADD COLUMN `v` double",
    ]
    assert [change.sql for change in changes(schema(k="int"), table, name="t", replaced=["v"])] == ["DROP COLUMN `v`"]
    with pytest.raises(ColumnChangedError, match="decides the partition or the shard"):
        changes(rows, table, name="t", replaced=["k"], kept=["k"])
    with pytest.raises(ConfigurationError, match="Write a list of columns"):
        changes(rows, table, name="t", replaced="v")


def test_a_column_that_fits_is_not_replaced_again() -> None:
    """So all runs of a job can name it, and a run after a kill between DROP and ADD goes on."""
    rows = schema(k="int", v="double")
    assert changes(rows, rows, name="t", replaced=["v", "gone"]) == []
    assert [change.sql for change in changes(rows, schema(k="int"), name="t", replaced=["v"])] == [
        "ADD COLUMN `v` double"
    ]
    wider = changes(rows, schema(k="int", v="float"), name="t", replaced=["v"])
    assert [change.sql for change in wider] == ["ALTER COLUMN `v` TYPE double"]


def test_names_inside_of_a_type_are_quoted() -> None:
    (added,) = changes(schema(**{"k": "int", "v": "struct:my field=int"}), schema(k="int"), name="t")
    assert added.sql == "ADD COLUMN `v` struct<`my field`: int>"


@pytest.mark.parametrize("name", ["void", "array:void", "struct:a=variant"])
def test_a_type_that_iceberg_lacks_is_named(name: str) -> None:
    with pytest.raises(ColumnChangedError, match="column v is"):
        check_types(schema(v=name), "t")
