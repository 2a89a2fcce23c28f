"""The door as a web application inside Airflow's API server: who comes in, and the server of the tools.

Agents log in as Airflow's users do: POST /auth/token gives a token, and every request has it as a bearer token. The
user needs the permission to read `RESOURCE`, which set-up gives to the role Agent.

Airflow's functions that this module calls are not public. The version of Airflow is pinned, and the tests call them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from mcp.server.transport_security import TransportSecuritySettings

from trilake.agents import RESOURCE
from trilake.agents.calls import Calls
from trilake.agents.files import Files, is_agent_name
from trilake.agents.health import ServiceHealth
from trilake.agents.knowledge import Knowledge
from trilake.agents.questions import Questions
from trilake.agents.runs import Runs, ensure_pool
from trilake.agents.server import Caller, Door, build
from trilake.endpoints import (
    AGENTS_CLICKHOUSE_CONNECTION,
    AGENTS_S3_CONNECTION,
    ClickHouseEndpoint,
    Endpoints,
    EnvironmentConnection,
    S3Endpoint,
)

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

log = logging.getLogger(__name__)

PREFIX = "/agents"
MAX_BODY_BYTES = 256 << 10
# The name of a request's agent, in its ASGI scope.
_AGENT = "trilake.agent"
# The tasks that do something for a request, in its ASGI scope.
_DOING = "trilake.doing"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app() -> FastAPI:
    """The application, to be mounted at `PREFIX`. It opens no connection before it is started."""
    made: list[Door] = []
    server = build(lambda: made[0], _caller_of)
    mcp = server.streamable_http_app(
        streamable_http_path="/mcp",
        json_response=True,
        stateless_http=True,
        max_request_body_size=MAX_BODY_BYTES,
        # a request needs a bearer token, which no other site can make a browser send; `_Entrance` refuses an Origin
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        door = _door()
        made[:] = [door]
        try:
            await asyncio.to_thread(ensure_pool)
            async with server.session_manager.run():
                yield
        finally:
            await door.close()

    app = FastAPI(title="Trilake for agents", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/", _Entrance(mcp))
    return app


def _door() -> Door:
    """:raises ConfigurationError: a connection is missing."""
    endpoints = Endpoints.from_environment()
    clickhouse = ClickHouseEndpoint.from_connection(EnvironmentConnection.read(AGENTS_CLICKHOUSE_CONNECTION))
    exchange = S3Endpoint.from_connection(EnvironmentConnection.read(AGENTS_S3_CONNECTION))
    return Door(
        endpoints=endpoints,
        questions=Questions(clickhouse),
        calls=Calls(endpoints.lake),
        files=Files(exchange),
        runs=Runs(endpoints.lake),
        knowledge=Knowledge(endpoints.lake, endpoints.s3),
        airflow_health=_airflow_health,
    )


class _Entrance:
    """Lets a request in if its bearer token is of a user who may use the door."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            # Only a browser sends it. No page of any site may use the door.
            if "origin" in headers:
                raise HTTPException(403, "Requests with an Origin are refused. Use a client that is not a browser.")
            scope[_AGENT] = await _agent(headers.get("authorization", ""))
        except HTTPException as e:
            log.info("A request for %s was refused: %s %s", scope.get("path"), e.status_code, e.detail)
            await _refuse(send, e)
            return
        await _run_until_left(self._app, scope, receive, send)


async def _run_until_left(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application. If its client leaves before the end, what is being done for it is cancelled."""
    doing: set[asyncio.Task[Any]] = set()
    scope[_DOING] = doing
    # `receive` may have one caller only, and the application does not call it while a tool works
    messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=4)

    async def watch() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                for task in doing:
                    task.cancel()
            await messages.put(message)
            if message["type"] == "http.disconnect":
                return

    watching = asyncio.create_task(watch())
    try:
        await app(scope, messages.get, send)
    finally:
        watching.cancel()


async def _agent(authorization: str) -> str:
    """The name of the user whose token it is.

    :raises HTTPException: 401: there is no valid token; 403: the user may not use the door.
    """
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.core_api.security import resolve_user_from_token

    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise HTTPException(401, "There is no bearer token. POST /auth/token with username and password gives one.")
    user = await resolve_user_from_token(token)
    manager = get_auth_manager()
    allowed = await asyncio.to_thread(
        manager.is_authorized_custom_view, method="GET", resource_name=RESOURCE, user=user
    )
    if not allowed:
        raise HTTPException(403, f"{user.get_name()} may not use this. An administrator gives the role Agent.")
    name = str(user.get_name())
    if not is_agent_name(name):
        raise HTTPException(
            403, f"The user name {name} cannot be used here: it has other characters than a-z, 0-9 and -, or is shared."
        )
    return name


def _caller_of(context: Context[Any, Any]) -> Caller:
    request: Any = context.request_context.request
    return Caller(str(request.scope[_AGENT]), request.scope[_DOING])


def _airflow_health() -> list[ServiceHealth]:
    """Airflow's own components, as they last reported themselves."""
    from airflow.api.common.airflow_health import get_airflow_health

    found = []
    for name, component in get_airflow_health().items():
        status = component.get("status")
        if status:  # a component that does not run here has none
            well = status == "healthy"
            says = "" if well else "It has not reported itself for a while."
            found.append(ServiceHealth(f"airflow {name.replace('_', ' ')}", well, says))
    return found


async def _refuse(send: Send, error: HTTPException) -> None:
    content = json.dumps({"detail": error.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if error.status_code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": content})
