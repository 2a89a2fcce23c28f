"""``/llms.txt``: how an agent connects. It has no data and no secret, so it needs no login."""

from __future__ import annotations

from typing import Any

PATH = "/llms.txt"
TEXT = """\
# Trilake

> A data platform: files in S3, Spark jobs, ClickHouse tables, runs in Airflow. AI agents use it through one MCP server,
> with limits, and every call is recorded.

An administrator gives you a file NAME.access (`trilake access add NAME --role agent`). On the hosts it also has a VPN
profile: connect it first. Then there are two ways:

- A program that starts MCP servers as commands (Claude Code, IDEs): the command `trilake connect NAME.access`.
- HTTP: POST /auth/token with {"username": ..., "password": ...} gives a token. The MCP server is at /agents/mcp
  (streamable HTTP). Send the token as `Authorization: Bearer ...` with each request.

Begin with the tool find(), then describe(name), then query(sql) in ClickHouse's SQL, for up to 1,000 rows. For a larger
result: submit("agent_export", {"sql": ...}, key), status(run, wait_seconds=20), then file_url(name).
A refusal is JSON: error (a short name), says, do (what to do instead), retry (whether the same call can succeed later).
"""


class LlmsTxt:
    """ASGI middleware that answers requests for `PATH` and hands on all others."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        content = TEXT.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
