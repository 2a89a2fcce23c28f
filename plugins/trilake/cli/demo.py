"""``trilake demo``: the demo that a project's ``pyproject.toml`` names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.project import settings


def load(project: Path) -> Callable[..., Any]:
    """The demo's function ``run(api, endpoints, console, folder)``.

    :raises ConfigurationError: the project names no demo, or the named file has no function ``run``.
    """
    name = settings(project).get("demo")
    if not isinstance(name, str):
        raise ConfigurationError(
            f"The project {project} has no demo: its pyproject.toml names none.",
            hint='A demo is a Python file with a function run(), named by `demo = "FILE"` in [tool.trilake]. '
            "Trilake's own repository has one.",
        )
    file = project / name
    if not file.is_file():
        raise ConfigurationError(f"The demo {file} is missing.", hint=f"Correct `demo` in {project}/pyproject.toml.")
    spec = importlib.util.spec_from_file_location("trilake_demo", file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"The demo {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their own module there
    spec.loader.exec_module(module)
    run: Callable[..., Any] | None = getattr(module, "run", None)
    if run is None:
        raise ConfigurationError(f"The demo {file} has no function run().")
    return run
