"""A DB-API connection that gives each statement a query id, and leaves percent signs in statements unchanged."""

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
    :param identify: takes a statement's settings and returns them with a ``query_id``.
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
    # The class is created on first use, so that importing the hook does not import the client's package.
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
            # Callers that have no parameters do not double their percent signs.
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
                # `from None`: the client's error may contain the statement and its parameters
                raise error_of(self._where, e) from None

    return IdentifiedCursor
