"""Types of ClickHouse, of Iceberg and of Spark: held against each other, for any that can be written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trilake.clickhouse.publication.types import bare, cuts, fits
from trilake.errors import ConfigurationError
from trilake.spark.clickhouse import _spark_type

TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("ADENaby(),<> 0123'", max_size=20)
DECIMALS = st.integers(1, 38).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p)))
# Spark's type and ClickHouse's equal
PAIRS = st.sampled_from(
    [
        ("int", "Int32"),
        ("bigint", "Int64"),
        ("float", "Float32"),
        ("double", "Float64"),
        ("string", "String"),
        ("boolean", "Bool"),
        ("date", "Date32"),
        ("timestamp", "DateTime64(6, 'UTC')"),
    ]
) | DECIMALS.map(lambda d: (f"decimal({d[0]},{d[1]})", f"Decimal({d[0]}, {d[1]})"))
NESTED = st.recursive(PAIRS, lambda inner: inner.map(lambda p: (f"array<{p[0]}>", f"Array({p[1]})")), max_leaves=3)
WRAPPERS = st.lists(st.sampled_from(["Nullable", "LowCardinality"]), max_size=3)


def wrapped(kind: str, wrappers: list[str]) -> str:
    for wrapper in wrappers:
        kind = f"{wrapper}({kind})"
    return kind


@given(NESTED, WRAPPERS)
def test_a_wrapped_type_is_the_type(pair: tuple[str, str], wrappers: list[str]) -> None:
    kind, clickhouse = pair
    assert bare(wrapped(clickhouse, wrappers)) == clickhouse
    assert fits(kind, wrapped(clickhouse, wrappers))
    assert _spark_type("c", wrapped(clickhouse, wrappers)) == kind


@given(NESTED, NESTED)
def test_of_two_types_the_equal_ones_fit_and_no_others(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert fits(one[0], other[1]) == (one == other)
    if not one[0].startswith("array<"):
        iceberg = {"bigint": "long", "timestamp": "timestamptz"}.get(one[0], one[0].replace(",", ", "))
        assert cuts(iceberg, other[1]) == (one != other)


@given(TEXT | NESTED.map(lambda pair: pair[1] + ")") | NESTED.map(lambda pair: pair[1][:-1]))
def test_any_text_is_a_type_of_spark_or_refused_by_the_column_s_name(kind: str) -> None:
    assert bare(bare(kind)) == bare(kind)
    assert fits(kind, kind) is False or kind == ""
    try:
        made = _spark_type("amount", kind)
    except ConfigurationError as e:
        made = str(e).partition("amount")[1]
    assert made
