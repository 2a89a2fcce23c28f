"""docs/guarantees.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`((?:tests|benchmarks)/[^`]+)`", (PROJECT / "docs" / "guarantees.md").read_text())))


def test_promises_are_made() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize("named", NAMED)
def test_what_shows_a_promise_is_there(named: str) -> None:
    file, _, test = named.partition("::")
    assert f"def {test}(" in (PROJECT / file).read_text() if test else (PROJECT / file).exists()
