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

# This and the drivers' grace period of 3 s must fit into the 5 s in which the platform stops its services.
_OPEN_REQUESTS_SECONDS = 1


def main(command_line: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="trilake.platform.embedded.kubernetes")
    parser.add_argument("--config", type=Path, required=True, help="config/kubernetes.json of the platform's home")
    options = parser.parse_args(command_line)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o077)  # files of drivers are for this user only, too
    try:
        configuration = ClusterConfiguration.read(options.config)
        listener = _listen(configuration)
        asyncio.run(_serve(configuration, listener))
    except TrilakeError as e:
        print(e, file=sys.stderr)
        return 1
    except OSError as e:
        print(f"{e.filename or configuration.data}: {e.strerror}.", file=sys.stderr)
        return 1
    return 0


def _listen(configuration: ClusterConfiguration) -> socket.socket:
    # With a named protocol, asyncio turns off Nagle's algorithm; otherwise each answer waits for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # accepted connections inherit this; asyncio sets it only on sockets with a named protocol
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    address = (configuration.host, configuration.port)
    try:
        listener.bind(address)
    except OSError as e:
        raise TrilakeError(
            f"Cannot listen on {address[0]}:{address[1]}: {e.strerror}.",
            hint="Stop the program that uses the port, or remove the port from config/ports.json and run `trilake up`.",
        ) from None
    return listener


async def _serve(configuration: ClusterConfiguration, listener: socket.socket) -> None:
    cluster = KubernetesObjects(configuration.data, configuration.namespace)
    api = Api(cluster, Controller(cluster, configuration), configuration)
    server = _Server(
        uvicorn.Config(
            api.application(),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_OPEN_REQUESTS_SECONDS,
            # clients keep their connection between polls, and the polls may be far apart
            timeout_keep_alive=75,
        )
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    host, port = listener.getsockname()[:2]
    logging.getLogger(__name__).info("listening on http://%s:%d, namespace %s", host, port, configuration.namespace)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, server.end)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn's server, but a signal to stop is not an error: uvicorn would raise the same signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        self.should_exit = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
