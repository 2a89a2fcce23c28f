"""The commands of the runbooks, and of the page about backups, are commands that exist, with options that they have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from support.compose_rules import PROJECT, read
from support.runbooks import PAGES, commands
from trilake.cli import app

COMMANDS = typer.main.get_command(app)
SERVICES = {
    *read((PROJECT / "docker" / "vps_1" / "compose.yml").read_text())["services"],
    *read((PROJECT / "docker" / "vps_1" / "openvpn.yml").read_text())["services"],
}
TARGETS = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))


def problems(words: list[str]) -> Iterator[str]:
    """What is wrong with a command."""
    if words[0] == "C" and len(words) > 1:
        named = [word for word in words[2:] if not word.startswith("-")]
        services = named[:1] if words[1] in ("run", "exec") else named
        yield from (f"there is no service {service}" for service in services if service not in SERVICES)
        words = words[words.index(services[0]) + 1 :] if services and words[1] in ("run", "exec") else []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    if words[0] == "make" and words[1] not in TARGETS:
        yield f"there is no target {words[1]}"
    if words[0].startswith("docker/host/") and not (PROJECT / words[0]).exists() and "*" not in words[0]:
        yield f"there is no file {words[0]}"
    if words[0] == "trilake":
        yield from problems_of_trilake(words[1:])


def problems_of_trilake(words: list[str]) -> Iterator[str]:
    command: Any = COMMANDS
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            yield f"there is no command trilake {words[0]}"
            return
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    yield from (f"{command.name} has no {word}" for word in words if word.startswith("--") and word not in options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_command_of_a_page_exists(page: Path) -> None:
    found = commands(page)
    assert found
    assert [(words, problem) for words in found for problem in problems(words)] == []


@pytest.mark.parametrize(
    "command",
    [
        "C up nothing",
        "C run --rm setup-tables trilake tidy",
        "trilake restore F --all",
        "make heaven",
        "docker/host/nothing",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert list(problems(command.split()))


def test_each_page_is_in_the_list() -> None:
    listed = (PAGES[0].parent / "README.md").read_text()
    for page in PAGES:
        assert page.name in listed or page.name in ("README.md", "backup.md")
