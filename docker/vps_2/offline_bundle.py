"""The offline bundle: images and charts for Kubernetes on vps_2, which cannot reach the internet.

Writes, below one folder, what k3s reads when it starts: ``agent/images/`` (k3s's own images, and images of this
machine's Docker by name, which Docker pulls if it does not have them) and ``server/manifests/`` (spark-operator's chart
with our values, or prepared manifests). In the replica the two parts of the folder are k3s's volumes. For a real vps_2
the bundle is made on vps_1 and copied (docs/operations/vps_2.md). Needs only Python's standard library.

Each file appears complete, under its own name, or not at all. A file that exists is not made again.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import io
import json
import os
import platform
import re
import socket
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from urllib.parse import quote

SOCKET = "/var/run/docker.sock"
# The longest wait for the next bytes of an answer. Only a pull over a slow connection needs longer.
SILENCE_S = 600
CHUNK = 1 << 20

K3S = "https://github.com/k3s-io/k3s/releases/download/{version}"
K3S_VERSION = "v1.36.4+k3s1"
# Tag v2.5.2 of kubeflow's spark-operator; the digest is over the chart's files, not the archive.
CHART = "https://github.com/kubeflow/spark-operator/archive/43afb8bbd32463037d8fb6e414e252c69081882b.tar.gz"
CHART_FOLDER = "charts/spark-operator-chart"
CHART_SHA256 = "51ebe19443d7e61d1f10411268f6c21adc4b7a5445a86f247d9f728361e1a515"
CHART_VERSION = "2.5.2"


class OfflineBundleError(Exception):
    """Something could not be fetched. The message is one line."""


# --- images


class _Docker(http.client.HTTPConnection):
    """Docker's API on its socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=SILENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError as e:
            raise OfflineBundleError(
                f"Docker does not answer at {self._path} ({e.strerror}). Set DOCKER_SOCKET to its socket."
            ) from None


def _ask(docker: str, method: str, path: str) -> http.client.HTTPResponse:
    connection = _Docker(docker)
    connection.request(method, path)
    return connection.getresponse()


def _reason(answer: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(answer.read())["message"])
    except (ValueError, LookupError):
        return f"status {answer.status}"


def image_id(docker: str, name: str) -> str:
    """Digest of the image that Docker has under this name. If there is none, it is pulled first."""
    for attempt in ("look", "pull"):
        with closing(_ask(docker, "GET", f"/images/{name}/json")) as answer:
            if answer.status == http.client.OK:
                return str(json.loads(answer.read())["Id"]).removeprefix("sha256:")
            if answer.status != http.client.NOT_FOUND or attempt == "pull":
                raise OfflineBundleError(f"Docker cannot inspect the image {name}: {_reason(answer)}")
        _pull(docker, name)
    raise AssertionError(name)


def _pull(docker: str, name: str) -> None:
    repository, _, tag = name.rpartition(":")
    print(f"pulling {name}", flush=True)
    path = f"/images/create?fromImage={quote(repository, safe='')}&tag={quote(tag, safe='')}"
    with closing(_ask(docker, "POST", path)) as answer:
        if answer.status != http.client.OK:
            raise OfflineBundleError(f"The image {name} is not here and cannot be pulled: {_reason(answer)}")
        for line in answer:  # a pull that fails half-way has status 200 and reports the error here
            if error := json.loads(line or b"{}").get("error"):
                raise OfflineBundleError(f"The image {name} is not here and cannot be pulled: {error}")


def save_images(docker: str, names: Iterable[str], folder: Path) -> None:
    """Save each image to a tar, named by the image and its digest. Remove all other tars of Docker's images."""
    wanted = set()
    for name in names:
        digest = image_id(docker, name)
        file = folder / f"docker-{re.sub(r'[^A-Za-z0-9.-]', '_', name)}-{digest[:16]}.tar"
        wanted.add(file.name)
        if file.exists():
            print(f"{name}: already there", flush=True)
            continue
        with closing(_ask(docker, "GET", f"/images/{name}/get")) as answer:
            if answer.status != http.client.OK:
                raise OfflineBundleError(f"Docker cannot export the image {name}: {_reason(answer)}")
            _write(file, iter(lambda: answer.read(CHUNK), b""))
        print(f"{name}: {file.stat().st_size / 1e6:.0f} MB", flush=True)
    for stale in folder.glob("docker-*.tar"):
        if stale.name not in wanted:
            stale.unlink()


def save_images_of_k3s(version: str, folder: Path) -> None:
    """Save the images that k3s itself runs (CoreDNS, pause, Helm), from its release."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    file = folder / f"k3s-airgap-images-{machine}-{version}.tar.zst"
    if file.exists():
        print(f"k3s {version}: already there", flush=True)
        return
    address = K3S.format(version=quote(version, safe=""))
    lines = _read(f"{address}/sha256sum-{machine}.txt").decode().splitlines()
    sums = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    name = f"k3s-airgap-images-{machine}.tar.zst"
    with _open(f"{address}/{name}") as answer:
        _write(file, iter(lambda: answer.read(CHUNK), b""), sums[name])
    print(f"k3s {version}: {file.stat().st_size / 1e6:.0f} MB", flush=True)


# --- manifests


def chart_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Digest of a chart's files in any order: SHA-256 over `<sha256>  <path>` lines, sorted by path."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files_of_chart(archive: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # the archive's own folder
            if member.isfile() and path.is_relative_to(CHART_FOLDER) and (file := tar.extractfile(member)):
                yield str(path.relative_to(CHART_FOLDER)), file.read()


def images_of_manifests(contents: Iterable[bytes]) -> set[str]:
    """The images that the containers of these manifests run."""
    return {
        name.decode() for content in contents for name in re.findall(rb'^\s*(?:- )?image: "?([^\s"]+)', content, re.M)
    }


def image_of_chart(values: bytes) -> str:
    """The chart's image: registry and repository from its own values. The tag is the chart's version."""
    block = re.search(r"^image:\n((?:[ #].*\n|\n)*)", values.decode(), re.M)
    image = dict(re.findall(r"^  (registry|repository): *(\S+)", block[1] if block else "", re.M))
    try:
        return f"{image['registry']}/{image['repository']}:{CHART_VERSION}"
    except KeyError as e:
        raise OfflineBundleError(f"The values of spark-operator's chart have no {e.args[0]} for its image.") from None


def helm_chart(archive: bytes, values: str) -> tuple[str, str]:
    """A document for k3s's Helm controller with spark-operator's chart inside, and the image that the chart runs.

    :raises OfflineBundleError: the chart's files are not those of its version.
    """
    files = list(_files_of_chart(archive))
    if (digest := chart_digest(files)) != CHART_SHA256:
        raise OfflineBundleError(
            f"{CHART} is not spark-operator's chart {CHART_VERSION}: its files have the digest {digest}."
        )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, content in files:
            if not path.startswith(("ci/", "tests/")):
                member = tarfile.TarInfo(f"spark-operator/{path}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    document = {
        "apiVersion": "helm.cattle.io/v1",
        "kind": "HelmChart",
        "metadata": {"name": "spark-operator", "namespace": "kube-system"},
        "spec": {
            "chartContent": base64.b64encode(packed.getvalue()).decode(),
            "targetNamespace": "spark-operator",
            "createNamespace": True,
            "valuesContent": values,
        },
    }
    return json.dumps(document) + "\n", image_of_chart(dict(files)["values.yaml"])  # JSON is valid YAML


def place_manifests(ready: Path | None, values: Path, folder: Path) -> set[str]:
    """Write spark-operator's manifests to k3s's folder: those of `ready`, or the chart if `ready` has none.

    :return: the images that the manifests run.
    """
    files = sorted(ready.rglob("*.yaml")) if ready else []
    contents = {f"spark-operator-{file.name}": file.read_bytes() for file in files}
    images = images_of_manifests(contents.values())
    if not contents:
        chart, image = helm_chart(_read(CHART), values.read_text())
        contents["spark-operator-chart.yaml"], images = chart.encode(), {image}
    for name, content in contents.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            _write(folder / name, [content])
        print(f"spark-operator: {name}", flush=True)
    for stale in folder.glob("spark-operator-*.yaml"):
        if stale.name not in contents:
            stale.unlink()
    return images


# --- files and addresses


def _write(file: Path, chunks: Iterable[bytes], sha256: str = "") -> None:
    """Write the complete file or nothing: it gets its name when all of it is on disk and the digest is right."""
    part = file.with_name(f".{file.name}.part")
    digest = hashlib.sha256()
    with part.open("wb") as written:
        for chunk in chunks:
            written.write(chunk)
            digest.update(chunk)
        written.flush()
        os.fsync(written.fileno())
    if sha256 and digest.hexdigest() != sha256:
        part.unlink()
        raise OfflineBundleError(f"{file.name} has the digest {digest.hexdigest()}, not {sha256}. Run this again.")
    part.rename(file)


def _open(address: str) -> http.client.HTTPResponse:
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(address, timeout=SILENCE_S)  # noqa: S310  https, above
    except (urllib.error.URLError, OSError) as e:
        raise OfflineBundleError(f"{address} cannot be fetched: {getattr(e, 'reason', e)}.") from None
    return answer


def _read(address: str) -> bytes:
    with _open(address) as answer:
        return answer.read()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "images", nargs="*", help="names of Docker's images, name:tag; spark-operator's image is always added"
    )
    parser.add_argument("--into", type=Path, required=True, help="folder; on vps_2 it is /var/lib/rancher/k3s")
    parser.add_argument("--values", type=Path, required=True, help="k8s/spark_operator/values.yaml")
    parser.add_argument("--manifests", type=Path, help="folder of manifests to use instead of spark-operator's chart")
    parser.add_argument("--k3s", default=K3S_VERSION, help="version of k3s's own images; none: k3s has them already")
    parser.add_argument("--docker", default=os.environ.get("DOCKER_SOCKET", SOCKET), help="Docker's socket")
    options = parser.parse_args(arguments)
    images, manifests = options.into / "agent/images", options.into / "server/manifests"
    for folder in (images, manifests):
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".*.part"):  # left by a process that was killed
            part.unlink()
    try:
        operators = place_manifests(options.manifests, options.values, manifests)
        save_images(options.docker, [*options.images, *sorted(operators)], images)
        if options.k3s != "none":
            save_images_of_k3s(options.k3s, images)
    except (OfflineBundleError, OSError, http.client.HTTPException) as e:
        sys.exit(f"offline_bundle: {e}")


if __name__ == "__main__":
    main()
