"""A task's first request to a service waits while that service restarts.

A refused connection fails in milliseconds. Without this wait, all tries of a task can be over before a server is back.
A later failure, in the middle of the work, fails the try, and the task's next try repeats the work. The clients of S3
and Kubernetes wait by themselves. A command that a person types does not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from trilake.errors import RefusedError, UnreachableError

T = TypeVar("T")

# The clients of S3 and Kubernetes wait about as long. So three tries, 10 s apart, take more than a minute in total.
RESTART_S = 15.0
_POLL_S = 1.0


def retry_while_unreachable(connect: Callable[[], T], seconds: float | None = None) -> T:
    """Call `connect` until the service answers, for at most `seconds` (by default `RESTART_S`). Returns its result.

    :raises UnreachableError: the service does not answer in that time.
    :raises RefusedError: the service refused the credentials. This is raised at once.
    """
    until = time.monotonic() + (RESTART_S if seconds is None else seconds)
    while True:
        try:
            return connect()
        except RefusedError:
            raise
        except UnreachableError:
            if time.monotonic() > until:
                raise
        time.sleep(_POLL_S)
