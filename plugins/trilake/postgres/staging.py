"""Rows on their way to a table of PostgreSQL: they are staged as text, compared, and only then converted.

Both writers of marts (queries of ClickHouse, frames of Spark) write each value as text into a staging table whose
columns are all of type text. So PostgreSQL converts no value on arrival. Before the table changes, each staged text is
compared with what the table's column makes of it: a value that PostgreSQL would round, cut or refuse stops the write,
and the error names the column, the row and the value. `staged_columns` compares the types before the first row is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError
from trilake.postgres.columns import TableColumn, check_names
from trilake.postgres.connection import PostgresError, quote

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

ROW = "trilake_row"
"""The place of a staged row: PostgreSQL's `ctid`."""
PROBLEM = "trilake_problem"
"""The staging column of a writer's own finding: ``number of the column:reason``. NULL: the row has no such value."""

_SHOWN = 80  # characters of a value in an error
_INTEGERS = ("int2", "int4", "int8")
_TEXTS = ("text", "varchar", "bpchar", "name", "citext")
_JSON = ("json", "jsonb")
_FLOAT_KINDS = ("float4", "float8")
# SQL: whether the converted value {c} equals the staged text {v}. Empty: it does whenever PostgreSQL can read the text.
_READ = ""
_SAME_TEXT = '{c}::text COLLATE "C" = {v}'
_SAME_JSON = "{v} IS JSON WITH UNIQUE KEYS"
# The numbers of jsonb have no negative zero. Texts may look like one, so they are removed first.
_SAME_JSONB = (
    _SAME_JSON
    + r""" AND regexp_replace({v}, '"(?:[^"\\]|\\.)*"', '', 'g') !~ '(?<![eE])-0(\.0+)?([eE][-+]?\d+)?(?![\d.])'"""
)
# integers and numerics have no negative zero
_SIGNED = "{v} NOT IN ('-0', '-0.0')"


def _same(*types: str) -> dict[str, str]:
    return {name: f"{{c}}::{name} = {{v}}::{name}" for name in types}


_WHOLE = {
    **dict.fromkeys((*_INTEGERS, *_JSON), _READ),
    **_same("numeric"),
    # up to here a float has an equal of each integer
    "float4": f"abs({{v}}::numeric) <= {2**24}",
    "float8": f"abs({{v}}::numeric) <= {2**53}",
}
_FLOAT = {
    **dict.fromkeys(_INTEGERS, _SIGNED),
    "json": _READ,
    "jsonb": _SIGNED,
    "numeric": f"{{c}}::numeric = {{v}}::numeric AND {_SIGNED}",
    **dict.fromkeys(_FLOAT_KINDS, "{c}::float8 = {v}::float8"),
}
# Kind of values -> type of PostgreSQL (`TableColumn.base`) -> how they are compared. What is not here is refused.
CONVERSIONS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("int2", "int4", "int8", "integer"), _WHOLE),
    "decimal": {
        **dict.fromkeys((*_INTEGERS, *_JSON), _READ),
        **_same("numeric"),
        # a float is the nearest one, if it is written with the decimal's own digits
        **dict.fromkeys(_FLOAT_KINDS, "{c}::text::numeric = {v}::numeric"),
    },
    **dict.fromkeys(_FLOAT_KINDS, _FLOAT),
    "boolean": dict.fromkeys(("bool", *_JSON), _READ),
    "date": dict.fromkeys(("date", "timestamp", "timestamptz"), _READ),
    "moment": _same("timestamptz", "timestamp"),
    "zoned": _same("timestamptz"),
    "local": _same("timestamp"),
    "time": _same("time", "interval"),
    "uuid": {"uuid": _READ},
    "address": dict.fromkeys(("inet", "cidr"), "{c}::inet = {v}::inet"),
    "bytes": {"bytea": _READ},
    "json": {"json": _SAME_JSON, "jsonb": _SAME_JSONB},
    "text": {
        "json": _SAME_JSON,
        "jsonb": _SAME_JSONB,
        "bool": "{c}::text = {v}",
        **dict.fromkeys((*_TEXTS, "enum"), _SAME_TEXT),
    },
}
for _kind in set(CONVERSIONS) - {"text", "json", "bytes"}:
    CONVERSIONS[_kind] = {**CONVERSIONS[_kind], **dict.fromkeys(_TEXTS, _SAME_TEXT)}
# A text is what PostgreSQL reads as any other type, if PostgreSQL writes it in the same way.
_SAME_OUTPUT = "format('%s', {c}) = {v}"

_SAME_TEXTS = '({c}::text[])::text COLLATE "C" = ({v}::text[])::text'
_FLOAT_ARRAYS = dict.fromkeys(("float4[]", "float8[]"), "{c}::float8[] = {v}::float8[]")
_WHOLE_ARRAYS = {**dict.fromkeys([f"{name}[]" for name in _INTEGERS], _READ), **_same("numeric[]")}
# The same for the elements of arrays.
ARRAY_CONVERSIONS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("int2", "int4", "int8", "integer"), _WHOLE_ARRAYS),
    "decimal": _same("numeric[]"),
    **dict.fromkeys(_FLOAT_KINDS, _FLOAT_ARRAYS),
    "boolean": {"bool[]": _READ},
    "date": dict.fromkeys(("date[]", "timestamp[]"), _READ),
    "moment": _same("timestamptz[]", "timestamp[]"),
    "zoned": _same("timestamptz[]"),
    "local": _same("timestamp[]"),
    "time": _same("time[]"),
    "uuid": {"uuid[]": _READ},
    "address": {"inet[]": _READ},
    "bytes": {"bytea[]": _READ},
    "text": dict.fromkeys([f"{name}[]" for name in ("enum", "uuid", "date", "bool", *_INTEGERS)], _SAME_TEXTS),
}
for _kind in set(ARRAY_CONVERSIONS) - {"bytes"}:
    _texts = dict.fromkeys([f"{name}[]" for name in _TEXTS], _SAME_TEXTS)
    ARRAY_CONVERSIONS[_kind] = {**ARRAY_CONVERSIONS[_kind], **_texts}

# Kinds of values, and types of PostgreSQL that have an equal of every value. No value is compared.
_EQUAL = {
    "boolean": ("bool",),
    "text": ("text",),
    "uuid": ("uuid",),
    "date": ("date",),
    "bytes": ("bytea",),
    "int2": ("int2", "int4", "int8"),
    "int4": ("int4", "int8"),
    "int8": ("int8",),
    "float4": ("float4", "float8"),
    "float8": ("float8",),
}


class ValueRefusedError(PostgresError):
    """A column of a table cannot hold a value exactly. Nothing was written."""


@dataclass(frozen=True)
class Kind:
    """What the values of a source's column are, whatever the source calls the type.

    :param name: ``int2``, ``int4``, ``int8``, ``integer`` (of any size), ``decimal``, ``float4``, ``float8``,
        ``boolean``, ``text``, ``bytes``, ``date``, ``moment`` (a point in time), ``zoned`` (one that is shown in a zone
        other than UTC), ``local`` (date and time without a zone), ``time``, ``uuid``, ``address``, ``json``, ``null``,
        or ``unknown`` (PostgreSQL has no equal).
    :param type: the source's name of the type, for errors.
    :param array: whether it is an array of such values. Arrays can be nested.
    """

    name: str
    type: str
    array: bool = False


@dataclass(frozen=True)
class StagedColumn:
    """A column of a staging table, and how it becomes the column of the table.

    :param input: SQL: the text that PostgreSQL reads as the column's type.
    :param same: SQL: whether the converted value equals the staged one. Empty: it does whenever PostgreSQL can read it.
    :param certain: no value can change, so none is compared.
    """

    column: TableColumn
    kind: Kind
    input: str
    same: str
    certain: bool

    @property
    def value(self) -> str:
        """SQL: the staged text as the column's type."""
        return f"({self.input})::{self.column.type}"

    @property
    def wrong(self) -> str:
        """SQL: whether the table's column cannot hold the staged value; empty: it always can."""
        name, conditions = quote(self.column.name), []
        if self.column.not_null:
            conditions.append(f"{name} IS NULL")
        if not self.certain:
            same = f"coalesce({self.same}, false)" if self.same else "true"
            conditions.append(
                f"{name} IS NOT NULL AND NOT CASE WHEN pg_input_is_valid({self.input}, {_text(self.column.type)}) "
                f"THEN {same} ELSE false END"
            )
        return " OR ".join(conditions)


def staged_columns(table: str, columns: Mapping[str, TableColumn], given: Mapping[str, Kind]) -> list[StagedColumn]:
    """How the columns of rows become columns of a table.

    :param given: the rows' columns by name, in their order.
    :raises ConfigurationError: names each column whose type the table's column does not hold. No row was read.
    """
    check_names(table, columns, list(given))
    made, problems = [], []
    for name, kind in given.items():
        column = columns[name]
        rule = _rule(kind, column)
        if rule is None:
            problems.append(f"column {name} is {kind.type} in the rows and {column.type} in the table{_advice(kind)}")
        else:
            made.append(StagedColumn(column, kind, *rule))
    if problems:
        raise ConfigurationError(
            f"{table}: {'; '.join(problems)}. Nothing was written.",
            hint="Cast the column in the query or the job, or change the table's column in a step in sql/postgres/. "
            "docs/reference/provider.md lists which types fit.",
        )
    return made


def _rule(kind: Kind, column: TableColumn) -> tuple[str, str, bool] | None:
    """`input`, `same` and `certain` of a pair of types; None: no such conversion."""
    name = quote(column.name)
    if kind.name == "null":
        return name, _READ, False
    if kind.array:
        same = ARRAY_CONVERSIONS.get(kind.name, {}).get(f"{column.element}[]")
    else:
        same = CONVERSIONS.get(kind.name, {}).get(column.base, _SAME_OUTPUT if kind.name == "text" else None)
    if same is None:
        return None
    same = same.replace("{c}", f"{name}::{column.type}").replace("{v}", name)
    # 1.0 is 1, so PostgreSQL has to read it without the fraction
    fraction = kind.name in ("decimal", *_FLOAT_KINDS) and column.base in _INTEGERS
    # a length or a precision in the type, and a domain, can refuse or change values
    plain = "(" not in column.type and not column.domain and not kind.array
    certain = plain and column.base in _EQUAL.get(kind.name, ())
    return f"trim_scale({name}::numeric)::text" if fraction else name, same, certain


def _advice(kind: Kind) -> str:
    advice = {
        "zoned": " (a timestamp without a zone would shift it: write timestamptz, or toTimeZone(column, 'UTC'))",
        "moment": " (toDate makes a day of it)",
        "json": " (toJSONString makes a text of it)",
        "local": " (it has no zone: give it one)",
    }
    return advice.get(kind.name, "") if not kind.array else ""


# --- the staging table


def create_staging(cursor: Cursor, name: str, columns: Sequence[str], *, create: str, more: str = "") -> None:
    """Create a staging table: a text for each column, and `PROBLEM`. It has no constraints.

    :param create: such as ``CREATE TEMP TABLE``.
    :param more: further columns in SQL, each with a comma in front.
    """
    if reserved := sorted({ROW, PROBLEM} & set(columns)):
        raise ConfigurationError(f"The rows have the column {reserved[0]}.", hint="Rename it: the name is reserved.")
    texts = ", ".join(f"{quote(column)} text" for column in columns)
    cursor.execute(
        f"{create} {name} ({texts}, {PROBLEM} text{more})" + (" ON COMMIT DROP" if " TEMP " in create else "")
    )


def staged_rows(staging: str, condition: str = "TRUE") -> str:
    """The rows of a staging table, as written after FROM."""
    return f"(SELECT ctid AS {ROW}, * FROM {staging} WHERE {condition}) AS staged"


def converted_rows(staging: str, columns: Iterable[StagedColumn]) -> str:
    """The staged rows (`staged_rows`) with the table's types, as written after FROM."""
    values = ", ".join(f"{item.value} AS {quote(item.column.name)}" for item in columns)
    return f"(SELECT {values} FROM {staging}) AS converted"


def check_values(
    cursor: Cursor, table: str, staging: str, columns: Sequence[StagedColumn], *, key: Sequence[str] = ()
) -> None:
    """Compare each staged value with what its column would hold.

    :param staging: see `staged_rows`.
    :param key: columns that name a row in an error. Empty: a row is named by its number in the order of arrival.
    :raises ValueRefusedError: names the first value that the table's column would change or refuse.
    """
    cursor.execute(
        f"SELECT {PROBLEM}, {ROW}, count(*) OVER () FROM {staging} WHERE {PROBLEM} IS NOT NULL ORDER BY {ROW} LIMIT 1"
    )
    if found := cursor.fetchone():
        number, _, reason = found[0].partition(":")
        _refuse(cursor, table, staging, columns[int(number)], found[1], found[2], key, reason)
    wrong = [(number, item.wrong) for number, item in enumerate(columns) if item.wrong]
    if not wrong:
        return
    which = " ".join(f"WHEN {condition} THEN {number}" for number, condition in wrong)
    cursor.execute(
        f"SELECT which, {ROW}, count(*) OVER () FROM (SELECT {ROW}, CASE {which} END AS which FROM {staging}) "
        f"AS compared WHERE which IS NOT NULL ORDER BY {ROW} LIMIT 1"
    )
    if found := cursor.fetchone():
        number, row, count = found
        _refuse(cursor, table, staging, columns[number], row, count, key)


def _refuse(
    cursor: Cursor,
    table: str,
    staging: str,
    item: StagedColumn,
    row: str,
    count: int,
    key: Sequence[str],
    reason: str = "",
) -> None:
    name, target = quote(item.column.name), _text(item.column.type)
    valid = f"pg_input_is_valid({item.input}, {target})" if not reason else "false"
    keys = "".join(f", left({quote(column)}, {_SHOWN})" for column in key)
    cursor.execute(
        # ClickHouse and Spark write only numbers in columns of numbers, so `input` can be computed.
        f"SELECT left({name}, {_SHOWN + 1}), CASE WHEN {name} IS NULL THEN NULL WHEN {valid} THEN "
        f"left(format('%s', {item.value}), {_SHOWN}) END, "
        + ("NULL" if reason else f"(pg_input_error_info({item.input}, {target})).message")
        + f"{keys} FROM {staging} WHERE {ROW} = {_text(row)}::tid"
    )
    value, stored, message, *names = cursor.fetchone() or (None, None, None)
    if key:
        place = "the row with " + ", ".join(f"{k} = {v}" for k, v in zip(key, names, strict=True))
    else:
        cursor.execute(f"SELECT count(*) FROM {staging} WHERE {ROW} <= {_text(row)}::tid")
        place = f"row {(cursor.fetchone() or (0,))[0]}"
    if value is None:
        what, reason = "NULL", "the column is NOT NULL"
    else:
        what = repr(value[:_SHOWN]) + (" ..." if len(value) > _SHOWN else "")
        if not reason:
            reason = message or (
                f"PostgreSQL would store {stored!r}"
                if stored != value
                else f"{item.column.type} does not keep it exactly"
            )
    rows = f" {count} rows have such values." if count > 1 else ""
    raise ValueRefusedError(
        f"{table}: column {item.column.name} ({item.column.type}) cannot hold {what} ({item.kind.type}) in {place}: "
        f"{reason}.{rows} Nothing was written.",
        hint="Convert the value in the query or the job on purpose, or change the table's column in a step in "
        "sql/postgres/.",
    )


def _text(value: str) -> str:
    """A text as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"
