"""The commands of docs/operations/runbooks/ and of the page about backups."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
PAGES = [*sorted((OPERATIONS / "runbooks").glob("*.md")), OPERATIONS / "backup.md"]
COMPOSE = "docker compose --env-file .env -f docker/vps_1/compose.yml"


def commands(page: Path) -> list[list[str]]:
    """What stands in code, split as a shell does it."""
    text = page.read_text()
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```\n.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line.strip() for block in blocks for line in block.splitlines()] + inline
    found = []
    for line in lines:
        try:
            found.append(shlex.split(line.replace(COMPOSE, "C"), comments=True))
        except ValueError:
            continue
    return [words for words in found if words]
