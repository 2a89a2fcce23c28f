"""Texts of ClickHouse's SQL are parted and told apart without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilake.clickhouse.sql import has_result, parameter_names, split_statements

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
