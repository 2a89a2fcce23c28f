"""Errors in Kubernetes' form: a Status object with the code, reason and message that clients expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    500: "InternalError",
}


@dataclass(frozen=True)
class Cause:
    """One error in a manifest. `reason` is a Kubernetes reason (FieldValueRequired, ...)."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class StatusError(Exception):
    """A request was refused.

    :param reason: needed if the code has several reasons (409 is Conflict or AlreadyExists).
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str = "",
        kind: str = "",
        name: str = "",
        causes: Sequence[Cause] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or _REASONS[code]
        self.kind = kind
        self.name = name
        self.causes = tuple(causes)

    def document(self) -> dict[str, Any]:
        details: dict[str, Any] = {}
        if self.name:
            details["name"] = self.name
        if self.kind:
            details["kind"] = self.kind
        if self.causes:
            details["causes"] = [
                {"field": cause.field, "message": cause.message, "reason": cause.reason} for cause in self.causes
            ]
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **({"details": details} if details else {}),
            "code": self.code,
        }


def not_found(kind: str, name: str) -> StatusError:
    """`kind` is the resource name: ``pods``, ``sparkapplications.sparkoperator.k8s.io``."""
    return StatusError(404, f'{kind} "{name}" not found', kind=kind, name=name)


def success(kind: str, name: str, uid: str) -> dict[str, Any]:
    """The answer to a deletion."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "kind": kind, "uid": uid},
    }
