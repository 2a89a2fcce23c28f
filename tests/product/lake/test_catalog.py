"""The Iceberg catalog in PostgreSQL, as several processes use it."""

from __future__ import annotations

import secrets
import threading

from support.running_platform import Platform
from trilake.endpoints import Endpoints, PostgresEndpoint
from trilake.lake.catalog import ensure_namespace, open_catalog
from trilake.platform.embedded import postgres
from trilake.postgres.connection import connect
from trilake.postgres.databases import make_databases


def test_a_catalog_that_several_open_for_the_first_time_at_once_opens_for_all_of_them(platform: Platform) -> None:
    port, name, password = platform.home.ports()["postgres"], f"catalog_{secrets.token_hex(4)}", secrets.token_hex(8)
    superuser = postgres.superuser(port, platform.home.secrets())
    make_databases(superuser, {name: password})
    lake = PostgresEndpoint(superuser.host, port, name, name, password)
    together = threading.Barrier(6)
    errors: list[Exception] = []

    def open_and_close() -> None:
        together.wait()
        try:
            open_catalog(lake, platform.endpoints.s3).close()
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=open_and_close) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        cursor.execute(f'DROP ROLE "{name}"')
    assert errors == []


def test_a_namespace_that_several_make_at_once_is_made_once_and_for_all_of_them(endpoints: Endpoints) -> None:
    namespace = f"n_{secrets.token_hex(4)}"
    catalogs = [open_catalog(endpoints.lake, endpoints.s3) for _ in range(4)]
    together = threading.Barrier(len(catalogs))
    errors: list[Exception] = []

    def make(number: int) -> None:
        together.wait()
        try:
            ensure_namespace(catalogs[number], namespace)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(len(catalogs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    catalogs[0].drop_namespace(namespace)
    for catalog in catalogs:
        catalog.close()
