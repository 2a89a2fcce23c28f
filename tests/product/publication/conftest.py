"""A table to publish into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.publication_table import Table
from trilake.clickhouse.cluster import Cluster
from trilake.endpoints import Endpoints


@pytest.fixture
def table(endpoints: Endpoints) -> Iterator[Table]:
    with Cluster(endpoints.clickhouse) as cluster:
        made = Table(endpoints, cluster)
        yield made
        made.drop()
