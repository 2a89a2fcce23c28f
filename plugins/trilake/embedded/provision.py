"""``python -m trilake.embedded.provision``: fetch what the platform needs besides Python packages, once for all."""

from __future__ import annotations

import sys

from trilake.embedded import java, platform
from trilake.embedded.home import find_project
from trilake.errors import TrilakeError


def main() -> int:
    """Exit code 1 and one line if something is not to be had."""
    try:
        project = find_project()
        platform.fetch_jars(project, java.ensure(project), lambda what, how: print(f"  {what}: {how}", file=sys.stderr))
    except TrilakeError as e:
        print(f"setup: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
