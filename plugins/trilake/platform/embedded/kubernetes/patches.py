"""Merge patches (RFC 7396) and JSON patches (RFC 6902) of a document."""

from __future__ import annotations

import copy
from typing import Any

from trilake.platform.embedded.kubernetes.status import StatusError


def merge(document: Any, patch: Any) -> Any:
    """A copy of the document with the patch applied. The document itself is not changed."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def apply(document: Any, operations: Any) -> Any:
    """A copy of the document with all operations applied.

    :raises StatusError: 400 the patch is not a list of operations; 422 an operation cannot be applied to the document.
    """
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise StatusError(400, "a JSON patch is a list of operations")
    changed = copy.deepcopy(document)
    for operation in operations:
        try:
            changed = _operate(changed, operation)
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            path, name = operation.get("path"), operation.get("op")
            raise StatusError(
                422, f"the server rejected our request: {name} at {path!r} cannot be applied ({e})"
            ) from None
    return changed


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add" | "replace" as name:
            return _put(document, path, copy.deepcopy(operation["value"]), must_exist=name == "replace")
        case "remove":
            return _remove(document, path)
        case "test":
            if _get(document, path) != operation["value"]:
                raise ValueError("the value is different")
            return document
        case "copy":
            return _put(document, path, copy.deepcopy(_get(document, _pointer(operation["from"]))))
        case "move":
            source = _pointer(operation["from"])
            value = _get(document, source)
            return _put(_remove(document, source), path, value)
    raise ValueError(f"{operation['op']!r} is not an operation")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError("a pointer starts with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(document, part)] if isinstance(document, list) else document[part]
    return document


def _put(document: Any, path: list[str], value: Any, *, must_exist: bool = False) -> Any:
    if not path:
        return value
    if must_exist:
        _get(document, path)
    parent = _get(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif must_exist:
        parent[_index(parent, path[-1])] = value
    else:
        parent.insert(len(parent) if path[-1] == "-" else _index(parent, path[-1], beyond=True), value)
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent = _get(document, path[:-1])
    del parent[_index(parent, path[-1]) if isinstance(parent, list) else path[-1]]
    return document


def _index(items: list[Any], part: str, *, beyond: bool = False) -> int:
    if not part.isdecimal() or (len(part) > 1 and part[0] == "0") or int(part) >= len(items) + beyond:
        raise IndexError(f"no item {part!r}")
    return int(part)
