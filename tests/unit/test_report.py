"""A report is drawn whatever its queries give."""

from __future__ import annotations

import pytest

from trilake.clickhouse.report import ReportQuery, ReportResult, render


@pytest.mark.parametrize("chart", ["bar", "line"])
def test_a_missing_value_is_a_gap_in_the_chart(chart: str) -> None:
    query = ReportQuery("Late", "", chart, {"x": "name", "y": "mean"}, "SELECT 1")
    page = render("t", "m", [query], lambda _: ReportResult(("name", "mean"), [("a", 1.5), ("b", None)]))
    assert "<svg" in page
