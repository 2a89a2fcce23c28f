"""Results of ClickHouse as text that PostgreSQL reads. ClickHouse writes each value; no driver converts it.

A query is wrapped in another one, which writes every column as a text in PostgreSQL's form. ClickHouse itself finds the
values that PostgreSQL cannot hold at all, such as a NUL byte or nanoseconds, and names them in a column of their own
(`trilake.postgres.staging.PROBLEM`). `trilake.postgres.staging` does the rest.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.cluster import quote_name, quote_text
from trilake.clickhouse.sql import has_result, output_format, parameter_names, split_statements
from trilake.errors import ConfigurationError, CountMismatchError
from trilake.postgres.columns import check_names, table_columns
from trilake.postgres.connection import listed
from trilake.postgres.staging import (
    PROBLEM,
    Kind,
    StagedColumn,
    check_values,
    converted_rows,
    create_staging,
    staged_columns,
    staged_rows,
)

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from psycopg2.extensions import cursor as Cursor

# PostgreSQL's own text form of COPY: tabs between the fields, backslashes before what would end one, \N for NULL.
FORMAT = "CustomSeparated"
# The last line. It is missing if the server fails in the middle of its answer, whatever the connection says.
_END = b"\\.\n"
FORMAT_SETTINGS: Mapping[str, Any] = {
    "format_custom_escaping_rule": "Escaped",
    "format_custom_field_delimiter": "\t",
    "format_custom_row_before_delimiter": "",
    "format_custom_row_after_delimiter": "\n",
    "format_custom_row_between_delimiter": "",
    "format_custom_result_before_delimiter": "",
    "format_custom_result_after_delimiter": _END.decode(),
    "format_tsv_null_representation": "\\N",
    "output_format_tsv_crlf_end_of_line": 0,
}
# Numbers in JSON are numbers of any size. NaN and the infinities are texts, because JSON has no such numbers.
_JSON_SETTINGS: Mapping[str, Any] = {
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_64bit_floats": 0,
    "output_format_json_quote_decimals": 0,
    "output_format_json_quote_denormals": 1,
    "output_format_json_named_tuples_as_objects": 1,
    "output_format_json_map_as_array_of_tuples": 0,
}

# Names in the query that writes the texts.
_ROWS, _OUT = "trilake_rows", "trilake_text_"
_ERROR = re.compile(r"Code: \d+\. DB::.*", re.DOTALL)
# At least as long as an error in the middle of an answer.
_ERROR_BYTES = 1 << 14
_WRAPPED = re.compile(
    r"(?:Nullable|LowCardinality)\((.*)\)|SimpleAggregateFunction\(\w+(?:\([^)]*\))?, (.*)\)", re.DOTALL
)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'")
_ZONE_IN_JSON = re.compile(
    r"\bDateTime64\((?P<digits>\d)(?:, '[^']*')?\)|\b(?P<seconds>DateTime)(?:\('[^']*'\))?(?=\s*(?:[,)]|\Z))"
    # names and labels may look like types
    r"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`"
)
# A state, which only ClickHouse can read, and a number whose unit only the type names.
_NO_VALUE = re.compile(r"\b(?:AggregateFunction\(|Interval[A-Z])")
_NAMES = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|\b\w+(?= [A-Z])")
_SIMPLE = {
    "Int8": "int2", "Int16": "int2", "UInt8": "int2", "Int32": "int4", "UInt16": "int4", "Int64": "int8",
    "UInt32": "int8", "UInt64": "integer", "Int128": "integer", "UInt128": "integer", "Int256": "integer",
    "UInt256": "integer", "Float32": "float4", "BFloat16": "float4", "Float64": "float8", "Bool": "boolean",
    "String": "text", "Date": "date", "Date32": "date", "Time": "time", "UUID": "uuid", "IPv4": "address",
    "IPv6": "address", "Nothing": "null", "DateTime": "moment",
}  # fmt: skip
# Types with parameters, by the word before the parenthesis.
_WITH_PARAMETERS = {
    "Decimal": "decimal", "FixedString": "text", "Enum8": "text", "Enum16": "text", "Time64": "time",
    "Array": "json", "Tuple": "json", "Map": "json", "JSON": "json", "Nested": "json", "Variant": "json",
    "Dynamic": "json", "Object": "json",
}  # fmt: skip
_NESTED = ("JSON", "Dynamic", "Point", "Ring", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "Geometry")


def bare(kind: str) -> str:
    """A type of ClickHouse without what says that it can be NULL, is stored as a dictionary, or is merged."""
    while match := _WRAPPED.fullmatch(kind):
        kind = match[1] or match[2]
    return kind


def kind_of(clickhouse: str, target: str, element: str) -> Kind:
    """What the values of a type of ClickHouse are.

    :param target: `TableColumn.base` of the column that they go to. Text becomes bytes, and nested values become JSON,
        if the column holds that.
    :param element: `TableColumn.element` of it.
    """
    inner = bare(clickhouse)
    if _NO_VALUE.search(_NAMES.sub("", inner)):
        return Kind("unknown", clickhouse)
    if inner.startswith("Array(") and element:
        while inner.startswith("Array("):
            inner = bare(inner[len("Array(") : -1])
        return Kind(_name(inner, element), clickhouse, array=True)
    return Kind(_name(inner, target), clickhouse)


def _name(inner: str, target: str) -> str:
    word = inner.partition("(")[0]
    if word in ("DateTime", "DateTime64"):
        zones = _QUOTED.findall(inner)
        return "moment" if not zones or zones[0].strip("'") in ("UTC", "Etc/UTC") else "zoned"
    if word in ("String", "FixedString"):
        return "bytes" if target == "bytea" else "text"
    if (
        target in ("json", "jsonb")
        and inner not in ("Nothing",)
        and word not in ("Enum8", "Enum16", "AggregateFunction")
    ):
        return "json"
    if inner in _NESTED:
        return "json"
    return _SIMPLE.get(inner) or _WITH_PARAMETERS.get(word, "unknown")


def single_query(sql: str) -> str:
    """The one query of a text, without a semicolon and what follows it.

    :raises ConfigurationError: the text is not one query that returns rows.
    """
    statements = split_statements(sql)
    if len(statements) != 1 or not has_result(statements[0]):
        raise ConfigurationError(
            f"A mart needs one query that returns rows, but the text has {len(statements)} statements."
            if len(statements) != 1
            else "The statement of a mart returns no rows.",
            hint="Write one SELECT.",
        )
    if name := output_format(statements[0]):
        raise ConfigurationError(
            f"The query of a mart ends in FORMAT {name}, but its rows go to PostgreSQL.", hint="Remove FORMAT."
        )
    return statements[0]


def stage_result(
    client: Client,
    cursor: Cursor,
    table: str,
    sql: str,
    *,
    key: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    settings: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> tuple[list[str], str, int]:
    """Stage a query's result for a table of PostgreSQL, in the transaction of `cursor`. Memory does not grow with it.

    :param table: ``schema.table``, as written in SQL.
    :param key: columns that name a row in errors.
    :param parameters: of the query, as ``{name:Type}``. Names that it does not use are ignored.
    :param settings: makes the settings of a statement from those that it needs.
    :returns: the names of the columns, the staged rows as written after FROM, with the table's types, and their number.
    :raises ConfigurationError: the types of the query's columns do not fit. The query was not run.
    :raises trilake.postgres.staging.ValueRefusedError: a column of the table cannot hold a value exactly.
    :raises CountMismatchError: PostgreSQL has not staged what ClickHouse sent.
    """
    query = single_query(sql)
    used = parameter_names(query)
    # The driver must not see other parameters: it would take percent signs for their places.
    bound = {name: value for name, value in (parameters or {}).items() if name in used} or None
    described = client.query(
        f"DESCRIBE TABLE (\n{query}\n)", parameters=bound, settings=settings({"print_pretty_type_names": 0})
    )
    found = [(row[0], row[1]) for row in described.result_rows]
    if missing := [name for name in key if name not in dict(found)]:
        raise ConfigurationError(
            f"The rows for {table} have no column {missing[0]}, which is part of the key.",
            hint="Select it in the query.",
        )
    targets = table_columns(cursor, table)
    check_names(table, targets, [name for name, _ in found])
    kinds = {name: kind_of(kind, targets[name].base, targets[name].element) for name, kind in found}
    columns = staged_columns(table, targets, kinds)
    staging = f"mart_rows_{time.monotonic_ns()}"
    create_staging(cursor, staging, list(kinds), create="CREATE TEMP TABLE")
    with client.raw_stream(
        text_query(query, columns), parameters=bound, settings=settings(text_settings(columns)), fmt=FORMAT
    ) as stream:
        text = CopyStream(stream)
        try:
            cursor.copy_expert(f"COPY {staging} ({listed([*kinds, PROBLEM])}) FROM STDIN", text, size=1 << 16)
        except Exception as e:
            if text.error is not None:
                raise text.error from None
            raise e
    if cursor.rowcount != text.rows:
        raise CountMismatchError(
            f"{table}: ClickHouse sent {text.rows} rows, PostgreSQL staged {cursor.rowcount}.",
            hint="Run the task again.",
        )
    rows = staged_rows(staging)
    check_values(cursor, table, rows, columns, key=key)
    return list(kinds), converted_rows(rows, columns), text.rows


def text_query(query: str, columns: list[StagedColumn]) -> str:
    """The query whose columns are texts that PostgreSQL reads, with `PROBLEM` as the last one."""
    texts, problems = [], []
    for number, item in enumerate(columns):
        # with the name of the rows in front: a name alone could be the name of another text
        name = f"{_ROWS}.{quote_name(item.column.name)}"
        text, problem, reason = _expressions(item.kind, name, item.column.base, item.column.element)
        if problem:
            problem = f"ifNull({problem}, false)"
            whole = f"concat({name}, '')" if item.kind.name == "text" and not item.kind.array else f"toString({name})"
            shown = f"replaceAll(toValidUTF8({whole}), char(0), '\\\\0')"
            texts.append(f"if({problem}, {shown}, {text}) AS {_OUT}{number}")
            problems.append(f"{problem}, {quote_text(f'{number}:{reason}')}")
        else:
            texts.append(f"{text} AS {_OUT}{number}")
    problem = f"multiIf({', '.join(problems)}, NULL)" if problems else "NULL"
    return f"SELECT {', '.join(texts)}, {problem} AS {_OUT}{len(columns)} FROM (\n{query}\n) AS {_ROWS}"


def text_settings(columns: list[StagedColumn]) -> dict[str, Any]:
    """Settings of `text_query`."""
    nested = any(item.kind.name == "json" for item in columns)
    return {**FORMAT_SETTINGS, **(_JSON_SETTINGS if nested else {})}


def _expressions(kind: Kind, x: str, base: str, element: str) -> tuple[str, str, str]:
    """SQL of ClickHouse: the text of a value, whether PostgreSQL cannot hold it (or empty), and why not."""
    if kind.array:
        return _array(bare(kind.type), x, element)
    return _scalar(kind.name, bare(kind.type), x, base)


def _scalar(name: str, inner: str, x: str, base: str) -> tuple[str, str, str]:
    word = inner.partition("(")[0]
    if name == "text" and word in ("String", "FixedString"):
        # concat keeps the NUL bytes of a FixedString, and toString does not
        fills = " (toStringCutToZero removes those that fill a FixedString)" if word == "FixedString" else ""
        return f"concat({x}, '')", _NO_TEXT.format(x), f"it is not UTF-8, or has NUL bytes{fills}"
    if name == "json":
        zoned = _in_utc(inner)
        text = f"toJSONString({x})" if zoned == inner else f"toJSONString(CAST({x}, {quote_text(zoned)}))"
        return text, _NO_TEXT.format(text), "its JSON is not UTF-8"
    text = f"toString({x})"
    if name == "null":
        text = "NULL"
    elif name == "bytes":
        text = rf"concat('\\x', hex({x}))"
    elif name == "float4" and (word == "BFloat16" or base == "float8"):
        text = f"toString({'toFloat64' if base == 'float8' else 'toFloat32'}({x}))"
    elif name in ("moment", "zoned"):
        text = f"concat(toString(toTimeZone({x}, 'UTC')), '+00')"
    return text, _sub_microseconds(inner, x), "PostgreSQL keeps microseconds (toDateTime64(column, 6) cuts the rest)"


# NULL for NULL
_NO_TEXT = "NOT isValidUTF8({0}) OR position({0}, char(0)) > 0"


def _sub_microseconds(inner: str, x: str) -> str:
    match = re.match(r"(?:DateTime64|Time64)\((\d)", inner)
    return f"match(toString({x}), '[.][0-9]{{6}}[0-9]*[1-9]')" if match and int(match[1]) > 6 else ""


def _array(inner: str, x: str, element: str, depth: int = 0) -> tuple[str, str, str]:
    """An array as PostgreSQL writes it, each element in double quotes."""
    item, variable = bare(inner[len("Array(") : -1]), f"trilake_{depth}"
    if item.startswith("Array("):
        text, problem, reason = _array(item, variable, element, depth + 1)
        reason = "PostgreSQL has no empty arrays inside of an array" + (f"; or {reason}" if problem else "")
        problem = f"empty({variable})" + (f" OR {problem}" if problem else "")
    else:
        text, problem, reason = _scalar(_name(item, element), item, variable, element)
        escaped = rf"replaceAll(replaceAll({text}, '\\', '\\\\'), '\"', '\\\"')"
        text = f"concat('\"', {escaped}, '\"')" if text != "NULL" else "NULL"
    listed = f"arrayStringConcat(arrayMap({variable} -> ifNull({text}, 'NULL'), {x}), ',')"
    inside = f"arrayExists({variable} -> ifNull({problem}, false), {x})" if problem else ""
    return f"concat('{{', {listed}, '}}')", inside, reason


def _in_utc(inner: str) -> str:
    """A nested type whose times are in UTC, because a time in JSON has no zone."""

    def replaced(match: re.Match[str]) -> str:
        if match["digits"]:
            return f"DateTime64({match['digits']}, 'UTC')"
        return "DateTime('UTC')" if match["seconds"] else match[0]

    return _ZONE_IN_JSON.sub(replaced, inner)


class CopyStream(io.RawIOBase):
    """The text of a result for COPY, held against its last line.

    :ivar rows: number of rows read so far.
    :ivar error: what ended the stream early: COPY only says that reading failed.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._held = b""  # may be the last line
        self._tail = b""  # what was read last, for an error in it
        self._ended = False
        self.rows = 0
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; empty at the end.

        :raises Exception: the driver's own, also for an answer that is not complete.
        """
        try:
            return self._next(size if size and size > 0 else 1 << 16)
        except Exception as e:
            self.error = e
            raise

    def _next(self, size: int) -> bytes:
        while not self._ended:
            piece: bytes = self._stream.read(max(size - len(_END), 1))
            text = self._held + piece
            if piece:
                ready, self._held = text[: -len(_END)], text[-len(_END) :]
            else:
                self._ended = True
                if not text.endswith(_END):
                    self._fail(text)
                ready, self._held = text[: -len(_END)], b""
            if ready:
                self.rows += ready.count(b"\n")
                self._tail = (self._tail + ready)[-_ERROR_BYTES:]
                return ready
        return b""

    def _fail(self, text: bytes) -> None:
        from clickhouse_connect.driver.exceptions import DatabaseError
        from urllib3.exceptions import IncompleteRead

        said = list(_ERROR.finditer((self._tail + text).decode(errors="replace")))
        raise DatabaseError(said[-1][0]) if said else IncompleteRead(len(text), None)  # type: ignore[arg-type]
