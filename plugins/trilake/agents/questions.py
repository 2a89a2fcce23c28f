"""A question to ClickHouse, and as much of its answer as an agent can use.

The bounds are ClickHouse's: the request has the setting ``readonly=1``, and ClickHouse limits the rows and the seconds.
What comes back is bounded here, in bytes. An answer that is not complete says so: there was one row more than asked
for, or the bytes were full.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trilake.agents.refusals import CallError, plain
from trilake.agents.statement import Statement
from trilake.clickhouse.cluster import CONNECT_TIMEOUT_S, without_statement
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard, hosts_of

if TYPE_CHECKING:
    import httpx

MAX_ROWS = 1_000
MAX_SECONDS = 60
MAX_BYTES = 64 << 10  # of all rows of an answer, as JSON
MAX_CELL = 300  # characters of a text
MAX_AT_ONCE = 2  # questions of one agent
# A row may have long texts, of which only the beginning is kept.
_MAX_BYTES_READ = 16 << 20
# A number beyond this is a text in the answer: many programs read JSON's numbers as floats.
_EXACT = 2**53
_FORMAT = "JSONCompactEachRowWithNamesAndTypes"
_ERROR_IN_ANSWER = b"__exception__"
_CODE = re.compile(r"Code: (\d+)")

# ClickHouse's error code -> the refusal's name, what to do, and whether the same call can succeed later.
_CODES: Mapping[int, tuple[str, str, bool]] = {
    46: ("unknown_function", "ClickHouse's documentation lists its functions.", False),
    47: ("unknown_column", "describe(name) lists the columns.", False),
    60: ("unknown_table", "find() lists the tables.", False),
    62: ("syntax", "describe(name) has examples.", False),
    158: ("too_many_rows", "Read fewer rows: add a condition on the partition's date.", False),
    159: ("too_slow", "Read fewer rows, or give it more seconds. A large result: submit agent_export.", False),
    160: ("too_slow", "Read fewer rows. A large result: submit agent_export.", False),
    164: ("readonly", "Only reading is possible.", False),
    201: ("quota", "The hour's quota is used up. Ask again within the hour.", True),
    202: ("busy", "Too many questions run at this moment. Ask again in some seconds.", True),
    241: (
        "too_much_memory",
        "Group by fewer values or read fewer columns. A large result: submit agent_export.",
        False,
    ),
    396: ("too_many_rows", "Read fewer rows. A large result: submit agent_export.", False),
    497: ("no_right", "find() lists the tables that can be read.", False),
}


@dataclass(frozen=True)
class Answer:
    """:param columns: name and type of each column.
    :param rows: values in the columns' order. Integers beyond 2^53 and decimals are texts, so that they stay exact.
    :param more: whether there is at least one row beyond these.
    """

    columns: list[tuple[str, str]]
    rows: list[list[Any]]
    more: bool
    bytes: int
    seconds: float
    query_id: str


class Questions:
    """Asks one cluster. It holds one HTTP connection pool, and is used in one event loop.

    :param endpoint: with the agents' user. Its password is in no message.
    """

    def __init__(self, endpoint: ClickHouseEndpoint) -> None:
        self.endpoint = endpoint
        self._running: Counter[str] = Counter()
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._client:
            await self._client.aclose()
            self._client = None

    async def ask(self, statement: Statement, agent: str, *, max_rows: int, max_seconds: int) -> Answer:
        """Send a statement and read its answer. If the caller is cancelled, ClickHouse ends the query.

        :param agent: who asks. The quota is kept by this name, and the query log has it.
        :raises CallError: ClickHouse refused or ended the query, or does not answer.
        """
        if not 1 <= max_rows <= MAX_ROWS or not 1 <= max_seconds <= MAX_SECONDS:
            raise CallError("bounds", f"max_rows is from 1 to {MAX_ROWS}, max_seconds from 1 to {MAX_SECONDS}.",
                          hint="A large result: submit agent_export.")  # fmt: skip
        query_id = f"agents:{agent}:{secrets.token_hex(8)}"
        settings = {
            "readonly": 1,
            "limit": max_rows + 1,
            "max_execution_time": max_seconds,
            "log_comment": json.dumps({"agent": agent}),
            "cancel_http_readonly_queries_on_client_close": 1,
            "output_format_json_quote_64bit_integers": 0,
            "output_format_json_quote_decimals": 1,
            "output_format_json_quote_denormals": 1,
        }
        with self._one_more(agent):
            began = time.monotonic()
            async with self._sent(statement.sql, settings, query_id, agent, max_seconds) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise refusal_of(response.text)
                reader = _Reader(max_rows)
                try:
                    async for chunk in response.aiter_bytes():
                        if reader.add(chunk):
                            break
                finally:  # after an error in the answer the server breaks the connection off
                    reader.raise_error()
                reader.end()
            return Answer(reader.columns, reader.rows, reader.more, reader.bytes, time.monotonic() - began, query_id)

    @contextmanager
    def _one_more(self, agent: str) -> Iterator[None]:
        if self._running[agent] >= MAX_AT_ONCE:
            raise CallError("busy", f"{MAX_AT_ONCE} questions of {agent} run at this moment.",
                          hint="Wait for their answers.", retry=True)  # fmt: skip
        self._running[agent] += 1
        try:
            yield
        finally:
            self._running[agent] -= 1

    @asynccontextmanager
    async def _sent(
        self, sql: str, settings: Mapping[str, Any], query_id: str, agent: str, seconds: int
    ) -> AsyncIterator[httpx.Response]:
        """The answer of the first server that can be reached."""
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, verify=self.endpoint.verify)
        last: Exception | None = None
        for host in hosts_of(self.endpoint.shards):
            request = request_of(
                self._client, self.endpoint, host, sql, settings, agent, _FORMAT, seconds, query_id=query_id
            )
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                last = e
                continue
            except httpx.HTTPError as e:
                raise _unanswered(host, e) from None
            try:
                yield response
            except httpx.HTTPError as e:
                raise _unanswered(host, e) from None
            finally:
                await response.aclose()
            return
        raise _unanswered(self.endpoint.shards[0], last)


def request_of(
    client: httpx.AsyncClient | httpx.Client,
    endpoint: ClickHouseEndpoint,
    host: ClickHouseShard,
    sql: str,
    settings: Mapping[str, Any],
    agent: str,
    answer: str,
    seconds: int,
    *,
    query_id: str = "",
) -> httpx.Request:
    """A request with a query. User and password are in headers, and the quota is kept by the agent's name.

    :param answer: ClickHouse's format of the answer.
    :param seconds: how long the server may take.
    """
    import httpx

    return client.build_request(
        "POST",
        f"{'https' if endpoint.secure else 'http'}://{host.host}:{host.port}/",
        params={
            **{name: str(value) for name, value in settings.items()},
            "database": endpoint.database,
            "default_format": answer,
            **({"query_id": query_id} if query_id else {}),
        },
        content=sql.encode(),
        headers={
            "X-ClickHouse-User": endpoint.user,
            "X-ClickHouse-Key": endpoint.password,
            "X-ClickHouse-Quota": agent,
        },
        timeout=httpx.Timeout(seconds + 10, connect=CONNECT_TIMEOUT_S),
    )


def _unanswered(host: ClickHouseShard, error: Exception | None) -> CallError:
    return CallError(
        "no_answer",
        f"ClickHouse ({host.host}:{host.port}) does not answer ({type(error).__name__}).",
        hint="health() says which services run. Ask again in a minute.",
        retry=True,
    )


def refusal_of(text: str) -> CallError:
    """ClickHouse's error as a refusal, without the statement that it may quote."""
    match = _CODE.search(text)
    code = int(match[1]) if match else 0
    first = (text[match.start() :] if match else text).strip().splitlines() or ["no reason was given"]
    name, hint, retry = _CODES.get(code, ("failed", "describe(name) has the columns and examples.", False))
    said = without_statement(first[0]).replace("DB::Exception: ", "")
    return CallError(name, f"ClickHouse refused or ended the query: {plain(said, 500)}", hint=hint, retry=retry)


class _Reader:
    """Reads the lines of an answer until a bound is reached."""

    def __init__(self, max_rows: int) -> None:
        self.columns: list[tuple[str, str]] = []
        self.rows: list[list[Any]] = []
        self.more = False
        self.bytes = 0
        self._max_rows = max_rows
        self._names: list[str] | None = None
        self._rest = b""
        self._error = b""
        self._read = 0

    def add(self, chunk: bytes) -> bool:
        """Read a piece of the answer. True: a bound is reached, and the rest is not needed."""
        self._read += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if self._error or line.startswith(_ERROR_IN_ANSWER):
                self._error += line + b"\n"
            elif self._line(line):
                return True
        if self._read > _MAX_BYTES_READ:
            self.more = True
            return True
        return False

    def raise_error(self) -> None:
        """:raises CallError: ClickHouse ended the query after its answer had begun."""
        if self._error:
            raise refusal_of((self._error + self._rest).decode(errors="replace"))

    def end(self) -> None:
        """:raises CallError: the answer ended in the middle."""
        if not self.more and self._rest.strip():
            raise CallError("cut", "ClickHouse's answer ended in the middle of a row.", hint="Ask again.", retry=True)

    def _line(self, line: bytes) -> bool:
        if not line.strip():  # before totals
            return False
        # An answer's text may have bytes that are not UTF-8. They are shown as replacement characters.
        values = json.loads(line.decode(errors="replace"))
        if self._names is None:
            self._names = values
        elif not self.columns:
            self.columns = list(zip(self._names, values, strict=True))
        else:
            row = [_cell(value) for value in values]
            size = len(json.dumps(row, ensure_ascii=False).encode())
            if len(self.rows) == self._max_rows or self.bytes + size > MAX_BYTES:
                self.more = True
                return True
            self.rows.append(row)
            self.bytes += size
        return False


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value, MAX_CELL)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, list):
        return [_cell(item) for item in value]
    if isinstance(value, dict):
        return {plain(name, MAX_CELL): _cell(item) for name, item in value.items()}
    return value
