"""Texts of ClickHouse's SQL are parted and told apart without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.clickhouse.sql import (
    has_result,
    output_format,
    parameter_names,
    refuse_statement,
    session_statement,
    split_statements,
    tokens,
)
from trilake.errors import ConfigurationError

EXAMPLES = Path(__file__).parents[2] / "examples" / "sql"


def test_semicolons_in_texts_names_and_comments_part_nothing() -> None:
    text = "SELECT ';', \"a;b\", `c;d`, 'it''s; \\'; x' -- ;\n; /* ; */ # ;\nSELECT $$;$$;;\n-- the end;"
    assert split_statements(text) == [
        "SELECT ';', \"a;b\", `c;d`, 'it''s; \\'; x' -- ;",
        "/* ; */ # ;\nSELECT $$;$$",
    ]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("/* INSERT */ select 1", True),
        ("(SELECT 1) UNION ALL SELECT 2", True),
        ("WITH 1 AS x SELECT 'INSERT'", True),
        ("WITH 1 AS x INSERT INTO t SELECT x", False),
        ("INSERT INTO t SELECT 1", False),
        ("ALTER TABLE t DELETE WHERE 1", False),
        ("SHOW TABLES", True),
        ("WITH x AS (SELECT 1 AS insert) SELECT insert FROM x", True),
        ("WITH 1 AS insert SELECT insert", True),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", False),
    ],
)
def test_what_answers_with_rows_is_known(sql: str, rows: bool) -> None:
    assert has_result(sql) is rows


def test_parameters_are_found_outside_texts_alone() -> None:
    assert parameter_names("SELECT {n:UInt8}, { m : Array(String)}, '{no:String}' -- {nor:Int8}") == {"n", "m"}


def test_the_examples_file_holds_four_statements_and_one_parameter() -> None:
    statements = split_statements((EXAMPLES / "clickhouse" / "readings" / "refresh.sql").read_text())
    assert [has_result(statement) for statement in statements] == [False, False, False, True]
    assert [parameter_names(statement) for statement in statements] == [set(), {"day"}, {"day"}, {"day"}]


COMMENTS = ["-- c; 'd", '// c; "d', "# c; `d", "#! c;", "/* ; ' */", "/* a /* ; */ b */"]
STATEMENTS = [
    "SELECT 1",
    "SELECT ';', 'it''s', '\\';'",
    'SELECT "a;b", `c;d`',
    "SELECT \u2018a;b\u2019, \u201cc;d\u201d",
    "SELECT $$;$$, $x$;$y$;$x$",
    "INSERT INTO t VALUES (1, 'a;b')",
    "SELECT 4 / 2, 5 - 3, 1 * 2",
]


@given(st.lists(st.tuples(st.sampled_from(STATEMENTS), st.sampled_from([*COMMENTS, ""])), min_size=1, max_size=5))
def test_each_statement_stays_whole_whatever_comment_follows_it(parts: list[tuple[str, str]]) -> None:
    """Also the last one, whose comment may have no line end."""
    text = ";\n".join(f"{statement} {comment}\n" for statement, comment in parts).removesuffix("\n")
    assert [one.partition("\n")[0].strip() for one in split_statements(text)] == [
        f"{statement} {comment}".strip() for statement, comment in parts
    ]


@given(st.text(st.sampled_from("'\"`$;-/*# \n\\a{}:\u2018\u2019\u201c\u201d"), max_size=30))
def test_tokens_are_the_whole_text(text: str) -> None:
    assert "".join(token.text for token in tokens(text)) == text


def test_the_data_of_an_insert_is_not_split() -> None:
    assert split_statements('SELECT 1; INSERT INTO t FORMAT CSV\n5,"a;b"\n') == [
        "SELECT 1",
        'INSERT INTO t FORMAT CSV\n5,"a;b"',
    ]
    assert split_statements("INSERT INTO t FORMAT Values (1); SELECT 2") == [
        "INSERT INTO t FORMAT Values (1)",
        "SELECT 2",
    ]
    assert len(split_statements("INSERT INTO t SELECT 1 FORMAT Null; SELECT 2")) == 2
    assert len(split_statements("INSERT INTO t (format, x) VALUES (1, 2);\nSELECT 1;\n")) == 2
    assert len(split_statements("INSERT INTO t (x, format) VALUES (1, 2); SELECT 1")) == 2


def test_data_whose_end_is_not_clear_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not clear"):
        split_statements("INSERT INTO t FORMAT CSV\n5,a\n;\nSELECT 1")


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("USE shard_1", "USE"),
        ("/* a */ set max_threads = 1", "SET"),
        ("BEGIN TRANSACTION", "BEGIN"),
        ("CREATE TEMPORARY TABLE t (a Int32)", "CREATE TEMPORARY"),
        ("CREATE OR REPLACE TEMPORARY TABLE t (a Int32)", "CREATE TEMPORARY"),
        ("CREATE TABLE temporary (a Int32)", ""),
        ("SELECT 1 SETTINGS max_threads = 1", ""),
        ("SYSTEM FLUSH LOGS", ""),
    ],
)
def test_statements_that_only_change_a_session_are_known(sql: str, name: str) -> None:
    assert session_statement(sql) == name


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SELECT 1 FORMAT JSON", "JSON"),
        ("SHOW TABLES format TSV -- all\n", "TSV"),
        ("SELECT 1 AS format", ""),
        ("SELECT format FROM t", ""),
        ("INSERT INTO t SELECT 1 FORMAT Native", ""),
    ],
)
def test_a_query_that_names_its_output_format_is_known(sql: str, name: str) -> None:
    assert output_format(sql) == name


def test_a_query_with_a_format_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match="Statement 2 of task t ends in FORMAT JSON"):
        refuse_statement("SELECT 1 FORMAT JSON", 2, "task t")
