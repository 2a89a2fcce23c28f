"""Selectors, patches, settings and logs: what the API server reads and writes, for any text."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilake.platform.embedded.kubernetes import driver_process, patches
from trilake.platform.embedded.kubernetes.driver_log import LogQuery, read_log
from trilake.platform.embedded.kubernetes.driver_process import TimedLog
from trilake.platform.embedded.kubernetes.selectors import label_selector
from trilake.platform.embedded.kubernetes.status import StatusError
from trilake.platform.embedded.kubernetes.submission import SubmissionError, _escape, memory_bytes

documents = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=2), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc", min_size=1, max_size=2), documents, max_size=4)
values = st.from_regex(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,5}[A-Za-z0-9])?)?", fullmatch=True)
keys = st.from_regex(r"([a-z]{1,3}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,3}[A-Za-z0-9])?", fullmatch=True)
labels = st.dictionaries(keys, values, max_size=4)


def _with(found: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"labels": found}}


@given(found=labels, key=keys, value=values, other=values)
def test_a_selector_selects_what_it_says(found: dict[str, str], key: str, value: str, other: str) -> None:
    def selects(text: str) -> bool:
        return label_selector(text)(_with(found))

    assert selects(f"{key}={value}") == selects(f" {key} == {value} ") == (found.get(key) == value)
    assert selects(f"{key}!={value}") == (found.get(key) != value)
    assert selects(f"{key} in ({value},{other})") == (found.get(key) in (value, other))
    assert selects(f"{key} notin ({value}, {other})") == (found.get(key) not in (value, other))
    assert selects(key) == (key in found)
    assert selects(f"!{key}") == (key not in found)
    assert selects(",".join(f"{k}={v}" for k, v in found.items()))


@given(st.text("ab=!,() innotx/.-", max_size=20))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    with contextlib.suppress(StatusError):
        assert label_selector(text)(_with({"a": "b"})) in (True, False)


@given(objects, objects)
def test_a_merge_patch_says_what_the_document_becomes(document: dict[str, Any], patch: dict[str, Any]) -> None:
    before = json.dumps(document)
    merged = patches.merge(document, patch)
    assert json.dumps(document) == before
    for key, value in patch.items():
        if value is None:
            assert key not in merged
        elif not isinstance(value, dict):
            assert merged[key] == value
    assert {key: merged[key] for key in document.keys() - patch.keys()} == {
        key: document[key] for key in document.keys() - patch.keys()
    }
    assert patches.merge(merged, patch) == merged


@given(documents, st.lists(st.text("ab01-~/", max_size=2), max_size=3), documents)
def test_an_operation_applies_as_a_whole_or_leaves_the_document(document: Any, path: list[str], value: Any) -> None:
    before = json.dumps(document)
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
    try:
        changed = patches.apply(document, [{"op": "add", "path": pointer, "value": value}])
    except StatusError:
        changed = None
    assert json.dumps(document) == before
    if changed is not None and path and path[-1] != "-":
        assert patches.apply(changed, [{"op": "test", "path": pointer, "value": value}]) == changed
        patches.apply(changed, [{"op": "remove", "path": pointer}])


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([{"op": "move", "from": "/a/0", "path": "/b"}], {"a": [2], "b": 1}),
        ([{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1, 2], "b": [1, 2]}),
        ([{"op": "add", "path": "/a/-", "value": 3}], {"a": [1, 2, 3]}),
        ([{"op": "add", "path": "/a/0", "value": 0}], {"a": [0, 1, 2]}),
        ([{"op": "replace", "path": "", "value": {}}], {}),
    ],
)
def test_json_patches_of_the_standard(operations: list[dict[str, Any]], expected: Any) -> None:
    assert patches.apply({"a": [1, 2]}, operations) == expected


@pytest.mark.parametrize(
    "operations",
    [
        {},
        ["x"],
        [{"op": "replace", "path": "/absent", "value": 1}],
        [{"op": "remove", "path": "/a/2"}],
        [{"op": "remove", "path": "/a/01"}],
        [{"op": "remove", "path": "a"}],
        [{"op": "twist", "path": "/a"}],
        [{"path": "/a"}],
        [{"op": "add", "path": "/a"}],
    ],
)
def test_operations_that_do_not_fit_are_refused(operations: Any) -> None:
    with pytest.raises(StatusError):
        patches.apply({"a": [1, 2]}, operations)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.booleans())
def test_settings_are_read_back_as_java_reads_them(text: str, key: bool) -> None:
    escaped = _escape(text, key=key)
    assert escaped.isascii()
    assert "\n" not in escaped
    assert _unescape(escaped) == text
    if key:
        assert not any(escaped[i] in "=: " and escaped[i - 1 : i] != "\\" for i in range(len(escaped)))


def _unescape(text: str) -> str:
    """java.util.Properties.load, for one line without its separators."""
    out, source = bytearray(), io.StringIO(text)
    while character := source.read(1):
        if character == "\\":
            character = source.read(1)
            if character == "u":
                out += int(source.read(4), 16).to_bytes(2, "big")
                continue
            character = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}.get(character, character)
        out += character.encode("utf-16-be")
    return out.decode("utf-16-be")


@pytest.mark.parametrize(("text", "size"), [("512m", 512 * 2**20), ("2g", 2 * 2**30), ("2GB", 2 * 2**30), ("7", 7)])
def test_memory_is_read_as_spark_writes_it(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "g", "1.5g", "1Gi", "-1g", "lots"])
def test_other_amounts_of_memory_are_refused(text: str) -> None:
    with pytest.raises(SubmissionError):
        memory_bytes(text)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40), max_size=12), st.sampled_from([200, 2_000, 10**6]))
def test_a_log_gives_back_what_was_printed(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = TimedLog(folder, limit)
    for chunk in chunks:
        log.write(chunk)
    log.close()
    printed = b"".join(chunks)
    printed += b"\n" if printed and not printed.endswith(b"\n") else b""
    read = read_log(folder, LogQuery())
    assert printed.endswith(read)
    assert read == printed or limit < 10**6
    last = read_log(folder, LogQuery(tail_lines=2))
    assert last == b"".join(read.splitlines(keepends=True)[-2:]) or b"\r" in printed or not printed.isascii()


def test_a_line_without_an_end_does_not_fill_memory(tmp_path: Path) -> None:
    log = TimedLog(tmp_path, 10**6)
    for _ in range(100):
        log.write(b"x" * 5_000)
    log.write(b"\nnext\n")
    log.close()
    assert read_log(tmp_path, LogQuery()) == b"x" * 500_000 + b"\nnext\n"
    stamped = read_log(tmp_path, LogQuery(timestamps=True)).splitlines()
    assert [len(line) for line in stamped] == [31 + 500_000, 31 + 4]
    assert read_log(tmp_path, LogQuery(tail_lines=1)) == b"next\n"


def test_of_two_watchers_of_one_attempt_one_runs(tmp_path: Path) -> None:
    """As when a server is killed between starting one and hearing of it, and the next starts another."""
    command = [
        sys.executable,
        "-I",
        driver_process.__file__,
        str(tmp_path),
        "1000",
        "--",
        "sh",
        "-c",
        "echo ran; sleep 1",
    ]
    watchers = [subprocess.Popen(command, start_new_session=True) for _ in range(4)]
    assert [watcher.wait(20) for watcher in watchers] == [0] * 4
    assert read_log(tmp_path, LogQuery()) == b"ran\n"
    assert json.loads((tmp_path / "exit.json").read_text())["exit_code"] == 0


def test_a_command_that_is_not_there_is_an_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-I", driver_process.__file__, str(tmp_path), "1000", "--", "/absent/spark-submit"]
    subprocess.run(command, check=True, start_new_session=True)
    assert json.loads((tmp_path / "exit.json").read_text())["exit_code"] == 127
    assert read_log(tmp_path, LogQuery()) == b"/absent/spark-submit: No such file or directory\n"
