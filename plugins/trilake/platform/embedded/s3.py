"""S3: S3Proxy over a folder. A bucket is a folder below ``data/s3``, an object a file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from trilake.lake.data_set import BUCKETS
from trilake.platform.embedded.home import LOOPBACK, Home
from trilake.platform.embedded.jars import SETS
from trilake.platform.embedded.java import Java
from trilake.platform.embedded.processes import HOME_MARKER, SERVICE_MARKER, Program
from trilake.platform.private_files import write_private

SERVICE = "s3"
_CONFIGURATION = "s3.properties"
# S3Proxy lists an object that is being written, under its key and a random UUID, and without an ETag. If S3Proxy itself
# is killed, such a file stays until the next start.
UNFINISHED_KEYS = r".+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# The file attribute that every complete object has
_ETAG = "user.user.content-md5"
# Objects are streamed; a multipart upload of Spark holds a few parts of 8 MiB at once.
_HEAP = "192m"


def url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def write_configuration(home: Home, port: int, secrets: Mapping[str, str]) -> None:
    """Create the buckets, and write S3Proxy's configuration: its data folder and its credentials."""
    data = home.data(SERVICE)
    for bucket in BUCKETS:
        (data / bucket).mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    properties = {
        "s3proxy.endpoint": url(port),
        "s3proxy.authorization": "aws-v2-or-v4",
        "s3proxy.identity": secrets["s3_access_key_id"],
        "s3proxy.credential": secrets["s3_secret_access_key"],
        # the checksum headers of newer SDKs
        "s3proxy.ignore-unknown-headers": "true",
        # `filesystem` lists folders as objects
        "jclouds.provider": "filesystem-nio2",
        "jclouds.filesystem.basedir": str(data),
    }
    write_private(home.config(_CONFIGURATION), "".join(f"{name}={value}\n" for name, value in properties.items()))


def remove_unfinished(home: Home) -> None:
    """Remove the files of writes that a killed server left behind. Call it only while no process writes."""
    unfinished = re.compile(UNFINISHED_KEYS, re.DOTALL)
    for folder, _, names in os.walk(home.data(SERVICE)):
        for name in filter(unfinished.fullmatch, names):
            path = Path(folder, name)
            if not is_complete(path):
                path.unlink()


def is_complete(path: Path) -> bool:
    """Whether a file whose name looks like that of an unfinished object is a complete one all the same."""
    if not hasattr(os, "getxattr"):  # as on macOS
        return True
    try:
        os.getxattr(path, _ETAG)
    except OSError as e:
        # another error: the file system has no attributes, so no object has an ETag
        return e.errno != errno.ENODATA
    return True


def program(home: Home, java: Java, jars: Path) -> Program:
    """How to run the server."""
    environment = ["/usr/bin/env", "-i", f"{HOME_MARKER}={home.path}", f"{SERVICE_MARKER}={SERVICE}", "LC_ALL=C.UTF-8"]
    jvm = [str(java.executable), f"-Xmx{_HEAP}", "-Xss512k", "-XX:+UseSerialGC", "-XX:MaxMetaspaceSize=96m"]
    jvm += ["-Djava.awt.headless=true", f"-Dlogback.configurationFile={SETS['s3proxy']}/logback.xml"]
    server = ["-cp", f"{jars}/*", "org.gaul.s3proxy.Main", "--properties", str(home.config(_CONFIGURATION))]
    return Program(SERVICE, [*environment, *jvm, *server])
