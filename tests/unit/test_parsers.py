"""What reads text that others wrote: it gives back what was meant, or refuses it by name, whatever the text."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.clickhouse.export import Export, ExportedObject
from trilake.clickhouse.sql import has_result, parameter_names, split_statements
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.objects import read_objects
from trilake.platform.hosts import environment
from trilake.platform.hosts.environment import EnvironmentFileError
from trilake.postgres import extract
from trilake.spark.event_log import SparkMetrics, summarise

TEXT = st.text(st.characters(codec="utf-8"))
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ORDERS = DataSet("orders", grain="month", date="day", shard_by="customer")


@given(NAMES, st.sampled_from(["day", "month"]), TEXT, TEXT)
def test_a_data_set_is_the_same_after_its_way_through_an_argument(name: str, grain: Any, date: str, key: str) -> None:
    declared = DataSet(name, grain=grain, date=date, shard_by=key)
    assert DataSet.from_json(declared.to_json()) == declared


@given(TEXT | JSON.map(json.dumps))
def test_any_argument_is_a_data_set_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(DataSet.from_json(text), DataSet)


# --- statements: none of the pieces holds a semicolon outside of quotes and comments

COMMENTS = {"/* ; ' */", "-- ; '\n", "# ;\n"}
PIECES = st.sampled_from(
    ["SELECT 1", "'a;b'", "'it''s;'", "'\\';'", '"c;d"', "`e;f`", "$t$;$t$", "/* ; ' */", "-- ; '\n", "# ;\n", "x", "("]
)


@given(st.lists(st.lists(PIECES, max_size=5), max_size=5))
def test_statements_are_parted_where_they_end_and_nowhere_else(statements: list[list[str]]) -> None:
    texts = [" ".join(pieces) for pieces in statements]
    # of comments alone is none
    expected = [text.strip() for text, pieces in zip(texts, statements, strict=True) if set(pieces) - COMMENTS]
    assert split_statements(";".join(texts)) == expected


@given(TEXT)
def test_any_text_is_parted_without_losing_a_sign(text: str) -> None:
    for statement in split_statements(text):
        assert statement in text
        has_result(statement)
        parameter_names(statement)


# --- objects that were counted, exports, event logs


@given(st.dictionaries(NAMES.map(lambda name: f"orders/{name}.parquet"), st.integers(0, 2**40), max_size=5))
def test_objects_are_the_same_in_every_form(rows: dict[str, int]) -> None:
    as_map = {"2013-01": rows}
    as_list = [{"partition": "2013-01", "key": key, "rows": count} for key, count in rows.items()]
    found = read_objects(ORDERS, as_map)
    assert {file.key: file.rows for file in found["2013-01"]} == rows
    assert read_objects(ORDERS, json.dumps(as_map)) == found
    assert read_objects(ORDERS, as_list) == (found if rows else {})


@given(JSON | TEXT)
def test_any_value_is_objects_or_refused(value: Any) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(read_objects(ORDERS, value), dict)


@given(
    st.lists(st.tuples(TEXT, TEXT), max_size=3),
    st.lists(
        st.builds(ExportedObject, TEXT, TEXT, st.integers(0), st.integers(0), st.integers(0), TEXT),
        max_size=3,
        unique_by=lambda item: item.key,
    ),
)
def test_a_manifest_says_what_was_exported(columns: list[tuple[str, str]], objects: list[ExportedObject]) -> None:
    export = Export("a/b", "c", "run", tuple(columns), tuple(objects))
    assert Export.from_json(export.to_json()) == export
    assert export.rows == sum(sum(rows.values()) for rows in export.by_partition.values())


@given(st.lists(st.integers(0, 10**9), max_size=5), st.integers(0, 80))
def test_an_event_log_that_was_cut_off_counts_its_whole_lines(rows: list[int], cut: int) -> None:
    lines = [
        json.dumps(
            {
                "Event": "SparkListenerTaskEnd",
                "Task Info": {"Failed": False},
                "Task Metrics": {"Input Metrics": {"Records Read": n}},
            },
            separators=(",", ":"),
        ).encode()
        for n in rows
    ]
    assert summarise([*lines, *(line[:cut] for line in lines[:1])]) == SparkMetrics(
        tasks=len(rows), read_rows=sum(rows)
    )


# --- .env


@given(
    st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,10}", fullmatch=True), st.from_regex(r"[!-&(-~]+", fullmatch=True))
)
def test_an_environment_file_says_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    file = tmp_path_factory.mktemp("env") / ".env"
    unquoted = {name: value.strip("\"'") for name, value in values.items()}
    file.write_text("".join(f"# a comment\n\n{name}={value}\n" for name, value in values.items()))
    assert environment.read(file) == unquoted


@given(st.binary(max_size=60))
def test_any_environment_file_is_read_or_refused_without_its_text(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file: Path = tmp_path_factory.mktemp("env") / ".env"
    file.write_bytes(b"SECRET_VALUE " + content)
    with pytest.raises(EnvironmentFileError) as refused:
        environment.read(file)
    assert "SECRET_VALUE" not in str(refused.value)


_FIELDS = st.text('a\n"', max_size=6)


@given(st.lists(st.lists(_FIELDS, min_size=1, max_size=3), max_size=8), st.integers(1, 20))
def test_copys_text_is_cut_between_rows_alone(rows: list[list[str]], size: int) -> None:
    written = [",".join('"' + field.replace('"', '""') + '"' for field in row).encode() + b"\n" for row in rows]
    ends = set(itertools.accumulate(map(len, written)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extract, "BLOCK_BYTES", size)
        blocks = list(extract._blocks(io.BytesIO(b"".join(written))))
    assert b"".join(blocks) == b"".join(written)
    assert set(itertools.accumulate(map(len, blocks))) <= ends


def test_a_row_of_many_lines_is_looked_at_once() -> None:
    """By the time that its square takes no test would come to an end."""
    row = b'"' + (b"x" * 80 + b"\n") * 400_000 + b'"\n'
    assert b"".join(extract._blocks(io.BytesIO(row * 2))) == row * 2
    with pytest.raises(extract.ExtractError, match="larger than 64 MiB"):
        list(extract._blocks(io.BytesIO(b'"' + row[1:-2] * 3)))
