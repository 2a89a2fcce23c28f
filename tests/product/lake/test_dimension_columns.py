"""A dimension whose source changes: its Iceberg table follows with every value, or the change is refused by name."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.catalog import open_catalog
from trilake.lake.dimensions import SourceChangedError
from trilake.postgres.connection import connect
from trilake.postgres.extract import ExtractError
from trilake.transfers.postgres_to_iceberg import PostgresToIcebergOperator


class Dimension:
    """A table of PostgreSQL and the data set that is made of it."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self.data_set = DataSet(f"d_{secrets.token_hex(4)}")
        self.source = f"marts.{self.data_set.name}"

    def run(self, sql: str) -> None:
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(sql.replace("{t}", self.source))

    def load(self, **options: Any) -> dict[str, Any]:
        task = make(PostgresToIcebergOperator, data_set=self.data_set, **{"table": self.source, **options})
        found: dict[str, Any] = task.execute(context())
        return found

    def held(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """The types of the columns, with an exclamation mark for those that cannot be NULL, and the rows."""
        catalog = open_catalog(self.endpoints.lake, self.endpoints.s3)
        try:
            table = catalog.load_table(self.data_set.curated)
            types = {f.name: f"{f.field_type}{'!' if f.required else ''}" for f in table.schema().fields}
            return types, table.scan().to_arrow().to_pylist()
        finally:
            catalog.close()


@pytest.fixture
def dimension(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dimension]:
    connect_airflow(monkeypatch, platform.env)
    made = Dimension(platform.endpoints)
    yield made
    catalog = open_catalog(platform.endpoints.lake, platform.endpoints.s3)
    if catalog.table_exists(made.data_set.curated):
        catalog.drop_table(made.data_set.curated)
    catalog.close()
    made.run(f"DROP VIEW IF EXISTS {made.source}_v; DROP MATERIALIZED VIEW IF EXISTS {made.source}_m")
    made.run("DROP TABLE IF EXISTS {t}")


KV = "k int NOT NULL, v text"


@pytest.mark.parametrize(
    ("columns", "row", "change", "types", "rows"),
    [
        (KV, "1, 'a'", "ADD w int", {"k": "int!", "v": "string", "w": "int"}, [{"k": 1, "v": "a", "w": None}]),
        (KV, "1, 'a'", "ADD w int NOT NULL DEFAULT 7", {"k": "int!", "v": "string", "w": "int"},
         [{"k": 1, "v": "a", "w": 7}]),
        (KV, "1, 'a'", "ALTER k DROP NOT NULL", {"k": "int", "v": "string"}, [{"k": 1, "v": "a"}]),
        (KV, "1, 'a'", "ALTER v SET NOT NULL", {"k": "int!", "v": "string"}, [{"k": 1, "v": "a"}]),
        (KV, "1, 'a'", "ALTER k TYPE bigint", {"k": "long!", "v": "string"}, [{"k": 1, "v": "a"}]),
        ("k bigint", "1", "ALTER k TYPE int", {"k": "long"}, [{"k": 1}]),
        ("k real", "0.1", "ALTER k TYPE float8", {"k": "double"}, [{"k": 0.10000000149011612}]),
        ("k numeric(5, 2)", "1.25", "ALTER k TYPE numeric(9, 2)", {"k": "decimal(9, 2)"}, [{"k": Decimal("1.25")}]),
        ("k numeric(9, 2)", "1.25", "ALTER k TYPE numeric(5, 2)", {"k": "decimal(9, 2)"}, [{"k": Decimal("1.25")}]),
    ],
)  # fmt: skip
def test_a_change_that_keeps_every_value_is_followed(
    dimension: Dimension, columns: str, row: str, change: str, types: dict[str, str], rows: list[dict[str, Any]]
) -> None:
    dimension.run(f"CREATE TABLE {{t}} ({columns}); INSERT INTO {{t}} VALUES ({row})")
    dimension.load()
    dimension.run(f"ALTER TABLE {{t}} {change}")
    dimension.load()
    assert dimension.held() == (types, rows)


@pytest.mark.parametrize(
    ("change", "says", "replaced", "types"),
    [
        ("DROP v", "has no column v any more", ["v"], {"k": "int!"}),
        ("RENAME v TO w", "has no column v any more. New in .*: w", ["v"], {"k": "int!", "w": "string"}),
        ('RENAME v TO "V"', "has no column v any more. New in .*: V", ["v"], {"k": "int!", "V": "string"}),
        ("ALTER k TYPE text", "column k is int in the table and string in", ["k"], {"v": "string", "k": "string"}),
        ("ALTER v TYPE date USING '2013-01-01'", "v is string .* and date in", ["v"], {"k": "int!", "v": "date"}),
    ],
)  # fmt: skip
def test_a_change_that_could_lose_values_is_refused_until_a_person_names_the_column(
    dimension: Dimension, change: str, says: str, replaced: list[str], types: dict[str, str]
) -> None:
    dimension.run(f"CREATE TABLE {{t}} ({KV}); INSERT INTO {{t}} VALUES (1, 'a')")
    dimension.load()
    before = dimension.held()
    dimension.run(f"ALTER TABLE {{t}} {change}")
    with pytest.raises(SourceChangedError, match=says):
        dimension.load()
    assert dimension.held() == before
    dimension.load(replace_columns=replaced)
    dimension.load(replace_columns=replaced)  # a second run finds nothing to replace
    found, rows = dimension.held()
    assert (found, len(rows)) == (types, 1)


def test_views_and_materialized_views_are_sources(dimension: Dimension) -> None:
    dimension.run("CREATE TABLE {t} (k int, \"share %\" numeric(3, 1), j jsonb); INSERT INTO {t} VALUES (1, 2.5, '{}')")
    dimension.run(f"CREATE VIEW {dimension.source}_v AS SELECT * FROM {{t}}")
    dimension.run(f"CREATE MATERIALIZED VIEW {dimension.source}_m AS SELECT * FROM {{t}}")
    for end in ("", "_v", "_m"):
        dimension.load(table=dimension.source + end)
        assert dimension.held()[1] == [{"k": 1, "share %": Decimal("2.5"), "j": "{}"}]


def test_a_value_that_iceberg_cannot_hold_is_named_and_the_table_stays(dimension: Dimension) -> None:
    dimension.run("CREATE TABLE {t} (k int, until timestamptz); INSERT INTO {t} VALUES (1, '2013-01-01')")
    dimension.load()
    before = dimension.held()
    dimension.run("INSERT INTO {t} VALUES (2, 'infinity')")
    with pytest.raises(ExtractError, match=r"Column until has a value .* 'infinity' in row 2"):
        dimension.load()
    assert dimension.held() == before


def test_a_text_is_not_a_list_of_columns(dimension: Dimension) -> None:
    with pytest.raises(ConfigurationError, match="replace_columns"):
        dimension.load(replace_columns="v")
