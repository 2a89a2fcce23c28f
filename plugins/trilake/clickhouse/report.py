"""A report: the queries of a folder, each as a chart and a table, in one self-contained HTML file.

A query is a .sql file. Its comments say how to show it:

    -- title: Carriers
    -- text: All carriers by mean arrival delay.
    -- chart: bar x=name y=mean_arrival_delay unit=minutes

Charts are ``bar`` and ``line`` (x, y; several y with commas) and ``heatmap`` (x, y, value). Without a chart, only the
table is shown.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError

_OPTION = re.compile(r"^--\s*(title|text|chart):\s*(.+?)\s*$", re.MULTILINE)
_CHARTS = {"bar": {"x", "y"}, "line": {"x", "y"}, "heatmap": {"x", "y", "value"}}
_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#ca8a04")
_MAX_ROWS = 200  # shown in a table of the page; charts use all rows

_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #0f172a; background: #f8fafc; margin: 0 }
main { max-width: 960px; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { margin: 0 0 .25rem } h2 { margin: 0 0 .25rem; font-size: 1.2rem }
.meta, p { color: #475569; margin: 0 0 1rem }
section { background: #fff; border: 1px solid #e2e8f0; border-radius: 8px; padding: 1.25rem; margin-top: 1.5rem }
svg { width: 100%; height: auto }
details { margin-top: .75rem } summary { cursor: pointer; color: #2563eb }
table { border-collapse: collapse; width: 100%; font-size: 13px; margin-top: .5rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e2e8f0 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
"""


@dataclass(frozen=True)
class ReportQuery:
    """One query of a report, and how to show it."""

    title: str
    text: str
    chart: str
    options: dict[str, str]
    sql: str


@dataclass(frozen=True)
class ReportResult:
    """The rows of a query."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def read_queries(folder: Path) -> list[ReportQuery]:
    """The queries of a folder, ordered by file name.

    :raises ConfigurationError: there is no query, or a chart is unknown or lacks an option.
    """
    queries = [_query(path) for path in sorted(folder.glob("*.sql"))]
    if not queries:
        raise ConfigurationError(f"{folder} has no .sql file.", hint="Add one query for each chart of the report.")
    return queries


def _query(path: Path) -> ReportQuery:
    sql = path.read_text(encoding="utf-8")
    options = dict(_OPTION.findall(sql))
    chart, *pairs = options.get("chart", "").split() or [""]
    settings = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    missing = _CHARTS.get(chart, set()) - set(settings)
    if (chart and chart not in _CHARTS) or missing:
        raise ConfigurationError(
            f"{path.name}: the chart {options['chart']!r} is unknown or lacks an option.",
            hint="Write one of: "
            + "; ".join(f"{name} {' '.join(f'{k}=…' for k in sorted(v))}" for name, v in _CHARTS.items()),
        )
    return ReportQuery(options.get("title", path.stem), options.get("text", ""), chart, settings, sql)


def render(title: str, meta: str, queries: Sequence[ReportQuery], run: Callable[[ReportQuery], ReportResult]) -> str:
    """The report as HTML.

    :param meta: one line below the title.
    :param run: runs a query.
    """
    sections = []
    for query in queries:
        result = run(query)
        chart = _draw(query, result) if query.chart and result.rows else ""
        sections.append(
            f"<section><h2>{html.escape(query.title)}</h2><p>{html.escape(query.text)}</p>{chart}"
            f"<details{'' if chart else ' open'}><summary>{len(result.rows)} rows</summary>{_table(result)}</details>"
            "</section>"
        )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f'<h1>{html.escape(title)}</h1><p class="meta">{html.escape(meta)} Made {made}.</p>'
        f"{''.join(sections)}</main></body></html>"
    )


def _table(result: ReportResult) -> str:
    numbers = [all(isinstance(row[i], int | float | None) for row in result.rows) for i in range(len(result.columns))]

    def cell(tag: str, value: object, number: bool) -> str:
        text = "" if value is None else html.escape(f"{value:,}" if isinstance(value, int) and number else str(value))
        return f"<{tag}{' class=number' if number else ''}>{text}</{tag}>"

    head = "".join(cell("th", name, number) for name, number in zip(result.columns, numbers, strict=True))
    body = "".join(
        "<tr>" + "".join(cell("td", value, number) for value, number in zip(row, numbers, strict=True)) + "</tr>"
        for row in result.rows[:_MAX_ROWS]
    )
    more = f"<p>{len(result.rows) - _MAX_ROWS} more rows are not shown.</p>" if len(result.rows) > _MAX_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _draw(query: ReportQuery, result: ReportResult) -> str:
    """The chart as inline SVG."""
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure in memory

    def column(name: str) -> list[Any]:
        if name not in result.columns:
            raise ConfigurationError(
                f"{query.title}: the chart uses column {name}, which the query does not return.",
                hint=f"Its columns are {', '.join(result.columns)}.",
            )
        at = list(result.columns).index(name)
        return [row[at] for row in result.rows]

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    unit = query.options.get("unit", "")
    x = column(query.options["x"])
    if query.chart == "heatmap":
        _heatmap(figure, axes, x, column(query.options["y"]), column(query.options["value"]), unit)
    else:
        names = query.options["y"].split(",")
        labels = [str(value) for value in x]
        for name, colour in zip(names, _COLOURS, strict=False):
            if query.chart == "line":
                axes.plot(labels, column(name), marker="o", color=colour, label=name.replace("_", " "))
            else:
                # a missing value (such as the mean of no flights) is a gap, as in a line chart
                heights = [float("nan") if value is None else value for value in column(name)]
                axes.bar(labels, heights, color=colour, label=name.replace("_", " "))
        axes.set_ylabel(unit)
        axes.grid(axis="y", color="#e2e8f0")
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", rotation=30 if sum(map(len, labels)) > 90 else 0)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right" if sum(map(len, labels)) > 90 else "center")
        if len(names) > 1:
            axes.legend(frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _heatmap(figure: Any, axes: Any, x: list[Any], y: list[Any], values: list[Any], unit: str) -> None:
    across, down = sorted(set(x)), sorted(set(y))
    grid: list[list[float]] = [[float("nan")] * len(across) for _ in down]
    for column, row, value in zip(x, y, values, strict=True):
        grid[down.index(row)][across.index(column)] = float("nan") if value is None else float(value)
    image = axes.imshow(grid, aspect="auto", cmap="YlOrRd")
    axes.set_xticks(range(len(across)), [str(value) for value in across])
    axes.set_yticks(range(len(down)), [str(value) for value in down])
    figure.colorbar(image, ax=axes, label=unit)
