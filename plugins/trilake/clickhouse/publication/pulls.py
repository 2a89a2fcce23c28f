"""Chooses how ClickHouse reads the files of a plan."""

from __future__ import annotations

from trilake.clickhouse.publication.columns import Columns
from trilake.clickhouse.publication.objects_pull import ObjectsPull
from trilake.clickhouse.publication.pull import IcebergPull, Pull
from trilake.lake.plan import LoadPlan


def pull_of(plan: LoadPlan, columns: Columns, shards: int) -> Pull:
    """How to read the files of a plan."""
    return (ObjectsPull if plan.plain else IcebergPull)(plan, columns, shards)
