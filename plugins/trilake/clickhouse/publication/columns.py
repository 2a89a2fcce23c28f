"""The columns of a ClickHouse table, and whether they can hold the values of a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.publication.types import cuts
from trilake.errors import CountMismatchError
from trilake.lake.data_set import DataSet
from trilake.lake.plan import LoadPlan

# In a CSV file an empty field without quotes is NULL, and so is this text.
CSV_NULL = "\\N"
# Types for which an empty string is a value. All other types read an empty field as NULL.
_TEXT = re.compile(r"String|FixedString\(\d+\)|LowCardinality\((Fixed)?String(\(\d+\))?\)")


def is_text(kind: str) -> bool:
    """Whether an empty field of CSV is a value of a type. All other types read it as NULL."""
    return _TEXT.fullmatch(kind) is not None


class AuditError(CountMismatchError):
    """Staging does not hold the rows of its source. Nothing was published."""


@dataclass(frozen=True)
class Columns:
    """Columns by name and ClickHouse type, in the table's order."""

    names: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def typed(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each column."""
        return tuple(zip(self.names, self.types, strict=True))

    def only(self, typed: Iterable[tuple[str, str]]) -> Columns:
        """These of the columns, by name."""
        wanted = {name for name, _ in typed}
        kept = [(name, kind) for name, kind in self.typed if name in wanted]
        return Columns(tuple(name for name, _ in kept), tuple(kind for _, kind in kept))

    @property
    def listed(self) -> str:
        """The quoted names with commas between them."""
        return ", ".join(quote_name(name) for name in self.names)

    @property
    def structure(self) -> str:
        """Names and types as the table function s3() takes them."""
        return ", ".join(f"{quote_name(n)} {t}" for n, t in zip(self.names, self.types, strict=True))

    @property
    def csv_structure(self) -> str:
        """Like `structure`, but every field is a string, see `trilake.clickhouse.publication.values`."""
        kinds = ("String" if is_text(kind) else "Nullable(String)" for kind in self.types)
        return ", ".join(f"{quote_name(n)} {kind}" for n, kind in zip(self.names, kinds, strict=True))


def read_columns(cluster: Cluster, data_set: DataSet) -> Columns:
    """The columns of a data set's local table that an INSERT can fill.

    :raises ClickHouseError: a shard has no such table, or the shards' columns differ.
    """
    rows = cluster.every_shard(
        lambda client, shard: Statement(
            "SELECT name, type FROM system.columns WHERE default_kind IN ('', 'DEFAULT') "
            f"AND database = {quote_text(shard.database)} AND table = {quote_text(data_set.local_table)} "
            "ORDER BY position"
        )(client, shard)
    )
    first = rows[cluster.shards[0].number]
    for shard in cluster.shards:
        if not rows[shard.number]:
            raise ClickHouseError(
                f"{shard} has no table {data_set.local_table}.", hint="Apply the migrations: `trilake migrate`."
            )
        if rows[shard.number] != first:
            raise ClickHouseError(
                f"The columns of {data_set.local_table} differ between the shards.",
                hint="Apply the migrations: `trilake migrate`.",
            )
    return Columns(tuple(name for name, _ in first), tuple(kind for _, kind in first))


def check_types(plan: LoadPlan, columns: Columns) -> None:
    """:raises AuditError: a column of the table cannot hold every value of the snapshot's column, or the snapshot does
    not have the column.
    """
    if not plan.types:
        return
    cut = [
        f"{name} is {plan.types[name]} in the lake and {kind} in ClickHouse"
        for name, kind in zip(columns.names, columns.types, strict=True)
        if name in plan.types and cuts(plan.types[name], kind)
    ]
    if cut:
        raise AuditError(
            f"{plan.data_set.table}: {'; '.join(cut)}. ClickHouse would change values without an error, so nothing was "
            "published.",
            hint="Use the same type in both: alter the table in a step of sql/clickhouse, or cast the column in the "
            "job.",
        )
    if missing := [name for name in columns.names if name not in plan.types]:
        raise AuditError(
            f"{plan.data_set.table} has the column {', '.join(missing)} in ClickHouse, but not in the lake, so it is "
            "unknown what to fill it with. Nothing was published.",
            hint="Add the column in the job, or drop it from the table in a step of sql/clickhouse. A column that "
            "follows from the others can be MATERIALIZED or ALIAS.",
        )
