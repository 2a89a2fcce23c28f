"""Words and names that were replaced do not come back: not in code, help, tests, docs or the files of the hosts."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# What they were replaced by is in CHANGELOG.md; locks and data are not ours to word.
_LEFT_OUT = ("CHANGELOG.md", "tests/unit/test_plain_english.py", "plugins/trilake/platform/requirements/")

# Each with what to write instead. Upper and lower case alike.
PHRASES = {
    r"\bwhoever\b": "any process, anyone",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bupkeep\b": "maintenance",
    r"\brehears\w+": "dry run",
    r"\b(taken?|takes|took|taking|have|has|had) (\w+ )?in hand\b": "claim",
    r"\bin nobody's hands\b": "not claimed",
    r"\bin vain\b": "without success, or say what failed",
    r"\bof old\b": "old, earlier",
    r"\bwithout a word\b": "silently, without an error",
    r"\bnot foreseen\b": "unexpected",
    r"\bsee it whole\b": "the traceback",
    r"\bsee(s|n)? to it\b": "say who does what",
    r"\bonly goes? forward\b": "the ledger row is the commit point",
    r"\bmay it do so\b": "check the policy",
    r"\bfor want of\b": "because there is no",
    r"\bby and by\b": "later",
    r"\bthereof\b": "of it",
    r"\bof no use\b": "useless",
    r"\bto and fro\b": "back and forth",
    r"\bstand(s|ing)? whole\b": "every shard has a full copy",
    r"(?<!there )\b(is|are|was|were) no (?!(longer|more|better|larger|later|different|matter)\b)": "is not a",
}
NAMES = (
    r"\bSnapshotPlan\b",
    r"\btake_turn\b",
    r"\bat_work\b",
    r"\bunless_at_work\b",
    r"\bstay_alive\b",
    r"\bunless_alive\b",
    r"\b(TURN|WORK|ATTEMPT|PARTITION|ARRIVAL|SESSION|STAGING|MART)_LOCKS\b",
    r"\bsupply\.py\b",
    r"\bpatience(\.py)?\b",
    r"\bpatiently\b",
    r"\bhosts/(run|store|healthy)\.py\b",
    r"\bhosts\.(run|store|healthy)\b",
    r"\btroubles\b",
    r"\bstrangers\b",
    r"\bspark/turns\.py\b|\bspark\.turns\b",
    r"\bholders?\b",
)


@cache
def texts() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    found = {}
    for name in listed:
        path = PROJECT / name
        if name.startswith(_LEFT_OUT) or not path.is_file() or path.is_symlink():
            continue
        try:
            found[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


def found_in(pattern: str) -> list[str]:
    wanted = re.compile(pattern, re.IGNORECASE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in texts().items()
        for match in wanted.finditer(text)
    ]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_that_was_replaced_does_not_come_back(phrase: str) -> None:
    assert not found_in(phrase), f"write instead: {PHRASES[phrase]}"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_was_replaced_does_not_come_back(name: str) -> None:
    assert not found_in(name)


def test_the_search_finds_what_is_there() -> None:
    assert len(texts()) > 300
    assert found_in(r"\bdef test_the_search_finds_what_is_there\b") == []
    assert any(line.startswith("README.md:1: ") for line in found_in(r"\A# Trilake"))
