"""A task's first word to a service waits while that is started anew.

A refused connection fails in milliseconds: without this, all tries of a task can be over before a server is back. What
fails later, in the middle of the work, is for the next try. S3's and Kubernetes' clients wait by themselves, and who
sits at a prompt is told at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from trilake.errors import RefusedError, UnreachableError

T = TypeVar("T")

# About what S3's and Kubernetes' clients wait. Three tries, 10 s apart, then outlast a minute.
RESTART_S = 15.0
_POLL_S = 1.0


def patiently(connect: Callable[[], T], seconds: float | None = None) -> T:
    """What `connect` gives, tried again for `seconds` (by default `RESTART_S`) while the service does not answer.

    :raises UnreachableError: it still does not. :raises RefusedError: it has answered, and refused us: at once.
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
