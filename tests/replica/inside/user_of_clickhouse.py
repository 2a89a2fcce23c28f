"""In a container of Airflow: as whom ClickHouse knows Airflow."""

from __future__ import annotations

from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints

with Cluster(Endpoints.from_environment().clickhouse) as cluster:
    print(cluster.any_host(Statement("SELECT currentUser()"))[0][0])
