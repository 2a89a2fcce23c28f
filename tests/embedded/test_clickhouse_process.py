"""The gateway as a process: its memory, its end, its restart."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.clickhouse_gateway import PASSWORD, USER, PeakMemory, RunningGateway, wait_until

pytest_plugins = ["support.clickhouse_fixtures"]

MIB = 1 << 20
BLOCK = b"".join(b"%d\t%b\n" % (n, str(n).encode() * 80) for n in range(5_000))
GIB_OF_BLOCKS = (1 << 30) // len(BLOCK)


# --- memory


@pytest.mark.parametrize(
    ("rows", "format_", "headers"),
    [
        (15_000_000, "TSV", {}),
        pytest.param(20_000_000, "Native", {"Accept-Encoding": "lz4"}, marks=pytest.mark.nightly),
        pytest.param(10_000_000, "JSONCompact", {}, marks=pytest.mark.nightly),  # made as a whole, in a file
    ],
)
def test_memory_stays_flat_for_a_large_answer(
    gateway: RunningGateway, rows: int, format_: str, headers: dict[str, str]
) -> None:
    sql = f"SELECT number, toString(number), number / 3 FROM numbers({rows}) FORMAT {format_}"
    request = {"content": sql, "auth": (USER, PASSWORD), "headers": headers}
    with PeakMemory(gateway) as memory, httpx.stream("POST", gateway.url, timeout=300, **request) as response:
        size = sum(map(len, response.iter_raw(MIB)))
    assert size > 200 * MIB
    assert memory.growth < 150 * MIB


def test_a_slow_reader_makes_the_engine_wait(gateway: RunningGateway) -> None:
    sql = "SELECT number, toString(number) FROM system.numbers"
    request = {"content": sql, "auth": (USER, PASSWORD), "params": {"query_id": "slow reader"}}
    with PeakMemory(gateway) as memory, httpx.stream("POST", gateway.url, **request) as response:
        pieces = response.iter_raw(MIB)
        next(pieces)
        read = "SELECT read_rows FROM system.processes WHERE query_id = 'slow reader'"
        seen = [-1]

        def stands_still() -> bool:
            seen.append(int(gateway.sql(read)))
            return len(seen) > 20 and len(set(seen[-10:])) == 1

        wait_until(stands_still)
        next(pieces)
    assert memory.growth < 100 * MIB
    wait_until(lambda: not gateway.running("slow reader"))


@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_memory_stays_flat_for_a_large_insert(gateway: RunningGateway, table: str, compressed: bool) -> None:
    block = lz4.frame.compress(BLOCK) if compressed else BLOCK

    def blocks() -> Iterator[bytes]:
        for _ in range(GIB_OF_BLOCKS):
            yield block

    with PeakMemory(gateway) as memory:
        answer = gateway.post(
            blocks(), {"Content-Encoding": "lz4" if compressed else "identity"}, query=f"INSERT INTO {table} FORMAT TSV"
        )
    assert answer.status_code == 200, answer.text
    rows = 5_000 * GIB_OF_BLOCKS
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["written_rows"] == str(rows)
    assert gateway.sql(f"SELECT count() FROM {table}") == str(rows)
    # the engine gathers blocks of 1M rows or 256 MiB, sorts and compresses them, two at a time
    assert memory.growth < 600 * MIB


@pytest.mark.nightly
def test_memory_stays_flat_for_a_large_arrow_insert(gateway: RunningGateway, table: str) -> None:
    batch = pa.record_batch({"n": pa.array(range(10_000), pa.uint64()), "s": ["text " * 20] * 10_000})
    with io.BytesIO() as sink:
        with pa.ipc.new_file(sink, batch.schema) as writer:
            for _ in range(800):
                writer.write_batch(batch)
        file = sink.getvalue()
    assert len(file) > 800 * MIB
    with PeakMemory(gateway) as memory:
        pieces = (file[at : at + MIB] for at in range(0, len(file), MIB))
        answer = gateway.post(pieces, query=f"INSERT INTO {table} FORMAT Arrow")
    assert answer.status_code == 200, answer.text
    assert gateway.sql(f"SELECT count() FROM {table}") == "8000000"
    # the engine gathers blocks as above; how many at a time depends on what else the machine does
    assert memory.growth < 700 * MIB


def test_a_query_that_wants_too_much_memory_is_refused(gateway: RunningGateway) -> None:
    answer = gateway.post("SELECT groupArray(randomString(100000)) FROM numbers(100000) FORMAT Null")
    assert answer.headers["X-ClickHouse-Exception-Code"] == "241"
    assert gateway.sql("SELECT 1") == "1"


def test_an_idle_gateway_is_small(own_gateway: RunningGateway) -> None:
    own_gateway.sql("SELECT 1")
    assert own_gateway.memory < 400 * MIB


# --- its end


def test_everything_acknowledged_is_there_after_a_kill(own_gateway: RunningGateway) -> None:
    own_gateway.sql("CREATE TABLE analytics.kept (writer UInt8, n UInt64) ENGINE = MergeTree ORDER BY (writer, n)")
    acknowledged = [0] * 4
    enough = threading.Event()

    def write(writer: int) -> None:
        while True:
            n = acknowledged[writer]
            try:
                answer = own_gateway.post(f"{writer}\t{n}\n", query="INSERT INTO analytics.kept FORMAT TSV")
            except httpx.TransportError:
                return
            assert answer.status_code == 200
            acknowledged[writer] = n + 1
            if sum(acknowledged) > 40:
                enough.set()

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, writer) for writer in range(4)]
        assert enough.wait(30)
        own_gateway.end(signal.SIGKILL)
        for writer in writers:
            writer.result()
    own_gateway.start()
    for writer, count in enumerate(acknowledged):
        found = own_gateway.sql(
            f"SELECT count(), uniqExact(n), max(n) FROM analytics.kept WHERE writer = {writer}"
        ).split("\t")
        # an insert may have been done whose acknowledgement was not sent any more
        assert found in ([str(count), str(count), str(count - 1)], [str(count + 1), str(count + 1), str(count)])


def test_a_kill_within_an_insert_leaves_none_of_it(own_gateway: RunningGateway) -> None:
    own_gateway.sql("CREATE TABLE analytics.kept (n UInt64) ENGINE = MergeTree ORDER BY n")

    def blocks() -> Iterator[bytes]:
        yield b"1\n" * 100_000
        wait_until(lambda: own_gateway.running("unfinished"))
        own_gateway.end(signal.SIGKILL)
        yield b"1\n"

    with pytest.raises(httpx.TransportError):
        own_gateway.post(blocks(), query="INSERT INTO analytics.kept FORMAT TSV", query_id="unfinished")
    own_gateway.start()
    assert own_gateway.sql("SELECT count() FROM analytics.kept") == "0"
    assert (
        own_gateway.sql("SELECT name FROM system.databases WHERE name LIKE 'shard%' ORDER BY name")
        == "shard_1\nshard_2"
    )


def test_sigterm_ends_it_in_good_time_whatever_runs(own_gateway: RunningGateway) -> None:
    own_gateway.sql("CREATE TABLE analytics.kept (n UInt64) ENGINE = MergeTree ORDER BY n")
    own_gateway.sql("INSERT INTO analytics.kept SELECT number FROM numbers(1000)")
    with ThreadPoolExecutor() as pool:
        sql = "SELECT count() FROM numbers(100000000000) WHERE NOT ignore(number)"
        endless = pool.submit(own_gateway.post, sql, query_id="endless")
        wait_until(lambda: own_gateway.running("endless"))
        assert own_gateway.process is not None
        own_gateway.process.terminate()
        assert own_gateway.process.wait(120) == 0
        assert endless.result().headers["X-ClickHouse-Exception-Code"] == "394"
    own_gateway.start()
    assert own_gateway.sql("SELECT count() FROM analytics.kept") == "1000"


def test_a_query_may_finish_during_sigterm(own_gateway: RunningGateway) -> None:
    with ThreadPoolExecutor() as pool:
        short = pool.submit(own_gateway.post, "SELECT sleep(1)", query_id="short")
        wait_until(lambda: own_gateway.running("short"))
        assert own_gateway.end() == 0
        assert short.result().status_code == 200


# --- its disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256m", "trilake-test", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_next_statement_succeeds_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    gateway = RunningGateway(small_disk).start()
    try:
        create = "CREATE TABLE shard_1.t (n UInt64) ENGINE = MergeTree ORDER BY n"
        fill()
        assert "The disk of the data folder is full" in gateway.post(create).text
        ballast.unlink()
        gateway.sql(create)
        parquet = io.BytesIO()
        pq.write_table(pa.table({"n": pa.array(range(100_000), pa.uint64())}), parquet)
        for body, format_ in ((parquet.getvalue(), "Parquet"), (b"".join(b"%d\n" % n for n in range(100_000)), "TSV")):
            fill()
            refused = gateway.post(body, query=f"INSERT INTO shard_1.t FORMAT {format_}")
            assert refused.headers["X-ClickHouse-Exception-Code"] == "243", refused.text
            assert "The disk of the data folder is full" in refused.text
            ballast.unlink()
            assert gateway.post(body, query=f"INSERT INTO shard_1.t FORMAT {format_}").status_code == 200
        assert gateway.sql("SELECT count() FROM shard_1.t") == "200000"
    finally:
        gateway.end(signal.SIGKILL)


# --- its start


def fails(gateway: RunningGateway, config: Path | None = None) -> str:
    process = gateway.spawn(config, stderr=subprocess.PIPE)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    line = error.decode().strip()
    assert "\n" not in line
    return line


def test_one_line_says_why_it_cannot_start(gateway: RunningGateway, tmp_path: Path) -> None:
    assert gateway.process is not None
    assert f"is in use by process {gateway.process.pid}." in fails(gateway)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = RunningGateway(tmp_path, port=taken.getsockname()[1])
        assert f"Cannot listen on 127.0.0.1:{taken.getsockname()[1]} (Address already in use)." in fails(other)
    (tmp_path / "file").touch()
    assert "cannot be written" in fails(RunningGateway(tmp_path, data=str(tmp_path / "file" / "x")))
    broken = tmp_path / "broken.json"
    broken.write_text('{"users": {"trilake": "very-secret"')
    assert "very-secret" not in fails(gateway, broken)
    assert "cannot be read" in fails(gateway, tmp_path / "nowhere.json")


def test_the_pieces_of_an_answer_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """With Nagle's algorithm on, each SELECT takes the 40 ms of a delayed acknowledgement."""
    from trilake.platform.embedded.clickhouse.config import GatewayConfig
    from trilake.platform.embedded.clickhouse.server import listen

    config = GatewayConfig("127.0.0.1", 0, tmp_path, {})
    with listen(config) as listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
