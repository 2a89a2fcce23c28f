"""Trilake's own tables in a home of an earlier version: nothing is applied twice, and nothing is refused."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.running_platform import Platform
from trilake.endpoints import PostgresEndpoint
from trilake.platform.embedded import postgres
from trilake.postgres.connection import connect
from trilake.schema.postgres_steps import migrate_postgres
from trilake.schema.steps import OWN, MigrationError, Step, own_steps

RECORDED_BY_0_1 = {
    "postgres/arrivals/table.sql": "86608e43a5ef1351e7713148ac495954ae65b33b75a2618e1cdd18c4a4afc80e",
    "postgres/arrivals/001_awaited.sql": "ce987de9368f97e616d6fd0fd85c6560a6ab7b4d322fa2d63497ee8474108d42",
    "postgres/publications/table.sql": "3621ab08ddcf9c3564979c40d1967822deaf93ea7f5c03b8858c6237c3351442",
    "postgres/publications/001_source.sql": "7be3fba6d92daf421c2f3f7ddbc6a830e0ae19c348ed0c5426f371b7d6369d65",
}
SINCE = {
    "postgres/agent_calls/table.sql": "b511974c1416367b9111ebd0627a882ce35f8d4d1b7840799cbc2d1ef36300ec",
    "postgres/access/table.sql": "76753e901c061286adf653bbedde2e1093d94b1288610a087644018d29456c73",
    "postgres/publications/002_contents.sql": "a59e056f6ee5ea0743065309c67e9b36f90df123abe6c172d4795aab1d49e54d",
    "postgres/shard_sets/table.sql": "94a9e4a284dc78ac42d6a256d9d0a282903ec5105ce02e3162ab37b7faa00428",
    "postgres/shard_sets/001_published_before.sql": "60d93e5ac73886ff1dab9eb3a9736909a79663916e8417237e2c4440e18dba0b",
}


@pytest.fixture
def lake(platform: Platform) -> Iterator[PostgresEndpoint]:
    """A database `lake` of this test alone."""
    superuser = postgres.superuser(platform.home.ports()["postgres"], platform.home.secrets())
    name = f"lake_{secrets.token_hex(4)}"
    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        yield replace(superuser, database=name)
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def migrate(lake: PostgresEndpoint) -> dict[str, str]:
    """The state of each step before it was applied, by path."""
    with connect(lake) as connection:
        return {item.step.path: item.state for item in migrate_postgres(connection, own_steps(), "lake", dry_run=False)}


def migrate_as_0_1(lake: PostgresEndpoint) -> None:
    """What version 0.1.0 left behind: it applied the same files from the project's sql/."""
    with connect(lake) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE public.schema_migrations (path text PRIMARY KEY, checksum text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for path, checksum in RECORDED_BY_0_1.items():
            cursor.execute((OWN / path).read_text())
            cursor.execute("INSERT INTO public.schema_migrations (path, checksum) VALUES (%s, %s)", (path, checksum))
        cursor.execute("INSERT INTO arrivals (data_set, partition, digest, run_id) VALUES ('a', '2013-01', 'd', 'r')")
        cursor.execute(
            "INSERT INTO publications (table_name, partition, fence, state, attempt, snapshot_id, sequence_number, "
            """rows, run_id) VALUES ('a', '2013-01', 1, 'done', 'a', 1, 1, '{"1": 5, "2": 6}', 'r'), """
            """('whole', 'all', 1, 'done', 'a', 1, 1, '{"1": 5, "2": 5}', 'r')"""
        )


def test_the_steps_of_trilakes_own_tables_are_those_that_every_home_has_recorded() -> None:
    """Byte for byte: a home of 0.1.0 recorded these paths and checksums, and refuses any other."""
    assert {(s.database, s.path): s.checksum for s in own_steps()} == {
        ("lake", path): checksum for path, checksum in (RECORDED_BY_0_1 | SINCE).items()
    }


def test_a_home_that_the_previous_version_migrated_gets_the_new_steps_and_keeps_its_rows(
    lake: PostgresEndpoint,
) -> None:
    migrate_as_0_1(lake)
    assert migrate(lake) == dict.fromkeys(RECORDED_BY_0_1, "applied") | dict.fromkeys(SINCE, "pending")
    with connect(lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT data_set, awaited FROM arrivals")
        assert cursor.fetchall() == [("a", False)]
        cursor.execute("SELECT table_name, generation, shards, next_shards, switching FROM shard_sets")
        assert cursor.fetchall() == [("a", 1, 2, None, False)]


def test_a_new_home_gets_them_once(lake: PostgresEndpoint) -> None:
    assert set(migrate(lake).values()) == {"pending"}
    assert set(migrate(lake).values()) == {"applied"}


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("no_such_package:x.csv", "no_such_package is not installed"),
        ("/etc/hosts", "does not have the form package:resource"),
    ],
)
def test_a_step_whose_source_is_not_there_is_refused_and_nothing_is_recorded(
    lake: PostgresEndpoint, source: str, what: str
) -> None:
    step = Step("postgres/t/table.sql", "t", "lake", "COPY t FROM STDIN", source=source)
    with (
        pytest.raises(MigrationError, match=rf"sql/postgres/t/table\.sql cannot read .*{what}"),
        connect(lake) as connection,
    ):
        migrate_postgres(connection, [step], "lake", dry_run=False)
    with connect(lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.schema_migrations')")
        assert cursor.fetchone() == (None,)
