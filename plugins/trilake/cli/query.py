"""``trilake sql`` and ``trilake psql``: a table on a terminal, tab-separated values in a pipe, JSON with ``--json``."""

from __future__ import annotations

import base64
import datetime
import decimal
import http.client
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from trilake.cli.options import Json, endpoints
from trilake.endpoints import ClickHouseEndpoint, PostgresEndpoint
from trilake.errors import TrilakeError, UnreachableError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# A terminal shows at most this many rows. A pipe gets all rows.
SHOWN_ROWS = 1_000
_CONNECT_TIMEOUT_S = 5
_BLOCK_BYTES = 1 << 16
_ERROR_LETTERS = 400
_TABLE = "JSONCompact"


app = typer.Typer()


class QueryError(TrilakeError):
    """The database refused the query or stopped in its answer."""


@app.command()
def sql(query: Annotated[str, typer.Argument(help="A query in ClickHouse's SQL.")], json: Json = False) -> None:
    """Run a query in ClickHouse. The output is a table on a terminal, tab-separated values in a pipe."""
    clickhouse(endpoints().clickhouse, query, as_json=json)


@app.command()
def psql(
    query: Annotated[str, typer.Argument(help="A query in PostgreSQL's SQL.")],
    json: Json = False,
    lake: Annotated[bool, typer.Option("--lake", help="Use the database lake (catalog, publications).")] = False,
) -> None:
    """Run a query in PostgreSQL (OLTP). The output is a table on a terminal, tab-separated values in a pipe."""
    here = endpoints()
    postgres(here.lake if lake else here.oltp, query, as_json=json)


def clickhouse(endpoint: ClickHouseEndpoint, query: str, *, as_json: bool) -> None:
    """Print a query's result as a stream. A FORMAT clause in the query is respected.

    :raises UnreachableError: ClickHouse does not answer.
    :raises QueryError: ClickHouse refused the query, or the answer is not complete.
    """
    on_terminal = sys.stdout.isatty() and not as_json
    form = _TABLE if on_terminal else "JSONEachRow" if as_json else "TabSeparated"
    parameters = {"database": endpoint.database, "default_format": form, "output_format_json_quote_64bit_integers": "0"}
    if as_json:
        parameters["output_format_json_array_of_rows"] = "1"
    shard = endpoint.shards[0]
    make = http.client.HTTPSConnection if endpoint.secure else http.client.HTTPConnection
    connection = make(shard.host, shard.port, timeout=_CONNECT_TIMEOUT_S)
    where = f"ClickHouse ({shard.host}:{shard.port})"
    try:
        connection.connect()
        connection.sock.settimeout(None)  # a query has no time limit
        login = base64.b64encode(f"{endpoint.user}:{endpoint.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}"}
        connection.request("POST", "/?" + urlencode(parameters), body=query.encode(), headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            message = answer.read().decode(errors="replace").strip()
            raise QueryError(f"{where}: {_one_line(message) or f'HTTP status {answer.status}'}")
        if on_terminal and answer.headers.get("X-ClickHouse-Format") == _TABLE:
            if text := answer.read():
                document = json.loads(text, parse_float=decimal.Decimal)  # every digit as sent
                _print_table([column["name"] for column in document["meta"]], document["data"])
            return
        while block := answer.read1(_BLOCK_BYTES):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except http.client.HTTPException as e:
        raise QueryError(
            f"{where} closed the connection before its answer was complete ({type(e).__name__})."
        ) from None
    except BrokenPipeError:
        raise
    except OSError as e:
        raise UnreachableError(
            f"{where} does not answer: {e.strerror or type(e).__name__}.",
            hint="`trilake status` shows whether it runs; `trilake up` starts it.",
        ) from None
    finally:
        connection.close()


def postgres(endpoint: PostgresEndpoint, query: str, *, as_json: bool) -> None:
    """Run a query in its own transaction. Print its rows, or its status if it has none.

    :raises UnreachableError: PostgreSQL does not answer.
    :raises QueryError: PostgreSQL refused the query.
    """
    from trilake.postgres.connection import PostgresError, connect

    try:
        with connect(endpoint) as connection:
            _run(connection, query, as_json=as_json)
    except PostgresError as e:
        raise QueryError(_one_line(e.message)) from e


def _run(connection: Connection, query: str, *, as_json: bool) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query)
        if cursor.description is None:
            print(json.dumps({"status": cursor.statusmessage}) if as_json else cursor.statusmessage)
            return
        names = [column.name for column in cursor.description]
        if as_json:
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
            print(json.dumps(rows, default=_json))
        elif sys.stdout.isatty():
            _print_table(names, cursor.fetchmany(SHOWN_ROWS + 1), cursor.rowcount)
        else:
            for row in cursor:
                print("\t".join(map(tab_separated, row)))


def _one_line(text: str) -> str:
    """The message on one line, cut: ClickHouse lists every token that the parser would have accepted."""
    line = " ".join(text.split())
    return line if len(line) <= _ERROR_LETTERS else f"{line[:_ERROR_LETTERS]} ..."


def tab_separated(value: Any) -> str:
    """A value as ClickHouse's TabSeparated and PostgreSQL's COPY write it."""
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return str(value).lower()
    text = json.dumps(value, default=_json) if isinstance(value, dict | list) else str(_plain(value))
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _plain(value: Any) -> Any:
    return value.isoformat(" ") if isinstance(value, datetime.datetime) else value


def _json(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        if value.is_finite() and value == value.to_integral_value():
            return int(value)
        # A value that JSON has no number for, or that JSON readers would round, becomes a string.
        return float(value) if value.is_finite() and decimal.Decimal(str(float(value))) == value else str(value)
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    return str(_plain(value))


def _print_table(names: Sequence[str], rows: Iterable[Sequence[Any]], total: int | None = None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    listed = list(rows)
    shown = listed[:SHOWN_ROWS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        numeric = all(isinstance(row[number], int | float | decimal.Decimal | None) for row in shown)
        table.add_column(name, justify="right" if numeric and shown else "left", overflow="fold")
    for row in shown:
        table.add_row(*("" if value is None else str(_plain(value)) for value in row))
    console = Console(markup=False, highlight=False)
    console.print(table)
    more = (len(listed) if total is None else total) - len(shown)
    if more > 0:
        console.print(f"... and {more} more rows; a pipe gets all of them")
