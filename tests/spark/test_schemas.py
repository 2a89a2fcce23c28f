"""What a job writes is what the table in ClickHouse takes, name by name and type by type, without a server."""

from __future__ import annotations

import re
from pathlib import Path

from flights_curate import FLIGHTS_CSV, WEATHER_CSV, curate
from pyspark.sql import SparkSession
from pyspark.sql.types import IntegerType, StringType, StructType

SQL = Path(__file__).resolve().parents[2] / "sql" / "clickhouse"
# Iceberg's types as ClickHouse reads them from Parquet. No other pair: a narrower one would cut values.
EQUAL = {
    "int": {"Int32"},
    "bigint": {"Int64"},
    "float": {"Float32"},
    "double": {"Float64"},
    "string": {"String"},
    "boolean": {"Bool"},
    "date": {"Date", "Date32"},
    "timestamp": {"DateTime64(6, 'UTC')"},
}
_COLUMN = re.compile(
    r"^    (?P<name>\w+)\s+(?P<type>[A-Z][\w(), ']*?)(?=\s+(?:CODEC|COMMENT|DEFAULT)|,?$)", re.MULTILINE
)


def columns_of(table: str) -> dict[str, str]:
    ddl = (SQL / table / "table.sql").read_text()
    return {m["name"]: m["type"].strip() for m in _COLUMN.finditer(ddl)}


def bare(kind: str) -> str:
    while match := re.fullmatch(r"(?:Nullable|LowCardinality)\((.*)\)", kind):
        kind = match[1]
    return kind


def test_flights_match_their_table(spark: SparkSession) -> None:
    planes = StructType().add("tailnum", StringType()).add("year", IntegerType()).add("manufacturer", StringType())
    planes = planes.add("model", StringType()).add("seats", IntegerType())
    made = curate(
        spark.createDataFrame([], FLIGHTS_CSV),
        spark.createDataFrame([], WEATHER_CSV),
        spark.createDataFrame([], planes),
    ).schema
    table = columns_of("flights")
    assert set(table) == set(made.fieldNames())
    wrong = {
        field.name: (field.dataType.simpleString(), table[field.name])
        for field in made
        if bare(table[field.name]) not in EQUAL[field.dataType.simpleString()]
    }
    assert not wrong
