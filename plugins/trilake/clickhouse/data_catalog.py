"""What a project says about its data sets: the document ``catalog.json``, which goes with each version of the job code.

Everything in it comes from the project's files: data sets from ``dags/``; descriptions, checks and example queries from
``sql/clickhouse/``. So what is told about a table is what was deployed with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trilake.clickhouse.publication.checks import read_checks
from trilake.clickhouse.report import read_queries
from trilake.errors import ConfigurationError
from trilake.lake.data_set import DataSet
from trilake.lake.declared import data_sets

# How a check says what it is: "-- blocking: text", "-- warning: text".
_KIND = re.compile(r"^(blocking|warning)\s*:?\s*", re.IGNORECASE)
_ORDER_BY = re.compile(r"^ORDER BY (.+?);?$", re.MULTILINE)


@dataclass(frozen=True)
class DescribedCheck:
    """:param blocking: whether rows that it finds stop a publication."""

    name: str
    about: str
    blocking: bool


@dataclass(frozen=True)
class ExampleQuery:
    """:param sql: may have the parameters ``{start:Date}`` and ``{stop:Date}``, the first day and the day after the
    last.
    """

    title: str
    about: str
    sql: str


@dataclass(frozen=True)
class DescribedDataSet:
    """:param declared: the data set's own JSON, see `DataSet.to_json`; empty for a table that no data set declares.
    :param about: the comment that its ``table.sql`` begins with.
    :param table: whether ClickHouse has it. :param order_by: the columns that its rows are sorted by.
    """

    name: str
    declared: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    table: bool = False
    order_by: str = ""
    checks: tuple[DescribedCheck, ...] = ()
    queries: tuple[ExampleQuery, ...] = ()

    @property
    def data_set(self) -> DataSet:
        return DataSet.from_json(json.dumps(dict(self.declared) or {"name": self.name}))


def describe_project(project: Path) -> dict[str, DescribedDataSet]:
    """The data sets of a project, and the tables of ``sql/clickhouse/``, by name.

    :raises ConfigurationError: a file of ``dags/`` or ``sql/`` cannot be read.
    """
    declared = data_sets(project / "dags") if (project / "dags").is_dir() else {}
    folder = project / "sql" / "clickhouse"
    tables = {path.parent.name for path in folder.glob("*/table.sql")}
    return {
        name: _described(project / "sql", name, declared.get(name), table=name in tables)
        for name in sorted(tables | set(declared))
    }


def to_json(described: Mapping[str, DescribedDataSet]) -> str:
    """`from_json` reads it."""
    return json.dumps({"data_sets": [asdict(item) for item in described.values()]}, indent=1, sort_keys=True)


def from_json(text: str) -> dict[str, DescribedDataSet]:
    """:raises ConfigurationError: it is not what `to_json` writes."""
    try:
        return {
            item["name"]: DescribedDataSet(
                name=item["name"],
                declared=item["declared"],
                about=item["about"],
                table=item["table"],
                order_by=item["order_by"],
                checks=tuple(DescribedCheck(**check) for check in item["checks"]),
                queries=tuple(ExampleQuery(**query) for query in item["queries"]),
            )
            for item in json.loads(text)["data_sets"]
        }
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigurationError(
            f"The catalog of data sets is damaged ({type(e).__name__}).", hint="Write it again: `trilake jobs push`."
        ) from None


def _described(sql: Path, name: str, data_set: DataSet | None, *, table: bool) -> DescribedDataSet:
    declared = {} if data_set is None else json.loads(data_set.to_json())
    if not table:
        return DescribedDataSet(name, declared)
    folder = sql / "clickhouse" / name
    ddl = (folder / "table.sql").read_text(encoding="utf-8")
    order_by = _ORDER_BY.search(ddl)
    queries = read_queries(folder / "report") if any((folder / "report").glob("*.sql")) else []
    return DescribedDataSet(
        name,
        declared,
        about=_first_comment(ddl),
        table=True,
        order_by=order_by[1].strip() if order_by else "",
        checks=tuple(
            DescribedCheck(check.name, _KIND.sub("", _first_comment(check.sql)), check.blocking)
            for check in read_checks(sql, name)
        ),
        queries=tuple(ExampleQuery(query.title, query.text, _without_comments(query.sql)) for query in queries),
    )


def _first_comment(sql: str) -> str:
    """The text of the comment lines that a file begins with. An empty comment line ends a paragraph."""
    lines = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return "\n".join(" ".join(part.split()) for part in "\n".join(lines).split("\n\n")).strip()


def _without_comments(sql: str) -> str:
    return "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--")).strip()
