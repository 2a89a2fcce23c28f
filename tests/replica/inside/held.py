"""In a container of Airflow: every count of the flights that anyone could look at, as JSON."""

from __future__ import annotations

import json

from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints
from trilake.lake import DataSet, Window
from trilake.lake.catalog import load_table, open_catalog, plan
from trilake.postgres.connection import connect

FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
YEAR = Window.parse("month", "2013-01", "2013-12")

endpoints = Endpoints.from_environment()
catalog = open_catalog(endpoints.lake, endpoints.s3)
found = plan(load_table(catalog, "curated.flights"), FLIGHTS, YEAR).partitions
lake = {p.partition: p.rows for p in found if p.rows}
quarantined = load_table(catalog, "quarantine.flights").scan().count()
catalog.close()
with Cluster(endpoints.clickhouse) as cluster:
    shards = cluster.every_shard(
        Statement(
            "SELECT formatDateTime(flight_date, '%Y-%m') AS m, count(), toString(sum(cityHash64(tuple(*)))) "
            "FROM {shard}.flights_local GROUP BY m ORDER BY m"
        )
    )
    strays = {
        shard.number: cluster.on_shard(
            shard,
            Statement(
                f"SELECT count() FROM {{shard}}.flights_local WHERE icebergBucket(2, flight) != {shard.number - 1}"
            ),
        )[0][0]
        for shard in endpoints.clickhouse.shards
    }
    dimensions = cluster.every_shard(
        Statement(
            "SELECT (SELECT count() FROM {shard}.airlines_local), (SELECT count() FROM {shard}.airports_local), "
            "(SELECT count() FROM {shard}.planes_local)"
        )
    )
    tables = cluster.every_shard(
        lambda client, shard: (
            client.query(
                f"SELECT name FROM system.tables WHERE database IN ('{shard.database}', '{shard.staging_database}')"
            ).result_rows
        )
    )
    # as each host tells it to its readers
    over_all = cluster.every_host(
        Statement("SELECT count(), countIf(cancelled), uniqExact(carrier) FROM analytics.flights")
    )
with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT count(*), sum(flights), sum(cancelled)::int FROM marts.carrier_month")
    mart = [int(value or 0) for value in cursor.fetchone()]
with connect(endpoints.lake) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT count(*) FROM publications WHERE state = 'switching'")
    switching = int(cursor.fetchone()[0])
reports = s3.client(endpoints.s3).list_objects_v2(Bucket="artifacts", Prefix="reports/flights/").get("Contents", [])
print(
    json.dumps(
        {
            "lake": lake,
            "quarantined": quarantined,
            "shards": shards,
            "strays": strays,
            "dimensions": dimensions,
            "staging": [name for listed in tables.values() for (name,) in listed if "staging" in name],
            "over_all": over_all,
            "mart": mart,
            "switching": switching,
            "reports": {r["Key"]: r["Size"] for r in reports},
        }
    )
)
