"""A data set is declared once; everything else follows."""

from __future__ import annotations

from typing import Any

import pytest

from trilake.errors import ConfigurationError
from trilake.lake import DataSet

ORDERS = DataSet("orders", grain="day", date="ordered_on", shard_by="customer_id")


def test_names_follow_from_the_declaration() -> None:
    assert ORDERS.raw_key("2013-01-02", "orders.csv") == "orders/2013-01-02/orders.csv"
    assert ORDERS.raw_uri("2013-01-02") == "s3://raw/orders/2013-01-02/"
    assert (ORDERS.curated, ORDERS.quarantine) == ("curated.orders", "quarantine.orders")
    assert (ORDERS.table, ORDERS.local_table) == ("orders", "orders_local")
    assert ORDERS.staging_table("0123456789ab", "2013-01-02") == "orders_staging_0123456789ab_20130102"
    assert ORDERS.clickhouse_uri == "clickhouse://analytics/orders"


@pytest.mark.parametrize("data_set", [ORDERS, DataSet("planes")])
def test_a_declaration_survives_a_command_line(data_set: DataSet) -> None:
    assert DataSet.from_json(data_set.to_json()) == data_set


@pytest.mark.parametrize(
    "declaration",
    [
        {"name": "Orders"},
        {"name": "1orders"},
        {"name": "orders; DROP TABLE x"},
        {"name": "o" * 41},
        {"name": "orders", "grain": "week", "date": "d", "shard_by": "k"},
        {"name": "orders", "grain": "day"},
        {"name": "orders", "date": "d"},
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(declaration: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        DataSet(**declaration)


def test_a_dimension_table_has_no_window() -> None:
    with pytest.raises(ConfigurationError, match="no grain"):
        DataSet("planes").window("2013-01")
