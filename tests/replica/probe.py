"""Runs inside containers, on Python's standard library alone: listens, or tries what answers. Speaks JSON.

python3 probe.py listen PORT...          on every address: TCP says "here", UDP sends back
python3 probe.py try <[[address, protocol, port], ...]   "open", "refused" or "silent" for each
python3 probe.py scan ADDRESS...         the TCP ports of each, of all there are, that answered in any way
"""

from __future__ import annotations

import asyncio
import errno
import json
import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

# Everything is on one machine: an answer takes milliseconds. A SYN that was dropped is sent again after one second.
SECONDS = 2.2
BATCH = 16384
SCAN_SECONDS = 1.0


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def listen(ports: list[int]) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        writer.close()

    loop = asyncio.get_running_loop()
    servers = [await asyncio.start_server(greet, "0.0.0.0", port) for port in ports]
    for port in ports:
        await loop.create_datagram_endpoint(Echo, ("0.0.0.0", port))
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def try_tcp(address: str, port: int) -> str:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), SECONDS)
    except ConnectionRefusedError:
        return "refused"
    except OSError:  # a timeout is one, so is "no route"
        return "silent"
    writer.close()
    return "open"


async def try_udp(address: str, port: int) -> str:
    """Open only if something came back."""

    def ask() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(SECONDS)
            try:
                asking.connect((address, port))
                asking.send(b"anybody?")
                asking.recv(100)
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                return "silent"
            return "open"

    return await asyncio.to_thread(ask)


async def attempt(targets: list[tuple[str, str, int]]) -> list[str]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=128))
    tries = {"tcp": try_tcp, "udp": try_udp}
    return list(await asyncio.gather(*(tries[protocol](address, port) for address, protocol, port in targets)))


def scan(addresses: list[str]) -> dict[str, list[int]]:
    answered: dict[str, list[int]] = {address: [] for address in addresses}
    everything = [(address, port) for port in range(1, 65536) for address in addresses]
    for first in range(0, len(everything), BATCH):
        poll = select.epoll()
        trying: dict[int, tuple[socket.socket, str, int]] = {}
        for address, port in everything[first : first + BATCH]:
            one = socket.socket()
            one.setblocking(False)
            if one.connect_ex((address, port)) in (0, errno.ECONNREFUSED):
                answered[address].append(port)
            else:
                poll.register(one, select.EPOLLOUT | select.EPOLLERR)
            trying[one.fileno()] = (one, address, port)
        while events := poll.poll(SCAN_SECONDS, BATCH):
            for file, _ in events:
                poll.unregister(file)
                one, address, port = trying[file]
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                    answered[address].append(port)
        poll.close()
        for one, _, _ in trying.values():
            one.close()
    return {address: sorted(ports) for address, ports in answered.items()}


if __name__ == "__main__":
    match sys.argv[1]:
        case "listen":
            asyncio.run(listen([int(port) for port in sys.argv[2:]]))
        case "try":
            print(json.dumps(asyncio.run(attempt(json.load(sys.stdin)))))
        case "scan":
            print(json.dumps(scan(sys.argv[2:])))
