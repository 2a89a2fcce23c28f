"""Label and field selectors: the parameters ``labelSelector`` and ``fieldSelector``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from trilake.platform.embedded.kubernetes.status import StatusError

Selector = Callable[[Mapping[str, Any]], bool]

# The fields that each kind can be selected by, as in the real server.
_FIELDS = {
    "sparkapplications": ("metadata.name", "metadata.namespace"),
    "pods": ("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "status.podIP"),
    "events": (
        "metadata.name",
        "metadata.namespace",
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
    ),
    "secrets": ("metadata.name", "metadata.namespace", "type"),
}

_KEY = r"[A-Za-z0-9][-A-Za-z0-9_./]*"
_VALUE = r"[-A-Za-z0-9_.]*"
_TERM = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<gone>{_KEY})"
    rf"|(?P<key>{_KEY})\s*(?:(?P<operator>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)


def label_selector(text: str | None) -> Selector:
    """:raises StatusError: 400, the text is not a label selector."""
    terms: list[Callable[[Mapping[str, str]], bool]] = []
    position, text = 0, (text or "").strip()
    while position < len(text):
        match = _TERM.match(text, position)
        if not match:
            raise StatusError(400, f"unable to parse requirement: {text!r} at {position}")
        terms.append(_label_term(match))
        position = match.end()
    return lambda document: all(term(document["metadata"].get("labels") or {}) for term in terms)


def _label_term(match: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key, value = match["gone"] or match["key"], match["value"]
    if match["absent"]:
        return lambda labels: key not in labels
    if match["set"]:
        values = {part.strip() for part in match["values"].split(",")}
        if match["set"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match["operator"] == "!=":
        return lambda labels: labels.get(key) != value
    if match["operator"]:
        return lambda labels: labels.get(key) == value
    return lambda labels: key in labels


def field_selector(kind: str, text: str | None) -> Selector:
    """:raises StatusError: 400, the text is not a field selector, or this kind does not support a field."""
    terms = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        match = re.fullmatch(r"\s*([A-Za-z.]+)\s*(==|=|!=)(.*)", part)
        if not match or match[1] not in _FIELDS[kind]:
            raise StatusError(400, f"field label not supported: {part.strip()!r}")
        terms.append((match[1], match[2] != "!=", match[3].strip()))

    def selects(document: Mapping[str, Any]) -> bool:
        return all((str(_at(document, path)) == value) == equal for path, equal, value in terms)

    return selects


def _at(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return value
