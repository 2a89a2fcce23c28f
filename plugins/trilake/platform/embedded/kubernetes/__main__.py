"""``python -m trilake.platform.embedded.kubernetes --config FILE``: serve until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from trilake.errors import TrilakeError
from trilake.platform.embedded.kubernetes.api import Api
from trilake.platform.embedded.kubernetes.cluster import KubernetesObjects
from trilake.platform.embedded.kubernetes.configuration import ClusterConfiguration
from trilake.platform.embedded.kubernetes.controller import Controller

# The drivers' grace of 3 s and this must fit into the 5 s in which the platform ends its services.
_OPEN_REQUESTS_SECONDS = 1


def main(command_line: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="trilake.platform.embedded.kubernetes")
    parser.add_argument("--config", type=Path, required=True, help="config/kubernetes.json of the platform's home")
    options = parser.parse_args(command_line)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o077)  # what drivers write is nobody else's, either
    try:
        configuration = ClusterConfiguration.read(options.config)
        listening = _listen(configuration)
        asyncio.run(_serve(configuration, listening))
    except TrilakeError as e:
        print(e, file=sys.stderr)
        return 1
    except OSError as e:
        print(f"{e.filename or configuration.data}: {e.strerror}.", file=sys.stderr)
        return 1
    return 0


def _listen(configuration: ClusterConfiguration) -> socket.socket:
    # TCP by name: asyncio turns Nagle's algorithm off for no other, and each answer would wait for an acknowledgement
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # inherited by what it accepts; asyncio sets it on sockets of a named protocol only
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    address = (configuration.host, configuration.port)
    try:
        listening.bind(address)
    except OSError as e:
        raise TrilakeError(
            f"{address[0]}:{address[1]} cannot be listened on: {e.strerror}.",
            hint="End what uses the port, or let `trilake up` choose another.",
        ) from None
    return listening


async def _serve(configuration: ClusterConfiguration, listening: socket.socket) -> None:
    cluster = KubernetesObjects(configuration.data, configuration.namespace)
    api = Api(cluster, Controller(cluster, configuration), configuration)
    server = _Server(
        uvicorn.Config(
            api.application(),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_OPEN_REQUESTS_SECONDS,
            # a client keeps its connection between polls, which may be far apart
            timeout_keep_alive=75,
        )
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    host, port = listening.getsockname()[:2]
    logging.getLogger(__name__).info("listening on http://%s:%d, namespace %s", host, port, configuration.namespace)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.end)
    await server.serve(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's server, but a signal to stop is not an error: uvicorn would raise the same signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        self.should_exit = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
