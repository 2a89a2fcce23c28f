"""A DB-API connection whose statements have identities, and whose percent signs stay as they were written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseConnection

from trilake.clickhouse.cluster import error_of

if TYPE_CHECKING:
    from clickhouse_connect.dbapi.cursor import Cursor
    from clickhouse_connect.driver.client import Client

Identify = Callable[[Any], dict[str, Any]]


class IdentifiedConnection(ClickHouseConnection):
    """
    :param identify: makes a statement's settings, its ``query_id`` among them, of those that it is given.
    :param where: the host, for errors.
    """

    def __init__(self, client: Client, identify: Identify, where: str) -> None:
        super().__init__(client)
        self._identify = identify
        self._where = where

    def cursor(self) -> Cursor:
        cursor: Cursor = _cursor_class()(self._client, self._identify, self._where)
        return cursor


@cache
def _cursor_class() -> type[Any]:
    # made when it is first used: the client's package is not imported with the hook
    from clickhouse_connect.dbapi.cursor import Cursor

    class IdentifiedCursor(Cursor):
        def __init__(self, client: Client, identify: Identify, where: str) -> None:
            super().__init__(client)
            self._identify = identify
            self._where = where

        def execute(
            self,
            operation: str,
            parameters: Any = None,
            settings: dict[str, Any] | None = None,
            query_formats: dict[str, str] | None = None,
            *,
            # without parameters nothing is formatted, so that nobody has doubled a percent sign
            pyformat_encoded: bool = False,
        ) -> None:
            try:
                super().execute(
                    operation,
                    parameters,
                    self._identify(settings),
                    query_formats,
                    pyformat_encoded=pyformat_encoded,
                )
            except Exception as e:
                # `from None`: the client's error may carry the statement and its parameters
                raise error_of(self._where, e) from None

    return IdentifiedCursor
