"""Producers: a producer's key can put files below one data set's prefix of ``s3://raw/``, and nothing else.

On vps_1 and in the replica the gateway's administration listens on its host's loopback only. So a container of
Airflow's image makes each request, in the gateway's network. Secrets go through its standard input and output.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilake.errors import TrilakeError
from trilake.lake.data_set import RAW_BUCKET
from trilake.platform.hosts import s3_admin
from trilake.platform.hosts.connections import S3_PORT
from trilake.platform.hosts.containers import run_in_network_of_vps_1
from trilake.platform.private_files import write_once

_SECRET = re.compile(r"^AWS_SECRET_ACCESS_KEY=([0-9a-f]+)$", re.MULTILINE)


class ProducerError(TrilakeError):
    """A request about a producer failed."""


def key_of(name: str, data_set: str) -> str:
    """:raises ProducerError: the two names do not make a valid key."""
    key = f"{data_set}.{name}"
    if not s3_admin.PRODUCER.fullmatch(key):
        raise ProducerError(
            f"{name!r} is not a valid name for a producer of {data_set!r}.",
            hint="The name has at most 30 lower-case letters, digits and -. A file of dags/ declares the data set.",
        )
    return key


class Producers:
    """The producers of the S3 gateway in a compose project on this machine.

    :param project: the compose project's name.
    :param root_secret: the secret of S3's key root.
    """

    def __init__(self, project: str, root_secret: str) -> None:
        self.project = project
        self._root_secret = root_secret

    def list(self) -> list[dict[str, str]]:
        """``key, name, data_set`` of each producer."""
        return [{"key": key, **_parts(key)} for key in self._ask("list")]

    def add(self, name: str, data_set: str, file: Path) -> dict[str, str]:
        """Make a key and write it with mode 600. The secret is stored nowhere else. After a kill, call it again.

        :raises ProducerError: the producer has a key already, or the file exists.
        """
        key = key_of(name, data_set)
        if not file.absolute().parent.is_dir():
            raise ProducerError(
                f"{file.absolute().parent} is not a folder.", hint="Create it, or choose another with --out."
            )
        if file.exists():
            # The gateway does not return a secret, so an overwritten key file would be lost.
            raise ProducerError(
                f"{file} exists and is never overwritten.", hint="Remove it if its key is not needed any more."
            )
        unfinished = file.with_name(f"{file.name}.part")
        secret = _secret_of(unfinished, key) if unfinished.exists() else ""
        if not (secret and self._ask("resume", key, secret)):
            # The unfinished file has no key, or a revoked one. Its secret cannot be used again.
            if key in self._ask("list"):
                raise ProducerError(
                    f"{name} has a key for {data_set} already.", hint="Revoke it first, then add it again."
                )
            unfinished.unlink(missing_ok=True)
            secret = secrets.token_hex(24)
            # Write the file first: a key whose secret is lost would have to be revoked.
            if not write_once(unfinished, _text(key, secret)):
                raise ProducerError(
                    f"Another `producer add` is writing {unfinished}.",
                    hint="Wait for it to finish, then run this again.",
                )
            self._ask("add", key, secret)
        if not write_once(file, _text(key, secret)):
            raise ProducerError(
                f"Another process has just created {file}.", hint=f"Move it. {name}'s key is in {unfinished}."
            )
        unfinished.unlink(missing_ok=True)
        return {"key": key, **_parts(key)}

    def revoke(self, name: str, data_set: str) -> dict[str, str]:
        """Revoke the producer's key at once. The files that it uploaded are kept.

        :raises ProducerError: there is no such producer.
        """
        key = key_of(name, data_set)
        if key not in self._ask("list"):
            raise ProducerError(f"{name} has no key for {data_set}.", hint="`trilake producer list` shows who has one.")
        self._ask("revoke", key)
        return {"key": key, **_parts(key)}

    def _ask(self, verb: str, *arguments: str) -> Any:
        request = json.dumps([self._root_secret, verb, *arguments])
        return json.loads(run_in_network_of_vps_1(self.project, __name__, request, error=ProducerError))


def _parts(key: str) -> dict[str, str]:
    data_set, _, name = key.partition(".")
    return {"name": name, "data_set": data_set}


def _secret_of(unfinished: Path, key: str) -> str:
    """:raises ProducerError: the file does not belong to this key."""
    text = unfinished.read_text()
    match = _SECRET.search(text)
    if match is None or text != _text(key, match[1]):
        raise ProducerError(
            f"{unfinished} does not belong to {key}.", hint="Remove it, or choose another file with --out."
        )
    return match[1]


def _text(key: str, secret: str) -> str:
    """The key's file, in the form that a shell, Docker and every AWS library read."""
    return (
        f"# May put objects below s3://{RAW_BUCKET}/{key.partition('.')[0]}/<partition>/, and nothing else.\n"
        f"AWS_ENDPOINT_URL_S3=http://vps-1:{S3_PORT}\nAWS_REGION=us-east-1\n"
        f"AWS_ACCESS_KEY_ID={key}\nAWS_SECRET_ACCESS_KEY={secret}\n"
    )


def main() -> int:
    """Run the request that is in standard input. This runs in the gateway's network."""
    root_secret, verb, *arguments = json.load(sys.stdin)
    root = s3_admin.root_of(root_secret)
    verbs: dict[str, Callable[..., Any]] = {
        "list": s3_admin.producers,
        "add": s3_admin.add_producer,
        "resume": s3_admin.resume_producer,
        "revoke": s3_admin.revoke_producer,
    }
    try:
        print(json.dumps(verbs[verb](root, *arguments)))
    except TrilakeError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
