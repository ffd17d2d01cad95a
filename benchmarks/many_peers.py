"""Many continuous replicators at one listener: how soon a document is everywhere, at what memory.

The listener runs in a process of its own, the replicators, each with its database, in a few others,
over TLS on loopback. Once all are connected and idle, a document is put at one replicator, again
and again; each round ends when every other database has it. Prints one line of JSON: seconds until
the last one had it (median and maximum over the rounds), the listener's anonymous memory for each
connection in KiB, idle and after the rounds, and its CPU seconds.

    python benchmarks/many_peers.py [--replicators 500] [--processes 4] [--rounds 5] [--plain]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

import trio_p2p
from trio_p2p.testing.processes import anonymous_bytes

MAP_BYTES = 2**26


# --- The listener ---------------------------------------------------------------------------------


async def listen(path: Path, *, plain: bool) -> None:
    """Serve, and answer each line of standard input with memory, connections and CPU seconds."""
    async with trio_p2p.open_database(path, map_size_max=MAP_BYTES) as database:
        configuration = trio_p2p.URLEndpointListenerConfiguration(
            collections=[database.default_collection],
            network_interface="127.0.0.1",
            disable_tls=plain,
            key_store=trio_p2p.MemoryKeyStore(),
        )
        async with trio_p2p.open_listener(configuration) as listener:
            say(listener.urls[0])
            while await trio.to_thread.run_sync(sys.stdin.readline):
                say(
                    {
                        "memory_bytes": anonymous_bytes(),
                        "connections": listener.status.connection_count,
                        "cpu_s": time.process_time(),
                    }
                )


# --- The replicators ------------------------------------------------------------------------------


@asynccontextmanager
async def open_peers(
    directory: Path, count: int, url: str
) -> AsyncIterator[list[trio_p2p.Collection]]:
    """So many databases, each replicating with the listener; all connected and idle."""
    async with AsyncExitStack() as stack:
        collections: list[trio_p2p.Collection] = []
        replicators: list[trio_p2p.Replicator] = []
        for number in range(count):
            opening = trio_p2p.open_database(directory / f"{number}.p2p", map_size_max=MAP_BYTES)
            database = await stack.enter_async_context(opening)
            configuration = trio_p2p.ReplicatorConfiguration(
                target=url,
                collections=[database.default_collection],
                continuous=True,
                accept_only_self_signed_server_certificate=url.startswith("wss"),
            )
            collections.append(database.default_collection)
            replicator = await stack.enter_async_context(trio_p2p.open_replicator(configuration))
            replicators.append(replicator)
        for replicator in replicators:
            await replicator.wait_for(trio_p2p.ActivityLevel.IDLE)
        yield collections


async def replicate(directory: Path, count: int, url: str) -> None:
    """Answer `put ROUND` with when it was put, and `wait ROUND` with when the last one had it.

    Times are of the monotonic clock, which all processes share.
    """
    async with open_peers(directory, count, url) as collections:
        say("idle")
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            command, number = line.split()
            if command == "put":
                began = time.monotonic()
                await collections[0].put("shared", {"round": int(number)})
                say(began)
            else:
                say(await wait_for_round(collections, int(number)))


async def wait_for_round(collections: list[trio_p2p.Collection], number: int) -> float:
    """When the last of the databases had the document of this round."""
    arrived: list[float] = []

    async def wait(collection: trio_p2p.Collection) -> None:
        async for _ in collection.changes():
            document = collection.get("shared")
            if document is not None and document["round"] == number:
                arrived.append(time.monotonic())
                return

    async with trio.open_nursery() as nursery:
        for collection in collections:
            nursery.start_soon(wait, collection)
    return max(arrived)


# --- Measuring ------------------------------------------------------------------------------------


class Process:
    """One of the processes; `ask` writes a line to it and reads its answer."""

    def __init__(self, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """Write a line, to read the answer later."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Read the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process ended early")
        return json.loads(line)

    def ask(self, line: str) -> Any:
        """Write a line and read the answer."""
        self.tell(line)
        return self.answer()

    def end(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(
    directory: Path, *, replicators: int, processes: int, rounds: int, plain: bool
) -> dict[str, Any]:
    """Run everything once."""
    processes = min(processes, replicators)
    listener = Process("--listen", directory / "listener.p2p", *(["--plain"] if plain else []))
    url = listener.answer()
    empty = listener.ask("measure")
    others: list[Process] = []
    for number in range(processes):
        count = replicators // processes + (number < replicators % processes)
        others.append(Process("--replicate", directory / str(number), "--url", url, count))
    for process in others:
        process.answer()
    idle = listener.ask("measure")
    if idle["connections"] != replicators:
        raise SystemExit(f"{idle['connections']} of {replicators} are connected")
    seconds = [run_round(others, number) for number in range(rounds)]
    after = listener.ask("measure")
    for process in (*others, listener):
        process.end()

    def kib_per_connection(measured: dict[str, Any]) -> float:
        used: float = measured["memory_bytes"] - empty["memory_bytes"]
        return round(used / replicators / 1024, 1)

    return {
        "replicators": replicators,
        "everywhere_after_s": round(statistics.median(seconds), 2),
        "everywhere_after_s_max": round(max(seconds), 2),
        "kib_per_connection_idle": kib_per_connection(idle),
        "kib_per_connection_after": kib_per_connection(after),
        "connecting_cpu_s": round(idle["cpu_s"] - empty["cpu_s"], 2),
        "round_cpu_s": round((after["cpu_s"] - idle["cpu_s"]) / rounds, 2),
    }


def run_round(processes: list[Process], number: int) -> float:
    """Put a document at the first replicator; seconds until all databases have it."""
    for process in processes[1:]:
        process.tell(f"wait {number}")
    began: float = processes[0].ask(f"put {number}")
    processes[0].tell(f"wait {number}")
    last: float = max(process.answer() for process in processes)
    return last - began


def say(value: Any) -> None:
    """Answer the process that started this one."""
    print(json.dumps(value), flush=True)


def main() -> None:
    """Measure, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicators", type=int, default=500)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="without TLS")
    for hidden in ("--listen", "--replicate"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("count", type=int, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.listen:
        trio.run(lambda: listen(arguments.listen, plain=arguments.plain))
    elif arguments.replicate:
        trio.run(replicate, arguments.replicate, arguments.count, arguments.url)
    else:
        with tempfile.TemporaryDirectory() as directory:
            measured = measure(
                Path(directory),
                replicators=arguments.replicators,
                processes=arguments.processes,
                rounds=arguments.rounds,
                plain=arguments.plain,
            )
        print(json.dumps(measured))


if __name__ == "__main__":
    main()
