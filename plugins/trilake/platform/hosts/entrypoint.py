"""The entry point of Airflow's image: makes settings and connections from the secrets, then runs the command.

So the secrets are only in the environment of the processes that need them, and in no file, argument or image.
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
    """The variables that are added for the command: connections if ``TRILAKE_CONNECTIONS`` is set, and Airflow's
    settings if ``AIRFLOW_FERNET_KEY`` is set.

    :raises EnvironmentFileError: a secret is missing or not valid. The message names the variable.
    """
    check_given(env)
    added: dict[str, str] = {}
    if "TRILAKE_CONNECTIONS" in env:
        added |= as_environment(connections(env, "airflow"))
    if "AIRFLOW_FERNET_KEY" in env:
        added |= airflow.settings(env)
    return added


def main(arguments: Sequence[str]) -> int:
    """Run the command in this process. Exit code 1 and one line if a secret is missing or not valid."""
    if not arguments:
        print("Give a command to run: airflow ... or trilake ...", file=sys.stderr)
        return 2
    try:
        added = environment(os.environ)
    except TrilakeError as e:
        print(f"trilake: {e}", file=sys.stderr)
        return 1
    os.execvpe(arguments[0], list(arguments), {**os.environ, **added})  # noqa: S606  replaces this process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
