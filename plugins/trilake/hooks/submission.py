"""What a task has asked another system for, kept so that its next try finds it.

A try writes its submission down before it asks. So a later try knows what to look for, whether or not the request
arrived. Each submission has an owner: a random token. A try that takes a submission over writes its own token. From
then on the earlier try sees that the submission is no longer its own, and leaves it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from airflow.sdk import Context

# A signal may have come while Airflow was asked for the same record: then this answer may never come.
STORE_SECONDS = 5.0


@dataclass
class Submission:
    """One request of a task instance.

    :param number: counts the task instance's submissions, over its tries, from 1.
    :param owner: the token of the try that may end it.
    :param inputs: digest of what was asked for.
    """

    number: int
    owner: str
    inputs: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


S = TypeVar("S", bound=Submission)


class SubmissionStore(Generic[S]):
    """The task instance's place for its submission. It outlives tries, workers and schedulers.

    :param key: in Airflow's task state store.
    :param kind: the submission's class.
    """

    def __init__(self, context: Context | Mapping[str, Any], key: str, kind: type[S]) -> None:
        self._store: Any = context.get("task_state_store")
        self._key = key
        self._kind = kind

    def read(self) -> S | None:
        """What was written last. None: nothing was, or this Airflow keeps nothing."""
        record = self._store.get(self._key) if self._store is not None else None
        if not isinstance(record, dict):
            return None
        # fields that another version of this package has written are left out
        known = {field.name for field in fields(self._kind)}
        return self._kind(**{name: value for name, value in record.items() if name in known})

    def write(self, submission: S) -> None:
        """Replace it."""
        if self._store is not None:
            self._store.set(self._key, submission.to_dict())

    def is_current(self, submission: S) -> bool:
        """Whether no later try has taken over. True as well if Airflow does not answer within `STORE_SECONDS`."""
        if self._store is None:
            return True
        pool = ThreadPoolExecutor(1)
        try:
            kept = pool.submit(self.read).result(STORE_SECONDS)
        except Exception:
            return True
        finally:
            pool.shutdown(wait=False)
        return kept is not None and kept.owner == submission.owner
