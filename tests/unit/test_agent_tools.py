"""What agents are told about the tools. It reaches a model as instructions, so it changes only on purpose."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from trilake.agents.server import INSTRUCTIONS, build

# Change it together with a tool's name, description, parameters or annotations, or with the instructions.
DIGEST = "08b9905ba1e7cef8"
MAX_BYTES = 9_000


def listed() -> list[dict[str, Any]]:
    def never(*_: Any) -> Any:
        raise AssertionError("listing tools must open nothing")

    tools = asyncio.run(build(never, never).list_tools())
    return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]


def test_the_tools_are_these_in_this_order_and_their_descriptions_are_the_reviewed_ones() -> None:
    tools = listed()
    names = ["find", "describe", "query", "trace", "submit", "status", "cancel", "files", "file_url", "health"]
    assert [tool["name"] for tool in tools] == names
    text = json.dumps([INSTRUCTIONS, tools], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST


def test_the_list_of_tools_is_short() -> None:
    assert len(json.dumps(listed(), separators=(",", ":"))) <= MAX_BYTES


def test_every_tool_says_whether_it_changes_something_and_that_it_stays_inside_of_the_platform() -> None:
    hints = {tool["name"]: tool["annotations"] for tool in listed()}
    assert {name for name, hint in hints.items() if not hint["readOnlyHint"]} == {"submit", "cancel", "file_url"}
    assert {name for name, hint in hints.items() if hint.get("destructiveHint")} == {"cancel"}
    assert not any(hint["openWorldHint"] for hint in hints.values())
