"""Tests that take turns: in n turns in a row each of them runs once, and without a turn all run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.rotation import describe_turn, keep_turn

FOLDER = Path("/tests/replica")


@dataclass(frozen=True)
class Item:
    """What `keep_turn` asks of a test."""

    name: str
    n: int | None
    path: Path = FOLDER / "test_network.py"

    def get_closest_marker(self, name: str) -> Any:
        return SimpleNamespace(args=(self.n,)) if name == "rotates" and self.n else None


ALWAYS = Item("always", None)
THIRDS = [Item(f"third {n}", 3) for n in range(7)]
HALVES = [Item(f"half {n}", 2) for n in range(3)]
ELSEWHERE = Item("elsewhere", 3, Path("/tests/unit/test_other.py"))
ALL = [ALWAYS, *THIRDS, *HALVES, ELSEWHERE]


def chosen() -> tuple[list[Item], list[Item]]:
    """What runs, and what is reported as deselected."""
    items: Any = list(ALL)
    deselected: list[Item] = []
    hook = SimpleNamespace(pytest_deselected=lambda *, items: deselected.extend(items))
    config: Any = SimpleNamespace(hook=hook)
    keep_turn(config, items, FOLDER)
    return items, deselected


def test_in_as_many_turns_as_it_says_each_test_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Item] = []
    for turn in range(10, 16):
        monkeypatch.setenv("TRILAKE_TURN", str(turn))
        items, deselected = chosen()
        assert [item for item in ALL if item in items] == items
        assert {*items, *deselected} == {*ALL}
        assert len(items) + len(deselected) == len(ALL)
        assert len([item for item in items if item in THIRDS]) in (2, 3)
        seen += items
    counted = {item: seen.count(item) for item in ALL}
    assert counted == {
        **dict.fromkeys([ALWAYS, ELSEWHERE], 6),
        **dict.fromkeys(THIRDS, 2),
        **dict.fromkeys(HALVES, 3),
    }


def test_without_a_turn_every_test_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRILAKE_TURN", raising=False)
    assert chosen() == (ALL, [])
    assert describe_turn() == "tests that take turns: all"


def test_the_header_says_which_turn_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILAKE_TURN", "17")
    assert describe_turn() == "tests that take turns: turn 17"


def test_a_turn_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILAKE_TURN", "2/4")
    with pytest.raises(pytest.UsageError, match=r"TRILAKE_TURN=2/4 is not a number\."):
        chosen()
