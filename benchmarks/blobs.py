"""Blobs between two processes over TLS on loopback: a large one through cuts, and many small ones.

Both processes have a database of their own, and one pulls from the other. Between them stands a
relay that cuts the connection as often as asked, at even parts of the way. Prints for each: the
time, the rate, what the puller received in all (what it had before a cut is not sent again), and by
how much the anonymous memory (RssAnon) of either process grew from before the transfer to its
highest during it. Fails if what arrived is not whole.

    python benchmarks/blobs.py [--mib 1024] [--cuts 5] [--small 10000] [--directory DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import trio

import trio_p2p
from trio_p2p.testing.processes import anonymous_bytes

MIB = 2**20
PART_BYTES = MIB
SMALL_BYTES = 1_000
RELAYED_BYTES = 64 * 1024
SAMPLE_S = 0.05


async def random_parts(mib: int) -> AsyncIterator[bytes]:
    """So many MiB that do not compress, the same in each run."""
    source = random.Random(mib)
    for _ in range(mib):
        await trio.lowlevel.checkpoint()
        yield source.randbytes(PART_BYTES)


async def fill(path: Path, *, mib: int, small: int) -> None:
    """Make the database that is pulled from."""
    async with trio_p2p.open_database(path) as database:
        notes = database.default_collection
        if mib:
            blob = await database.save_blob(random_parts(mib), "video/mp4")
            await notes.put("large", {"film": blob})
        source = random.Random(0)
        for number in range(small):
            blob = await database.save_blob(source.randbytes(SMALL_BYTES), "image/png")
            await notes.put(f"small-{number:06}", {"icon": blob})


async def serve(path: Path) -> None:
    """The passive process: print the port, serve until standard input ends."""
    async with trio_p2p.open_database(path) as database:
        configuration = trio_p2p.URLEndpointListenerConfiguration(
            collections=[database.default_collection],
            network_interface="127.0.0.1",
            key_store=trio_p2p.MemoryKeyStore(),
        )
        async with trio_p2p.open_listener(configuration) as listener:
            print(listener.port, flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)


async def pull(path: Path, url: str) -> None:
    """The active process: pull once told to, print the statistics, check what arrived."""
    async with trio_p2p.open_database(path) as database:
        notes = database.default_collection
        configuration = trio_p2p.ReplicatorConfiguration(
            target=url,
            collections=[notes],
            replicator_type=trio_p2p.ReplicatorType.PULL,
            accept_only_self_signed_server_certificate=True,
            max_attempts=20,
            max_attempt_wait=0.5,
        )
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        result = await trio_p2p.replicate(configuration)
        told = {name: getattr(result.statistics, name) for name in result.statistics.__slots__}
        print(json.dumps(told), flush=True)
        async for document in notes.documents():
            for blob in document.body.values():
                async with blob.open() as stream:  # Its end raises if it is damaged.
                    length = 0
                    async for part in stream:
                        length += len(part)
                assert length == blob.length
        print(notes.count, flush=True)


class Relay:
    """Hands bytes on between the two, and cuts the connection at even parts of the way."""

    def __init__(self, port: int, cuts: int, expected_bytes: int) -> None:
        self.cuts_done = 0
        self._port = port
        self._cut_at = [expected_bytes * (n + 1) // (cuts + 1) for n in range(cuts)]
        self._moved = 0

    async def handle(self, client: trio.SocketStream) -> None:
        """Relay one connection until either side or a cut ends it."""
        server = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, client, server, nursery.cancel_scope, False)
            nursery.start_soon(self._copy, server, client, nursery.cancel_scope, True)

    async def _copy(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        connection: trio.CancelScope,
        counted: bool,
    ) -> None:
        try:
            while data := await source.receive_some(RELAYED_BYTES):
                await target.send_all(data)
                self._moved += len(data) if counted else 0
                if self._cut_at and self._moved >= self._cut_at[0]:
                    del self._cut_at[0]
                    self.cuts_done += 1
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        connection.cancel()


async def watch(pid: int, peak: dict[int, int]) -> None:
    """Note the most anonymous memory of a process, until cancelled."""
    while True:
        peak[pid] = max(peak.get(pid, 0), anonymous_bytes(pid))
        await trio.sleep(SAMPLE_S)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start this script in one of its roles."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    line = await trio.to_thread.run_sync(process.stdout.readline)
    if not line:
        raise SystemExit("a process ended early")
    return line.strip()


async def measure(directory: Path, name: str, *, mib: int, small: int, cuts: int) -> None:
    """Transfer, and print one row."""
    source, target = directory / f"{name}-source.p2p", directory / f"{name}-target.p2p"
    await fill(source, mib=mib, small=small)
    serving = start("--serve", str(source))
    try:
        port = int(await line_of(serving))
        relay = Relay(port, cuts, mib * MIB)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, relay.handle, 0, host="127.0.0.1")
            )
            relayed = listeners[0].socket.getsockname()[1]
            url = f"wss://127.0.0.1:{relayed}/{source.stem}"
            pulling = start("--pull", str(target), url)
            try:
                await line_of(pulling)
                before = {p.pid: anonymous_bytes(p.pid) for p in (serving, pulling)}
                peak: dict[int, int] = {}
                for process in (serving, pulling):
                    nursery.start_soon(watch, process.pid, peak)
                assert pulling.stdin is not None
                began = time.perf_counter()
                print(file=pulling.stdin, flush=True)
                told: dict[str, Any] = json.loads(await line_of(pulling))
                seconds = time.perf_counter() - began
                count = int(await line_of(pulling))
            finally:
                pulling.kill()
                pulling.wait()
            nursery.cancel_scope.cancel()
    finally:
        serving.kill()
        serving.wait()
    assert count == small + bool(mib), (count, small, mib)
    assert relay.cuts_done == cuts, (relay.cuts_done, cuts)
    received = told["blob_bytes_received"]
    grown = {p: (peak[p.pid] - before[p.pid]) / MIB for p in (serving, pulling)}
    print(
        f"{name}: {seconds:.1f} s, {received / MIB / seconds:.1f} MiB/s,"
        f" {told['blobs_received'] / seconds:.0f} blobs/s,"
        f" {relay.cuts_done} cuts, {told['connections']} connections,"
        f" received {received / MIB:.1f} MiB,"
        f" memory grew by {grown[serving]:.1f} MiB serving, {grown[pulling]:.1f} MiB pulling",
        flush=True,
    )


async def main(arguments: argparse.Namespace) -> None:
    """Run what was asked for."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        place = Path(directory)
        if arguments.mib:
            await measure(place, "large", mib=arguments.mib, small=0, cuts=arguments.cuts)
        if arguments.small:
            await measure(place, "small", mib=0, small=arguments.small, cuts=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the large blob")
    parser.add_argument("--cuts", type=int, default=5, help="how often its transfer is cut")
    parser.add_argument("--small", type=int, default=10_000, help="number of small blobs")
    parser.add_argument("--directory", help="where to make the databases")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--pull", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    if chosen.serve:
        trio.run(serve, Path(chosen.serve))
    elif chosen.pull:
        trio.run(pull, Path(chosen.pull[0]), chosen.pull[1])
    else:
        trio.run(main, chosen)
