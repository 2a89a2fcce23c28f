"""Jars by their coordinates: downloaded with Ivy, which is part of pyspark, verified, and shared by all clones.

A set of jars is a folder of the package with ``ivy.xml`` (the coordinates) and ``jars.sha256`` (the checksums). It is
kept in the cache under the digest of both files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from trilake.errors import TrilakeError
from trilake.platform.embedded import java as javas
from trilake.platform.embedded.cache import cache_folder, filled_atomically
from trilake.platform.package_files import INSTALL, package_file

# Name of the set -> its folder in the package. Spark's image is built from the first.
SETS: Mapping[str, Path] = {
    "spark": package_file("spark", "image"),
    "s3proxy": package_file("platform", "embedded", "s3proxy"),
}
_SETTINGS = SETS["spark"] / "ivysettings.xml"
# Ivy requests one jar after another and mostly waits. Several slices in parallel take a fraction of the time.
_SLICES = 3
_FETCH_TIMEOUT_S = 600


class JarsError(TrilakeError):
    """A jar cannot be downloaded, or its checksum is wrong."""


def folder_of(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for the jars of a set. It may not exist yet."""
    content = (SETS[name] / "ivy.xml").read_bytes() + (SETS[name] / "jars.sha256").read_bytes()
    return cache_folder(environ) / "jars" / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"


def ensure(
    name: str,
    java: Callable[[], javas.Java],
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """The folder of a set's jars. Missing jars are downloaded.

    :param java: called only if jars must be downloaded.
    :raises JarsError: a jar cannot be downloaded, or its checksum is wrong.
    """
    folder = folder_of(name, environ)
    if folder.is_dir():
        return folder
    expected = read_checksums(SETS[name] / "jars.sha256")
    with filled_atomically(folder) as fresh:
        _fetch(name, java(), fresh, environ)
        check(name, fresh, expected)
    return folder


def read_checksums(path: Path) -> dict[str, str]:
    """File name -> SHA-256, as ``sha256sum`` writes it."""
    pairs = (line.split() for line in path.read_text().splitlines() if line.strip())
    return {name.lstrip("*"): digest for digest, name in pairs}


def check(name: str, folder: Path, expected: Mapping[str, str]) -> None:
    """:raises JarsError: `folder` does not hold exactly these files with this content."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.jar")}
    wrong = sorted(file for file in digests.keys() | expected.keys() if digests.get(file) != expected.get(file))
    if wrong:
        raise JarsError(
            f"These {name} jars do not match {SETS[name]}/jars.sha256: {', '.join(wrong[:5])}.",
            hint="The downloaded jars were removed. If ivy.xml was changed on purpose, update jars.sha256 too.",
        )


def ivy_command(java: javas.Java, scratch: Path, environ: Mapping[str, str]) -> list[str]:
    """The command that runs Ivy from pyspark's jars.

    :raises JarsError: pyspark is not installed.
    """
    spec = importlib.util.find_spec("pyspark")
    ivy = next(iter(sorted(Path(spec.origin).parent.glob("jars/ivy-*.jar"))), None) if spec and spec.origin else None
    if ivy is None:
        raise JarsError("pyspark is not installed. It contains Ivy, which downloads jars.", hint=INSTALL)
    trust = javas.trust_store(scratch, environ) if java.bundled else []
    return [str(java.executable), "-Xmx128m", "-XX:TieredStopAtLevel=1", *trust, "-cp", str(ivy), "org.apache.ivy.Main"]


def _fetch(name: str, java: javas.Java, folder: Path, environ: Mapping[str, str]) -> None:
    scratch = folder / ".ivy"
    scratch.mkdir()
    tree = ElementTree.parse(SETS[name] / "ivy.xml")  # noqa: S314  the package's own file
    dependencies = tree.getroot().findall("dependencies/dependency")
    # a machine with its own mirror names it in an Ivy settings file
    settings = environ.get("TRILAKE_IVY_SETTINGS") or _SETTINGS
    command = [*ivy_command(java, scratch, environ), "-settings", str(settings)]
    retrieve = ["-retrieve", str(folder / "[artifact]-[revision].[ext]"), "-types", "jar"]

    def fetch(number: int) -> str:
        """Download one slice. Returns the error as text; empty if there was none."""
        part = ElementTree.Element("ivy-module", version="2.0")
        ElementTree.SubElement(part, "info", organisation="trilake", module=f"{name}-{number}")
        ElementTree.SubElement(part, "dependencies").extend(dependencies[number::_SLICES])
        file = scratch / f"ivy-{number}.xml"
        ElementTree.ElementTree(part).write(file)
        options = ["-cache", str(scratch / f"cache-{number}"), "-ivy", str(file), *retrieve]
        try:
            result = subprocess.run(
                [*command, *options], capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            return f"Ivy: {type(e).__name__}"
        if result.returncode == 0:
            return ""
        output = [line.strip() for line in (result.stdout + result.stderr).splitlines()]
        return next((line for line in output if line.startswith(("::", "ERROR", "[")) and "#" in line), "Ivy failed")

    with ThreadPoolExecutor(_SLICES) as pool:
        failures = [failure for failure in pool.map(fetch, range(_SLICES)) if failure]
    if failures:
        raise JarsError(
            f"The {name} jars cannot be downloaded: {failures[0][:300]}",
            hint="Check access to Maven Central, or set TRILAKE_IVY_SETTINGS to the ivysettings.xml of a mirror.",
        )
    for leftover in sorted(scratch.rglob("*"), reverse=True):
        leftover.rmdir() if leftover.is_dir() else leftover.unlink()
    scratch.rmdir()
