"""docs/guarantees.md names tests that are there, and each promise has one that runs with each push."""

from __future__ import annotations

import ast
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


# Suites of their own, which need Docker, Kubernetes or much time: what runs of them with each push is theirs to say.
OTHERS = ("tests/faults/", "tests/kubernetes/", "tests/replica/", "benchmarks/")
PROMISES = {
    cells[1].strip(): tests
    for cells in (line.split("|") for line in (PROJECT / "docs" / "guarantees.md").read_text().splitlines())
    if len(cells) > 3 and (tests := re.findall(r"`((?:tests|benchmarks)/[^` ]+)`", cells[2]))
}


def is_nightly(mark: ast.expr) -> bool:
    """A case that is marked leaves the others."""
    text = ast.unparse(mark)
    return "mark.nightly" in text and "param(" not in text


def runs_with_each_push(named: str) -> bool:
    """Whether the test, or one of the file's, is not only a nightly one."""
    file, _, test = named.partition("::")
    tree = ast.parse((PROJECT / file).read_text())
    if any(
        isinstance(node, ast.Assign) and ast.unparse(node).startswith("pytestmark") and is_nightly(node.value)
        for node in tree.body
    ):
        return False
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    asked = [function for function in functions if test in ("", function.name)]
    return any(not any(map(is_nightly, function.decorator_list)) for function in asked)


def test_a_test_that_is_only_a_nightly_one_is_known_as_such() -> None:
    assert not runs_with_each_push("tests/product/runs/test_runs_that_meet.py")
    assert not runs_with_each_push("tests/product/runs/test_examples.py::test_the_example_runs")
    assert runs_with_each_push("tests/product/runs/test_examples.py")


@pytest.mark.parametrize("promise", PROMISES)
def test_a_test_of_each_promise_runs_with_each_push(promise: str) -> None:
    tests = PROMISES[promise]
    assert any(test.startswith(OTHERS) or runs_with_each_push(test) for test in tests), tests
