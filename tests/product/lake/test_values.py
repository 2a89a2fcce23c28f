"""Values from a job's rows to readers of ClickHouse: equal, or refused by name. On real engines."""

from __future__ import annotations

import os
from typing import Any

import pytest

from support import spark_session
from support.running_platform import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(spark_session.TIMEOUT_S)]
# `make test-nightly` runs 50: 10,000 columns
SEEDS = int(os.environ.get("TRILAKE_SEEDS", "3"))


def work(platform: Platform, name: str, *arguments: str) -> Any:
    return spark_session.run(platform, f"support.values_work:{name}", *arguments)[0]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, SEEDS + 1))])
def test_every_type_arrives_and_both_audits_agree(platform: Platform, seed: int) -> None:
    rows, columns = (40, 200) if seed else (200, 40)
    outcome = work(platform, "every_type", str(seed), str(rows), str(columns))
    assert (outcome["rows"], outcome["unverified"], outcome["columns"]) == (rows, [], columns)


def test_readers_see_the_columns_of_the_lake_after_each_change_of_them(platform: Platform) -> None:
    for label, (lake, clickhouse, unverified) in work(platform, "evolve").items():
        assert clickhouse == lake, label
        assert unverified == [], label


def test_a_column_that_a_publication_cannot_fill_is_named(platform: Platform) -> None:
    outcome = work(platform, "refuse_evolutions")
    assert "has the column a in ClickHouse, but not in the lake" in outcome["not in the lake"]
    assert "has no column a, added to the lake later" in outcome["added later, without NULL"]
    assert outcome["rows"] == []
    assert "a field inside of column s was added" in outcome["a field added inside"]


def test_an_array_map_or_struct_that_is_null_is_refused_and_not_made_empty(platform: Platform) -> None:
    for kind, (error, rows) in work(platform, "nulls_that_clickhouse_lacks").items():
        assert "column v" in error, kind
        assert rows == [], kind


def test_such_values_are_found_in_rows_of_other_programs_too(platform: Platform) -> None:
    for kind, (unverified, error, rows) in work(platform, "nulls_without_sums").items():
        assert unverified == ["2013-01"], kind
        assert "column v has an array, map or struct that is NULL in row 1" in error, kind
        assert len(rows) == 2, kind


def test_a_commit_changes_no_value_to_fit_a_column(platform: Platform) -> None:
    outcome = work(platform, "change_types")
    grown = {
        "int, then bigint": "bigint",
        "decimal, then a longer one": "decimal(20,2)",
        "a field more": "struct<a:int,b:int>",
        "elements wider": "array<bigint>",
    }
    for label, (error, rows, schema) in outcome.items():
        if label in grown:
            assert error == "", label
            assert len(rows) == 2, label
            assert f"v:{grown[label]}" in schema, label
        else:
            assert "Nothing was written" in error, label
            assert len(rows) == 1, label
    assert "column v is int in the table and double in the rows" in outcome["int, then double"][0]
    assert "the rows have no column v" in outcome["left out"][0]


def test_a_column_is_replaced_on_purpose(platform: Platform) -> None:
    assert work(platform, "replace_column") == [["2013-01-05", None], ["2013-02-05", 1.75]]


def test_rows_without_a_key_or_a_date_are_refused_by_the_column(platform: Platform) -> None:
    key, day = work(platform, "without_key")
    assert "1 rows of" in key
    assert "have NULL in k, which is the data set's shard key" in key
    assert "have NULL in d, which is the data set's date" in day


def test_a_window_whose_lines_are_all_refused_does_not_replace_a_good_one(platform: Platform) -> None:
    first, second, rows, reasons, forced, rows_then = work(platform, "refuse_all_lines")
    assert first == ""
    assert "2013-01 (3 of 3)" in second
    assert rows == 3
    assert reasons == ["type of at: 05.01.2013 10:00 is not timestamp"] * 3
    assert (forced, rows_then) == ("", 0)
