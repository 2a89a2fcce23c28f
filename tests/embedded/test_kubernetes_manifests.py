"""What the API server admits, selects and hands on, for any document: it is stored as it was meant, or refused."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.platform.embedded.kubernetes import manifests, objects
from trilake.platform.embedded.kubernetes.selectors import _FIELDS, field_selector
from trilake.platform.embedded.kubernetes.status import StatusError
from trilake.platform.embedded.kubernetes.submission import SubmissionError, memory_bytes

TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,6}[a-z0-9])?", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


# --- field selectors


@given(st.sampled_from(sorted(_FIELDS)), st.data(), NAMES, NAMES, st.sampled_from(["=", "==", " = "]))
def test_a_field_selector_selects_what_it_says(kind: str, data: Any, value: str, other: str, equal: str) -> None:
    path = data.draw(st.sampled_from(_FIELDS[kind]))
    document: Any = value
    for part in reversed(path.split(".")):
        document = {part: document}
    assert field_selector(kind, f"{path}{equal}{value}")(document)
    assert field_selector(kind, f"{path}={other}")(document) == (value == other)
    assert field_selector(kind, f" {path}!={other} ")(document) == (value != other)
    assert not field_selector(kind, f"{path}={value},{path}!={value}")(document)
    assert field_selector(kind, f"{path}=")({})


FIELD_TERMS = st.sampled_from(["metadata.name", "status.phase", "=", "==", "!=", ",", " ", "a", "metadata", "\n"])


@given(st.sampled_from(sorted(_FIELDS)), TEXT | st.lists(FIELD_TERMS, max_size=6).map("".join), JSON)
def test_any_text_is_a_field_selector_or_refused(kind: str, text: str, document: Any) -> None:
    try:
        selects = field_selector(kind, text)
    except StatusError as refused:
        code = refused.code
    else:
        code = 400
        assert selects({"metadata": document, "status": document}) in (True, False)
    assert code == 400


# --- applications


def application(**spec: Any) -> dict[str, Any]:
    required = {"type": "Python", "mode": "cluster", "sparkVersion": "4.1.4", "mainApplicationFile": "local:///a.py"}
    return {
        "apiVersion": "sparkoperator.k8s.io/v1beta2",
        "kind": "SparkApplication",
        "metadata": {"name": "a"},
        "spec": {**required, "driver": {}, "executor": {}, **spec},
    }


def admit(document: Any, *, strict: bool = False) -> tuple[dict[str, Any], list[str]]:
    return manifests.admit(document, namespace="n", strict=strict)


KNOWN = st.fixed_dictionaries(
    {},
    optional={
        "arguments": st.lists(TEXT, max_size=3),
        "sparkConf": st.dictionaries(TEXT, TEXT, max_size=3),
        "driver": st.fixed_dictionaries({}, optional={"cores": st.integers(1, 9), "memory": st.just("2g")}),
        "executor": st.fixed_dictionaries({}, optional={"cores": st.integers(1, 9), "instances": st.integers(1, 9)}),
        "restartPolicy": st.fixed_dictionaries({"type": st.sampled_from(["Never", "Always", "OnFailure"])}),
    },
)


@given(KNOWN)
def test_an_application_is_stored_as_it_was_given_with_what_it_leaves_open_and_once_for_all(spec: Any) -> None:
    given_ = application(**spec)
    stored, left_out = admit(copy.deepcopy(given_), strict=True)
    assert left_out == []
    assert not list(_changed(given_, stored))
    assert admit(copy.deepcopy(stored), strict=True) == (stored, [])


def _changed(given_: Any, stored: Any, path: str = "") -> list[str]:
    if isinstance(given_, dict) and isinstance(stored, dict):
        return [change for key in given_ for change in _changed(given_[key], stored.get(key), f"{path}.{key}")]
    return [] if given_ == stored else [path]


@given(st.dictionaries(st.from_regex(r"x[A-Za-z]{0,5}", fullmatch=True), TEXT, min_size=1, max_size=3))
def test_what_is_not_known_is_left_out_and_told_or_refused_by_name(unknown: dict[str, str]) -> None:
    stored, left_out = admit(application(**unknown))
    assert sorted(left_out) == sorted(f"spec.{name}" for name in unknown)
    assert stored == admit(application())[0]
    with pytest.raises(StatusError, match=f"spec.{min(unknown)}"):
        admit(application(**unknown), strict=True)


FIELDS = st.sampled_from(
    [
        *(
            "type",
            "mode",
            "sparkVersion",
            "driver",
            "executor",
            "deps",
            "volumes",
            "restartPolicy",
            "dynamicAllocation",
        ),
        *("arguments", "sparkConf", "image", "suspend", "cores", "memory", "instances", "enabled", "labels", "env"),
    ]
)
ODD = st.recursive(JSON, lambda inner: st.dictionaries(FIELDS, inner, max_size=3), max_leaves=4)


@given(
    JSON
    | st.dictionaries(FIELDS, ODD, max_size=4).map(lambda spec: application(**spec))
    | st.dictionaries(
        st.sampled_from(["name", "generateName", "labels", "annotations", "namespace", "ownerReferences"]), ODD
    ).map(lambda metadata: {**application(), "metadata": metadata}),
    st.booleans(),
)
def test_any_document_is_an_application_that_can_be_stored_or_refused(document: Any, strict: bool) -> None:
    before = repr(document)
    try:
        stored, _ = admit(document, strict=strict)
    except StatusError as refused:
        assert refused.code in (400, 422)  # noqa: PT017
    else:
        assert json.loads(json.dumps(stored)) == stored
        assert all(isinstance(stored["metadata"].get(field, ""), str) for field in ("name", "generateName"))
        assert stored["metadata"].get("name") or stored["metadata"].get("generateName")
        assert admit(stored, strict=True)[0] == stored
    assert repr(document) == before


# --- other objects


@given(NAMES, NAMES, st.dictionaries(TEXT, TEXT, max_size=4))
def test_a_secret_holds_its_texts(name: str, namespace: str, texts: dict[str, str]) -> None:
    made = objects.secret_object(name, namespace, texts)
    assert {key: base64.b64decode(value).decode() for key, value in made["data"].items()} == texts
    assert json.loads(json.dumps(made)) == made


@given(st.integers(0, 2**32))
def test_a_time_is_of_the_second_it_lies_in(seconds: int) -> None:
    import calendar
    import time

    text = objects.time_text(seconds + 0.25)
    assert calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")) == seconds


@given(
    st.integers(0, 10**12), st.sampled_from(["", "k", "m", "g", "t", "K", "M", "G", "T"]), st.sampled_from(["", "b"])
)
def test_an_amount_of_memory_is_its_number_times_its_unit(number: int, unit: str, b: str) -> None:
    power = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}[unit.lower()]
    assert memory_bytes(f"{number}{unit}{b}") == number * 1024**power


@given(TEXT | st.text("0123456789kmgtibKMGT.-+ \u0661\u212a", max_size=6))
def test_any_text_is_an_amount_of_memory_or_refused(text: str) -> None:
    """Of ASCII's digits and letters alone: there are others, of which one is the sign for Kelvin."""
    if _is_amount(text):
        assert memory_bytes(text) >= 0
    else:
        with pytest.raises(SubmissionError):
            memory_bytes(text)


def _is_amount(text: str) -> bool:
    digits = text.rstrip("bB") if text[-1:] in ("b", "B") and text[-2:-1] not in ("b", "B") else text
    digits = digits[:-1] if digits[-1:] and digits[-1:] in "kmgtKMGT" else digits
    return bool(digits) and set(digits) <= set("0123456789")
