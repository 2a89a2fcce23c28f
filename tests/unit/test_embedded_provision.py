"""Java and jars: what is there is used, what is fetched is checked, and nothing half-done is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trilake.platform.embedded import jars, java
from trilake.platform.embedded.cache import cache_folder, filled_atomically

PROJECT = Path(__file__).parents[2]


def fake_java(folder: Path, version: str) -> Path:
    """A program that tells a version as Java does."""
    executable = folder / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-01' >&2\n")
    executable.chmod(0o755)
    return executable


@pytest.mark.parametrize(
    ("version", "found"),
    [("17.0.15", 17), ("21.0.8", 21), ("21", 21), ("11.0.2", None), ("1.8.0_452", None), ("24", None)],
)
def test_only_a_java_that_spark_runs_on_is_used(tmp_path: Path, version: str, found: int | None) -> None:
    fake_java(tmp_path, version)
    java_found = java.find({"JAVA_HOME": str(tmp_path), "PATH": "/nowhere"})
    assert (java_found and java_found.version) == found
    java_found = java.find({"PATH": f"/nowhere:{tmp_path / 'bin'}"})
    assert (java_found and java_found.home) == (tmp_path if found else None)


def test_java_home_goes_before_the_path_unless_it_is_of_no_use(tmp_path: Path) -> None:
    fake_java(tmp_path / "17", "17.0.1")
    fake_java(tmp_path / "21", "21.0.1")
    fake_java(tmp_path / "8", "1.8.0")
    path = str(tmp_path / "17" / "bin")
    found = java.find({"JAVA_HOME": str(tmp_path / "21"), "PATH": path})
    assert found
    assert found.version == 21
    for home in (tmp_path / "8", tmp_path / "none"):
        found = java.find({"JAVA_HOME": str(home), "PATH": path})
        assert found
        assert found.version == 17


def test_the_shim_drops_the_module_and_keeps_every_other_argument(tmp_path: Path) -> None:
    told = tmp_path / "java"
    told.write_text("#!/bin/sh\nfor a do printf '<%s>' \"$a\"; done\n")
    told.chmod(0o755)
    shim = tmp_path / "shim"
    shim.write_text(java._SHIM.format(java=told))
    arguments = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "-Da=b c", "", "*", "--add-modules=other"]
    done = subprocess.run(["/bin/sh", str(shim), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "<-Xmx1g><-Da=b c><><*><--add-modules=other>"


@pytest.mark.parametrize("name", sorted(jars.SETS))
def test_the_coordinates_and_the_checksums_name_the_same_jars(name: str) -> None:
    folder = jars.SETS[name]
    dependencies = ElementTree.parse(folder / "ivy.xml").getroot().findall("dependencies/dependency")
    assert all(dependency.get("transitive") == "false" for dependency in dependencies)
    files = [f"{dependency.get('name')}-{dependency.get('rev')}.jar" for dependency in dependencies]
    assert sorted(files) == sorted(jars.read_checksums(folder / "jars.sha256"))


def test_no_lock_and_no_ivy_file_names_an_index() -> None:
    files = [*PROJECT.glob("plugins/trilake/**/requirements/*.txt"), *PROJECT.glob("plugins/trilake/**/ivy*.xml")]
    assert {"airflow.txt", "jdk.txt", "ivy.xml", "ivysettings.xml"} <= {path.name for path in files}
    for path in files:
        assert "://" not in path.read_text(), path


def test_jars_that_are_not_as_they_should_be_are_refused(tmp_path: Path) -> None:
    good = hashlib.sha256(b"good").hexdigest()
    (tmp_path / "a.jar").write_bytes(b"good")
    jars.check("spark", tmp_path, {"a.jar": good})
    for expected in ({"a.jar": "0" * 64}, {"a.jar": good, "b.jar": good}, {}):
        with pytest.raises(jars.JarsError, match=r"jars do not match .*/spark/image/jars\.sha256: [ab]\.jar"):
            jars.check("spark", tmp_path, expected)


def test_a_set_of_jars_that_changes_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in jars.SETS.items():
        shared = jars.folder_of(name)
        copy = Path(shutil.copytree(folder, tmp_path / name))
        monkeypatch.setattr(jars, "SETS", {**jars.SETS, name: copy})
        assert jars.folder_of(name) == shared, "two installations do not share the jars"
        with open(copy / "jars.sha256", "a") as file:
            file.write("\n")
        assert jars.folder_of(name) != shared


def test_what_is_half_done_is_not_kept_in_the_cache(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "jars"

    def interrupted() -> None:
        with filled_atomically(target) as fresh:
            (fresh / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(target.parent.iterdir()) == []
    for text in ("first", "second"):
        with filled_atomically(target) as fresh:
            (fresh / "file").write_text(text)
    assert (target / "file").read_text() == "first", "what others may be using was replaced"
    assert list(target.parent.iterdir()) == [target]


def test_the_cache_is_where_the_user_says() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/some"}) == Path("/some/trilake")
    assert cache_folder({}) == Path(os.path.expanduser("~/.cache/trilake"))
