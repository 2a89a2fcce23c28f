"""Renders a project's files from the package's templates, and writes all of them or none. No file is overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError

TEMPLATES = Path(__file__).parent / "templates"
_RENDERED = ".jinja"


def render(folder: str, templates: Mapping[str, str], values: Mapping[str, Any]) -> dict[Path, str]:
    """The text of each file.

    :param folder: the folder of the templates.
    :param templates: file -> template. A template whose name ends with ``.jinja`` is rendered, any other is copied.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES / folder),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,  # noqa: S701  the output is Python and SQL, and the names are checked
    )
    return {
        Path(path): environment.get_template(template).render(values)
        if template.endswith(_RENDERED)
        else (TEMPLATES / folder / template).read_text(encoding="utf-8")
        for path, template in templates.items()
    }


def refuse_taken(project: Path, files: Iterable[Path], hint: str) -> None:
    """:raises ConfigurationError: one of the files exists already."""
    if taken := [path for path in files if (project / path).exists()]:
        raise ConfigurationError(f"{', '.join(map(str, taken))} already exists. Nothing was written.", hint=hint)


def write(project: Path, files: Mapping[Path, str]) -> list[Path]:
    """Write the files.

    :return: the written files, relative to `project`.
    :raises ConfigurationError: a file cannot be written. The files already written are removed.
    """
    written: list[Path] = []
    try:
        for path, text in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            with open(project / path, "x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as e:
        for path in written:
            (project / path).unlink(missing_ok=True)
        raise ConfigurationError(f"{e.filename or project} cannot be written: {e.strerror}.") from None
    return written
