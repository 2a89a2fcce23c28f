"""docker/vps_2/offline_bundle.py: what it brings is whole, and brought once. Docker answers as its API says."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import socketserver
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
VALUES = PROJECT / "k8s/spark_operator/values.yaml"


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("offline_bundle", PROJECT / "docker/vps_2/offline_bundle.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Docker:
    """Docker's API on a socket: images that are here, images that can be pulled, and what was asked of it."""

    def __init__(self, socket: Path) -> None:
        self.socket = str(socket)
        self.here: dict[str, bytes] = {}
        self.registry: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.breaks_off = False
        docker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def address_string(self) -> str:
                return "socket"

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                _, _, rest = self.path.partition("/images/")
                name, _, what = rest.rpartition("/")
                docker.asked.append(f"{what} {name}")
                if name not in docker.here:
                    self._answer(404, json.dumps({"message": f"No such image: {name}"}).encode())
                elif what == "json":
                    digest = docker.here[name].hex().ljust(64, "0")[:64]
                    self._answer(200, json.dumps({"Id": f"sha256:{digest}"}).encode())
                else:
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    content = docker.here[name]
                    self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
                    if docker.breaks_off:
                        self.close_connection = True
                    else:
                        self.wfile.write(b"0\r\n\r\n")

            def do_POST(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                name = f"{query['fromImage'][0]}:{query['tag'][0]}"
                docker.asked.append(f"pull {name}")
                if name in docker.registry:
                    docker.here[name] = docker.registry[name]
                    self._answer(200, b'{"status":"Pulling"}\n{"status":"done"}\n')
                else:  # as Docker does: the pull began well
                    self._answer(200, b'{"status":"Pulling"}\n{"error":"manifest unknown"}\n')

        self._server = socketserver.ThreadingUnixStreamServer(self.socket, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    one = Docker(tmp_path / "docker.sock")
    yield one
    one.end()


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Manifests that were made ready."""
    folder = tmp_path / "ready"
    folder.mkdir()
    (folder / "operator.yaml").write_text("kind: Deployment\n")
    return folder


def run(bundle: ModuleType, docker: Docker, ready: Path, *images: str) -> Path:
    into = ready.parent / "k3s"
    options = [
        f"--into={into}",
        f"--values={VALUES}",
        f"--manifests={ready}",
        "--k3s=none",
        f"--docker={docker.socket}",
    ]
    bundle.main([*options, *images])
    return into


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_an_image_is_brought_once_and_again_when_it_is_another(bundle: ModuleType, docker: Docker, ready: Path) -> None:
    docker.here["trilake/spark:1"] = b"\x01" * 10
    images = run(bundle, docker, ready, "trilake/spark:1") / "agent/images"
    assert files(images) == {"docker-trilake_spark_1-0101010101010101.tar": b"\x01" * 10}
    run(bundle, docker, ready, "trilake/spark:1")
    assert docker.asked.count("get trilake/spark:1") == 1
    docker.here["trilake/spark:1"] = b"\x02" * 10
    (images / "k3s-airgap-images-amd64.tar.zst").write_bytes(b"of others")
    run(bundle, docker, ready, "trilake/spark:1")
    assert files(images) == {
        "docker-trilake_spark_1-0202020202020202.tar": b"\x02" * 10,
        "k3s-airgap-images-amd64.tar.zst": b"of others",
    }


def test_an_image_that_docker_lacks_is_pulled(bundle: ModuleType, docker: Docker, ready: Path) -> None:
    docker.registry["registry.example/operator:2"] = b"\x03" * 10
    into = run(bundle, docker, ready, "registry.example/operator:2")
    assert len(files(into / "agent/images")) == 1


def test_what_the_manifests_run_is_brought_with_them(bundle: ModuleType, docker: Docker, ready: Path) -> None:
    docker.here["registry.example:5000/operator:2"] = b"\x04" * 10
    (ready / "operator.yaml").write_text(
        "spec:\n  containers:\n    - name: a\n      image: registry.example:5000/operator:2\n"
        '    - image: "registry.example:5000/operator:2"\n'
    )
    images = run(bundle, docker, ready) / "agent/images"
    assert [name.rpartition("-")[0] for name in files(images)] == ["docker-registry.example_5000_operator_2"]


def test_an_image_that_cannot_be_pulled_is_named_in_one_line(bundle: ModuleType, docker: Docker, ready: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^offline_bundle: The image a/b:1 is not here and cannot be pulled: manifest "
    ):
        run(bundle, docker, ready, "a/b:1")


def test_half_an_image_has_no_name_that_k3s_reads(bundle: ModuleType, docker: Docker, ready: Path) -> None:
    docker.here["trilake/spark:1"] = b"\x01" * 10
    docker.breaks_off = True
    with pytest.raises(SystemExit, match="offline_bundle: "):
        run(bundle, docker, ready, "trilake/spark:1")
    images = ready.parent / "k3s/agent/images"
    assert not list(images.glob("*.tar"))
    docker.breaks_off = False
    run(bundle, docker, ready, "trilake/spark:1")
    assert list(files(images)) == ["docker-trilake_spark_1-0101010101010101.tar"]


def test_no_docker_is_said_in_one_line(bundle: ModuleType, docker: Docker, ready: Path) -> None:
    docker.socket += ".none"
    with pytest.raises(SystemExit, match=r"^offline_bundle: Docker does not answer at .*docker\.sock\.none"):
        run(bundle, docker, ready, "trilake/spark:1")


def test_manifests_made_ready_are_taken_and_go_when_they_are_gone(
    bundle: ModuleType, docker: Docker, ready: Path
) -> None:
    (ready / "crd.yaml").write_text("kind: CustomResourceDefinition\n")
    manifests = run(bundle, docker, ready) / "server/manifests"
    (manifests / "coredns.yaml").write_text("k3s's own")
    assert sorted(files(manifests)) == ["coredns.yaml", "spark-operator-crd.yaml", "spark-operator-operator.yaml"]
    (ready / "crd.yaml").unlink()
    run(bundle, docker, ready)
    assert sorted(files(manifests)) == ["coredns.yaml", "spark-operator-operator.yaml"]


def archive(**contents: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, text in {"README.md": "of the repository", **contents}.items():
            member = tarfile.TarInfo(f"spark-operator-43afb8bb/{path}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


CHART = {
    "charts/spark-operator-chart/Chart.yaml": "name: spark-operator\nversion: 2.5.2\n",
    "charts/spark-operator-chart/crds/a.yaml": "kind: CustomResourceDefinition\n",
    "charts/spark-operator-chart/tests/a_test.yaml": "suite: a\n",
    "charts/spark-operator-chart/values.yaml": (
        "# of the chart\nimage:\n  # -- where from\n  registry: registry.example\n  repository: operator\n"
        "webhook:\n  registry: another\n"
    ),
}


def test_a_chart_with_another_content_is_refused(bundle: ModuleType) -> None:
    with pytest.raises(bundle.OfflineBundleError, match=r"is not spark-operator's chart 2\.5\.2"):
        bundle.helm_chart(archive(**CHART), "")


def test_the_chart_goes_to_k3s_with_our_values_and_its_definitions(
    bundle: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "charts/spark-operator-chart/"
    pinned = bundle.chart_digest((path.removeprefix(prefix), text.encode()) for path, text in CHART.items())
    monkeypatch.setattr(bundle, "CHART_SHA256", pinned)
    chart, image = bundle.helm_chart(archive(**CHART), VALUES.read_text())
    assert image == f"registry.example/operator:{bundle.CHART_VERSION}"
    document = yaml.safe_load(chart)
    assert (document["apiVersion"], document["kind"]) == ("helm.cattle.io/v1", "HelmChart")
    assert yaml.safe_load(document["spec"]["valuesContent"])["image"]["tag"] == bundle.CHART_VERSION
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(document["spec"]["chartContent"]))) as tar:
        assert sorted(tar.getnames()) == [
            "spark-operator/Chart.yaml",
            "spark-operator/crds/a.yaml",
            "spark-operator/values.yaml",
        ]


def test_versions_are_those_of_everything_else(bundle: ModuleType) -> None:
    compose = (PROJECT / "docker/vps_2/compose.yml").read_text()
    assert f"rancher/k3s:{bundle.K3S_VERSION.replace('+', '-')}" in compose
    assert bundle.K3S_VERSION in compose
    assert yaml.safe_load(VALUES.read_text())["image"]["tag"] == bundle.CHART_VERSION
    assert bundle.K3S_VERSION in (PROJECT / "docs/operations/vps_2.md").read_text()
