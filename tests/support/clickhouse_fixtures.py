"""Gateways for tests: `pytest_plugins = ["support.clickhouse_fixtures"]`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clickhouse_gateway import RunningGateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests that leave it as it was, but for tables of their own."""
    running = RunningGateway(tmp_path_factory.mktemp("clickhouse")).start()
    yield running
    running.end()


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway for a test that ends it."""
    running = RunningGateway(tmp_path).start()
    yield running
    assert running.process is not None
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


@pytest.fixture
def table(gateway: RunningGateway, request: pytest.FixtureRequest) -> Iterator[str]:
    """A table (n UInt64, s String) of the test's own."""
    name = f"shard_1.`{request.node.name}`"
    gateway.sql(f"CREATE TABLE {name} (n UInt64, s String) ENGINE = MergeTree ORDER BY n")
    yield name
    gateway.sql(f"DROP TABLE {name}")
