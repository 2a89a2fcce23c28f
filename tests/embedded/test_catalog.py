"""The Iceberg catalog in PostgreSQL, as several processes use it."""

from __future__ import annotations

import secrets
import threading

from trilake.endpoints import Endpoints
from trilake.lake.catalog import ensure_namespace, open_catalog


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
