"""The entry point of Airflow's image: makes settings and connections of the secrets here, then becomes the command.

So that the secrets are in the environment of the processes that need them and in no file, argument or image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from trilake.endpoints import as_environment
from trilake.errors import TrilakeError
from trilake.platform.hosts import airflow
from trilake.platform.hosts.connections import connections
from trilake.platform.hosts.environment import check_given


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """What the command is given beside what is there: connections where ``TRILAKE_CONNECTIONS`` says whose, and
    Airflow's settings where its keys are.

    :raises EnvironmentFileError: a secret is missing, or is none; names the variable.
    """
    check_given(env)
    found: dict[str, str] = {}
    if "TRILAKE_CONNECTIONS" in env:
        found |= as_environment(connections(env, "airflow"))
    if "AIRFLOW_FERNET_KEY" in env:
        found |= airflow.settings(env)
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 and one line if a secret is missing or is none; else the command's."""
    if not arguments:
        print("Say what to run: airflow ..., or trilake ...", file=sys.stderr)
        return 2
    try:
        made = environment(os.environ)
    except TrilakeError as e:
        print(f"trilake: {e}", file=sys.stderr)
        return 1
    os.execvpe(arguments[0], list(arguments), {**os.environ, **made})  # noqa: S606  replaces this process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
