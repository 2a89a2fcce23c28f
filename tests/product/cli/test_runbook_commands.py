"""The commands of `trilake` in the runbooks run on the embedded platform. Those with a name are left out."""

from __future__ import annotations

import pytest

from support.runbooks import PAGES, commands
from support.running_platform import Platform

pytestmark = pytest.mark.slow


def runnable() -> list[str]:
    found = set()
    for page in PAGES:
        for words in commands(page):
            arguments = words[words.index("trilake") + 1 :] if "trilake" in words else []
            # a word in capitals stands for a name
            if (
                arguments
                and not any(word.isupper() for word in arguments)
                and arguments[0] not in ("up", "down", "deploy")
            ):
                found.add(" ".join(arguments))
    # without their folder or name these are mentioned, and not meant to be run
    return sorted(found - {"backup", "restore", "publish", "env", "new", "vpn", "producer", "put", "run"})


def test_there_are_some() -> None:
    assert {"publications --finish", "rebuild", "rebuild --check --checksums", "migrate --plan"} <= set(runnable())


@pytest.mark.parametrize("arguments", runnable())
def test_a_command_of_a_runbook_succeeds(platform: Platform, arguments: str) -> None:
    platform.up()
    done = platform.trilake(*arguments.split())
    assert done.returncode == 0, done.stdout + done.stderr
