"""The platform that benchmarks measure, and how they show what they found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from trilake.endpoints import Endpoints
from trilake.platform.embedded.home import Home


def endpoints() -> Endpoints:
    """Where the running platform's services are; its connections become this process's."""
    environment = Home.locate().environment()
    os.environ.update(environment)
    return Endpoints.from_environment(environment)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
