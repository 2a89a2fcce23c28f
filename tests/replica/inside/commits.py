"""Commits to an Iceberg table and to PostgreSQL until it is ended. A line for each: when, and how many they are."""

import os
from contextlib import closing
from datetime import UTC, datetime

import pyarrow as pa

from trilake.endpoints import Endpoints
from trilake.lake.catalog import ensure_namespace, open_catalog
from trilake.postgres.connection import connect

endpoints = Endpoints.from_environment()
with closing(open_catalog(endpoints.lake, endpoints.s3)) as catalog:
    ensure_namespace(catalog, "curated")
    rows = pa.table({"n": pa.array([1], pa.int64()), "filler": pa.array([os.urandom(100_000)])})
    table = catalog.create_table_if_not_exists("curated.commits", rows.schema)
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS commits (n int)")
    count = table.scan().to_arrow().num_rows
    while True:
        table.append(rows)
        count += 1
        with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO commits VALUES (%s)", (count,))
        print(datetime.now(UTC).isoformat(), count, flush=True)
