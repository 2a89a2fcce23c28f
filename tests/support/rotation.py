"""Tests that take turns: of those marked ``rotates(n)``, one in n runs with every push.

``TRILAKE_TURN`` is the number of the turn; `make test-kubernetes TURN=17` and its like set it. CI takes it from the
commit. Without it every test runs. A folder's conftest calls `keep_turn` and `describe_turn`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

VARIABLE = "TRILAKE_TURN"


def turn() -> int | None:
    """None: all tests run.

    :raises pytest.UsageError: the variable is not a number.
    """
    text = os.environ.get(VARIABLE, "")
    if text and not text.isdecimal():
        raise pytest.UsageError(f"{VARIABLE}={text} is not a number.")
    return int(text) if text else None


def describe_turn() -> str:
    """A line for pytest's header."""
    number = turn()
    return f"tests that take turns: {'all' if number is None else f'turn {number}'}"


def keep_turn(config: pytest.Config, items: list[pytest.Item], folder: Path) -> None:
    """Deselect the tests of `folder` whose turn it is not.

    Tests of the same n are numbered in the order of the run, and the turn takes those that are the turn modulo n: so
    neighbours, which are often alike, run in different turns.
    """
    number = turn()
    if number is None:
        return
    groups: defaultdict[int, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if (mark := item.get_closest_marker("rotates")) and item.path.is_relative_to(folder):
            groups[mark.args[0]].append(item)
    others = {item for n, members in groups.items() for place, item in enumerate(members) if place % n != number % n}
    if others:
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]
