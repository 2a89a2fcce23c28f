"""The process of the gateway: its data folder, its port, its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from typing import IO

import uvicorn

from trilake.errors import ConfigurationError
from trilake.platform.embedded.clickhouse.config import GatewayConfig
from trilake.platform.embedded.clickhouse.engine import Engine
from trilake.platform.embedded.clickhouse.gateway import Gateway
from trilake.platform.embedded.clickhouse.protocol import QueryError

GRACE_SECONDS = 2
"""How long queries may still run after SIGTERM. Then they are killed."""

CUT_SECONDS = 3
"""How long after SIGTERM open connections are closed, for example of clients that send or read slowly."""

END_SECONDS = 1.5
"""How long the engine may take to end after that. All acknowledged data is already in its files."""

log = logging.getLogger("trilake.clickhouse")


def lock(config: GatewayConfig) -> IO[str]:
    """Lock the data folder for this process until the returned file is closed or the process ends.

    :raises ConfigurationError: another process has the lock, or the folder cannot be written.
    """
    try:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(config.lock_file, "a+")  # noqa: SIM115  stays open until the process ends
    except OSError as e:
        raise ConfigurationError(
            f"The data folder {config.data} cannot be written ({e.strerror}).", hint="Make it writable for this user."
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise ConfigurationError(
            f"The data folder {config.data} is in use by process {file.read().strip() or '?'}.",
            hint="Stop that process, or configure another data folder for this gateway.",
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def listen(config: GatewayConfig) -> socket.socket:
    """Open the port.

    :raises ConfigurationError: the port is in use, or the address does not belong to this machine.
    """
    # With a named protocol, asyncio turns off Nagle's algorithm. Otherwise each answer's body waits 40 ms, until the
    # client acknowledges the headers.
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted connections inherit this. asyncio sets it only on sockets with a named protocol. Without it, the second
    # piece of every answer waits 40 ms for the client's delayed acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(128)
    except OSError as e:
        raise ConfigurationError(
            f"Cannot listen on {config.host}:{config.port} ({e.strerror}).",
            hint="Stop the program that uses the port, or choose another port.",
        ) from None
    return listener


def serve(config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT, then end the process.

    :raises ConfigurationError: the data folder or the port is not available, or the engine cannot start.
    """
    lock_file = lock(config)
    listener = listen(config)
    shutil.rmtree(config.spool, ignore_errors=True)
    config.spool.mkdir(mode=0o700)
    config.write_engine_file()
    engine = Engine(config)
    server = uvicorn.Server(
        uvicorn.Config(
            Gateway(config, engine),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=CUT_SECONDS,
        )
    )

    def kill_all() -> None:
        with contextlib.suppress(QueryError):
            engine.kill_all()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            server.should_exit = True
            loop.call_later(GRACE_SECONDS, loop.run_in_executor, None, kill_all)

        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stop)
        log.info("ClickHouse %s ready on %s:%d", engine.version, config.host, config.port)
        await server._serve([listener])

    asyncio.run(run())
    threading.Timer(END_SECONDS, os._exit, [0]).start()
    with contextlib.suppress(QueryError):
        engine.kill_all()
        engine.close()
    log.info("stopped")
    lock_file.close()
    sys.stderr.flush()
    os._exit(0)  # worker threads may still wait for the engine
