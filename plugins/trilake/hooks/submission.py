"""Records a task's request to another system, so that the task's next try finds it.

A try writes its submission before it sends the request. So a later try knows what to look for, whether or not the
request arrived. Each submission has an owner: a random token. When a later try takes over a submission, it writes its
own token. The earlier try then sees that it is not the owner any more, and does not change the submission.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from airflow.sdk import Context

# A signal may have interrupted another request to Airflow. Then the answer to this one may never come.
STORE_SECONDS = 5.0


@dataclass
class Submission:
    """One request of a task instance.

    :param number: number of the submission, counted from 1 over all tries of the task instance.
    :param owner: the token of the try that may end the submission.
    :param inputs: digest of the request's inputs.
    """

    number: int
    owner: str
    inputs: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


S = TypeVar("S", bound=Submission)


class SubmissionStore(Generic[S]):
    """Stores the submission of a task instance. It survives the end of tries, workers and schedulers.

    :param key: the key in Airflow's task state store.
    :param kind: the submission's class.
    """

    def __init__(self, context: Context | Mapping[str, Any], key: str, kind: type[S]) -> None:
        self._store: Any = context.get("task_state_store")
        self._key = key
        self._kind = kind

    def read(self) -> S | None:
        """The submission that was written last. None: there is none, or this Airflow has no task state store."""
        record = self._store.get(self._key) if self._store is not None else None
        if not isinstance(record, dict):
            return None
        # Ignore fields that only another version of this package knows.
        names = {field.name for field in fields(self._kind)}
        return self._kind(**{name: value for name, value in record.items() if name in names})

    def write(self, submission: S) -> None:
        """Replaces the stored submission."""
        if self._store is not None:
            self._store.set(self._key, submission.to_dict())

    def is_current(self, submission: S) -> bool:
        """Whether no later try has taken over. Also True if Airflow does not answer within `STORE_SECONDS`."""
        if self._store is None:
            return True
        pool = ThreadPoolExecutor(1)
        try:
            stored = pool.submit(self.read).result(STORE_SECONDS)
        except Exception:
            return True
        finally:
            pool.shutdown(wait=False)
        return stored is not None and stored.owner == submission.owner
