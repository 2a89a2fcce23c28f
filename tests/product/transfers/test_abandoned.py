"""What a killed job leaves and no other one comes for: it goes, and what somebody is behind stays."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from support.kubernetes_api import await_true
from support.running_platform import Platform
from support.transfer_task import connect_airflow, context
from trilake import retry, s3
from trilake.endpoints import Endpoints
from trilake.errors import UnreachableError
from trilake.operators.abandoned import RemoveAbandonedOperator
from trilake.postgres import locks
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, hold_lock, keep_lock, try_lock
from trilake.spark.postgres import STAGING


def clear(**options: Any) -> dict[str, Any]:
    told = RemoveAbandonedOperator(task_id="clear", **options).execute(context())
    return dict(json.loads(json.dumps(told)))


@pytest.fixture
def schema(endpoints: Endpoints) -> Iterator[str]:
    """One whose name has to be quoted."""
    name = f"S {secrets.token_hex(4)}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{name}"')
    yield name
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{name}" CASCADE')


def tables(endpoints: Endpoints, schema: str) -> list[str]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", (schema,))
        return [name for (name,) in cursor.fetchall()]


def exported(endpoints: Endpoints, session: str) -> str:
    """An object that a session's shards have written, and an upload that one of them has begun."""
    store, prefix = s3.client(endpoints.s3), f"spark/{session}/1_t/{secrets.token_hex(6)}/all"
    store.put_object(Bucket="exports", Key=f"{prefix}/shard_1.parquet", Body=b"rows")
    store.create_multipart_upload(Bucket="exports", Key=f"{prefix}/shard_2.parquet")
    return f"spark/{session}/"


def test_what_killed_jobs_left_goes_though_no_other_one_comes_and_what_somebody_is_behind_stays(
    platform: Platform, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    endpoints, store = platform.endpoints, s3.client(platform.endpoints.s3)
    dead, living = (secrets.token_hex(6) for _ in range(2))
    mart = f"{STAGING}not_of_an_attempt"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        for name in (f"{STAGING}{dead}", f"{STAGING}{living}", mart):
            cursor.execute(f'CREATE UNLOGGED TABLE "{schema}".{name} (k int)')
    prefixes = {session: exported(endpoints, session) for session in (dead, living)}
    with ExitStack() as held:
        held.enter_context(hold_lock(endpoints.oltp, LockSpace.MART_STAGING, living))
        held.enter_context(hold_lock(endpoints.lake, LockSpace.SPARK_SESSION, living))
        told = clear()
        assert told["staging"] == [f"{schema}.{STAGING}{dead}"]
        assert told["sessions"] == [dead]
        assert tables(endpoints, schema) == sorted([f"{STAGING}{living}", mart])
        assert len(s3.list_keys(store, "exports", prefixes[living])) == 1
        assert len(s3.list_uploads(store, "exports", prefixes[living])) == 1
        assert not s3.list_keys(store, "exports", prefixes[dead])
        assert not s3.list_uploads(store, "exports", prefixes[dead])
    told = clear()
    assert (told["staging"], told["sessions"]) == ([f"{schema}.{STAGING}{living}"], [living])
    assert tables(endpoints, schema) == [mart]
    told = clear()
    assert (told["staging"], told["sessions"]) == ([], [])


def test_an_export_that_a_task_has_named_spark_is_no_dead_session(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    store, prefix = s3.client(platform.endpoints.s3), exported(platform.endpoints, f"2013-01-{secrets.token_hex(4)}")
    assert clear()["sessions"] == []
    assert len(s3.list_keys(store, "exports", prefix)) == 1
    s3.remove(store, "exports", s3.list_keys(store, "exports", prefix))
    assert s3.abort_uploads(store, "exports", prefix) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_who_is_at_work_is_known_again_when_the_server_has_lost_the_session(
    endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.2)
    space, name = 0x7400 + secrets.randbelow(64), secrets.token_hex(6)

    def is_free() -> bool:
        with try_lock(endpoints.lake, space, name) as free:
            return free

    with ExitStack() as held:
        for _ in range(1 + shared):
            held.enter_context(keep_lock(endpoints.lake, space, name, shared=shared))
        assert not is_free()
        with connect(endpoints.lake) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE classid = %s", (space,))
            assert cursor.fetchall() == [(True,)] * (1 + shared)
        assert await_true(lambda: not is_free())
    assert await_true(is_free), "the server notices a closed connection a moment later"


def test_who_cannot_be_known_as_alive_is_told_why(endpoints: Endpoints) -> None:
    away = replace(endpoints.lake, port=9)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"), keep_lock(away, 0x7400, "somebody"):
        pass


def test_uploads_that_nobody_completed_end_in_every_bucket_when_they_are_older_than_anything_that_runs(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    store, key = s3.client(platform.endpoints.s3), f"{secrets.token_hex(4)}/large"
    begun = ("raw", "artifacts", "logs", "exports", "lake")
    for bucket in begun:
        store.create_multipart_upload(Bucket=bucket, Key=key)

    def left() -> set[str]:
        return {bucket for bucket in begun if s3.list_uploads(store, bucket, key)}

    assert clear()["uploads"] == {}
    assert left() == set(begun), "somebody may be at it"
    ended = clear(uploads_stay=-timedelta(hours=1))["uploads"]
    assert set(ended) == set(begun) - {"lake"}
    assert left() == {"lake"}, "Iceberg's are ended by the lake's own maintenance"
    assert s3.abort_uploads(store, "lake", key) == 1


def test_a_service_that_is_away_does_not_keep_what_lies_in_the_others(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    monkeypatch.setattr(retry, "RESTART_S", 1.0)
    away = json.loads(platform.env["AIRFLOW_CONN_POSTGRES_OLTP"]) | {"host": "127.0.0.1", "port": 9}
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_OLTP", json.dumps(away))
    prefix = exported(platform.endpoints, secrets.token_hex(6))
    with pytest.raises(UnreachableError, match="oltp"):
        clear()
    assert not s3.list_keys(s3.client(platform.endpoints.s3), "exports", prefix)
