"""An agent's query in Spark SQL on the lake: what its files hold, and what a refusal leaves."""

from __future__ import annotations

from typing import Any

import pytest

from support.agent_sql_work import ROWS, TABLE
from support.running_platform import Platform
from support.spark_session import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def first_snapshot(platform: Platform) -> int:
    return int(run(platform, "support.agent_sql_work:make")[0])


def ask(platform: Platform, sql: str, key: str, max_bytes: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = run(platform, "support.agent_sql_work:ask", sql, key, str(max_bytes))[0]
    return found


def test_a_query_reads_the_lake_and_its_old_snapshots_and_a_later_try_replaces_its_files(
    platform: Platform, first_snapshot: int
) -> None:
    both = ask(platform, f"SELECT /*+ REPARTITION(4) */ * FROM {TABLE}", "all")
    assert (both["rows"], len(both["files"])) == (2 * ROWS, 4)
    assert both["columns"] == [["id", "bigint"], ["at", "timestamp"]]
    old = ask(platform, f"SELECT count(*) AS n FROM lake.curated.{TABLE} VERSION AS OF {first_snapshot}", "all")
    assert old["files"] == ["all/part-00000.parquet"]
    # the files of the first query are gone, and the agent's own file is not
    assert old["left"] == {"manifest.json": 1, "own.txt": None, "part-00000.parquet": 1}


def test_a_result_without_rows_is_a_file_with_the_columns(platform: Platform, first_snapshot: int) -> None:
    none = ask(platform, f"SELECT id FROM curated.{TABLE} WHERE id < 0", "none")
    assert none["left"] == {"manifest.json": 0, "own.txt": None, "part-00000.parquet": 0}


@pytest.mark.parametrize(
    ("sql", "max_bytes", "why"),
    [
        (f"SELECT /*+ REPARTITION(4) */ * FROM {TABLE}", 20_000, "more than 20000 bytes"),
        (f"SELECT id, id AS ID FROM {TABLE}", 0, "Two columns are named id"),
        (f"SELECT id, make_interval(1) AS i FROM {TABLE}", 0, "Column i is interval, which Parquet does not have"),
        (f"SELECT 1 / (id - id) AS x FROM {TABLE}", 0, "DIVIDE_BY_ZERO"),
        (f"SELECT nothing FROM {TABLE}", 0, "Spark cannot run the query"),
        (f"SELECT * FROM lake.curated.{TABLE}.files", 0, "is not one of the tables"),
        (f"SELECT * FROM {TABLE} VERSION AS OF 1", 0, "Spark cannot run the query"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_refused_query_says_why_and_leaves_no_result(
    platform: Platform, first_snapshot: int, sql: str, max_bytes: int, why: str
) -> None:
    said = ask(platform, sql, "refused", max_bytes)
    assert said["refused"] == "QueryRefusedError"
    assert why in said["says"]
    assert "manifest.json" not in said["left"]
