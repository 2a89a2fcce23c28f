"""The table of types says what the code of each path does, and docs/reference/types.md is that table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trilake.cli.type_table import PATHS, Rule, find, markdown
from trilake.clickhouse.publication.types import cuts
from trilake.clickhouse.publication.values import NoConversionError, from_text
from trilake.errors import ConfigurationError
from trilake.spark.clickhouse import _spark_type

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "types.md"
_EXAMPLES = {"(p, s)": "(9, 2)", "(p,s)": "(9,2)", "(n, zone)": "(6, 'UTC')", "(n)": "(3)", "[n]": "[3]"}


def example(kind: str) -> str:
    for general, one in _EXAMPLES.items():
        kind = kind.replace(general, one)
    return kind


def rules(name: str) -> tuple[Rule, ...]:
    path = find(name)
    assert path is not None
    return path.rules


def test_the_page_is_written_from_the_table() -> None:
    assert DOCS.read_text() == markdown(), "run: trilake types --markdown > docs/reference/types.md"


def test_each_rule_has_one_outcome_and_refusals_say_why() -> None:
    for path in PATHS:
        sources = [rule.source for rule in path.rules if rule.outcome == "refused"]
        assert len(sources) == len(set(sources)), path.name
        assert all(rule.how for rule in path.rules if rule.outcome != "exact" and not rule.target), path.name


NESTED = {"list<T>": ("list<int>", "Array(Int32)"), "map<K, V>": ("map<string, int>", "Map(String, Int32)")}
NESTED["struct<name: T>"] = ("struct<1: name: optional int>", "Tuple(name Int32)")


@pytest.mark.parametrize("rule", rules("iceberg-clickhouse"), ids=lambda rule: f"{rule.source}-{rule.target}")
def test_iceberg_to_clickhouse(rule: Rule) -> None:
    source, target = NESTED.get(rule.source, (example(rule.source), example(rule.target or "Int64")))
    assert cuts(source, target) is (rule.outcome == "refused")
    assert cuts(source, f"Nullable({target})") is (rule.outcome == "refused")


@pytest.mark.parametrize("rule", rules("clickhouse-job"), ids=lambda rule: rule.source)
def test_clickhouse_to_job(rule: Rule) -> None:
    for kind in rule.source.split(", ") if "(" not in rule.source else [rule.source]:
        if kind.startswith(("Enum", "DateTime,", "Array")):
            continue
        if rule.outcome == "refused":
            with pytest.raises(ConfigurationError, match="Column c"):
                _spark_type("c", example(kind))
        else:
            assert _spark_type("c", example(kind)) == example(rule.target)


@pytest.mark.parametrize("rule", rules("csv-clickhouse"), ids=lambda rule: rule.target or rule.source)
def test_csv_to_clickhouse(rule: Rule) -> None:
    target = rule.target or {"Array": "Array(Int8)", "Map": "Map(String, Int8)", "Tuple": "Tuple(a Int8)"}.get(
        rule.source, rule.source
    )
    first = example(re.split(r",(?![^(]*\))| to ", target)[0])
    first = {"Enum8": "Enum8('a' = 1)"}.get(first, first)
    if rule.outcome == "refused":
        with pytest.raises(NoConversionError):
            from_text("s", first)
    else:
        assert from_text("s", first).exact
