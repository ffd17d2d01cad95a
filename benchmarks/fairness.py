"""What reading or copying much of a database does to other tasks and to writing.

A task asks to sleep for a millisecond again and again: how much longer does it sleep? Another one
puts a document again and again. Each is measured by itself (idle), and beside work that goes on all
the while (busy): scans of all documents, with and without decoding them, of large ones, of nothing
but tombstones; reading the change feed; a backup; and for what the disk does to puts in any case, a
plain copy of the data file, synced like the backup. Idle and busy alternate.

    python benchmarks/fairness.py [--documents 1000000] [--rounds 3] [--seconds 1] [--directory DIR]
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio
from cities import Cities

import trio_p2p

BATCH = 1_000
# Beside so many cities: a tenth as many tombstones, and so many documents of this size.
TOMBSTONE_SHARE = 10
LARGE_DOCUMENTS, LARGE_BYTES = 500, 100_000
PAUSE_S = 0.001
COPIES = "copies"

Work = Callable[[], Awaitable[None]]
Probe = Callable[[], Awaitable[float]]


class Peer:
    """The database, and what is done with it."""

    def __init__(self, database: trio_p2p.Database, directory: Path) -> None:
        self._database = database
        self._cities = database.default_collection
        self._copies = directory / COPIES
        self._copied = 0

    async def fill(self, count: int) -> None:
        """Write everything there is to read."""
        cities = Cities()
        for start in range(0, count, BATCH):
            async with self._cities.batch() as batch:
                for name, city in cities.take(start, min(BATCH, count - start)):
                    batch.put(name, city)
        deleted = await self._database.create_collection("deleted")
        for start in range(0, count // TOMBSTONE_SHARE, BATCH):
            async with deleted.batch() as batch:
                for number in range(start, start + BATCH):
                    batch.put(f"d{number:07}", {})
                    batch.delete(f"d{number:07}")
        large = await self._database.create_collection("large")
        some = [city for _, city in cities.take(0, LARGE_BYTES // 250)]
        for number in range(LARGE_DOCUMENTS):
            await large.put(f"d{number:07}", {"cities": some})

    async def sleep(self) -> float:
        """Sleep as short as can be; how much longer that took than asked for."""
        began = time.perf_counter()
        await trio.sleep(PAUSE_S)
        return time.perf_counter() - began - PAUSE_S

    async def put(self) -> float:
        """Put a document; how long that took."""
        await trio.sleep(PAUSE_S)
        began = time.perf_counter()
        await self._cities.put("probe", {"at": began})
        return time.perf_counter() - began

    async def scan(self, name: str = "_default", *, decode: bool = False) -> None:
        """Read all documents of a collection."""
        async for document in self._database.collection(name).documents():
            if decode:
                _ = document.body

    async def read_changes(self) -> None:
        """Read the change feed."""
        async for _ in self._cities.changes(live=False):
            pass

    async def back_up(self) -> None:
        """Make a backup."""
        await self._database.backup(await trio.to_thread.run_sync(self._next_copy))

    async def copy(self) -> None:
        """Copy the data file as it is."""
        await trio.to_thread.run_sync(self._copy)

    def _copy(self) -> None:
        with (self._database.path / "data.mdb").open("rb") as source:
            with self._next_copy().open("wb") as target:
                shutil.copyfileobj(source, target)
                os.fsync(target.fileno())

    def _next_copy(self) -> Path:
        shutil.rmtree(self._copies, ignore_errors=True)
        self._copies.mkdir()
        self._copied += 1
        return self._copies / str(self._copied)


async def measure(probe: Probe, work: Work | None, seconds: float) -> list[float]:
    """What a probe tells, again and again, for so long; beside work if there is any."""
    told: list[float] = []
    gc.collect()
    async with trio.open_nursery() as nursery:
        if work is not None:
            nursery.start_soon(repeat, work)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            told.append(await probe())
        nursery.cancel_scope.cancel()
    return told


async def repeat(work: Work) -> None:
    """Do it over and over until cancelled."""
    while True:
        await work()


def text(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[int(len(ordered) * 0.99)]
    return "".join(f"{s * 1e3:9.2f}" for s in (statistics.median(ordered), p99, ordered[-1]))


async def compare(directory: Path, documents: int, rounds: int, seconds: float) -> None:
    """Print both tables."""
    async with trio_p2p.open_database(directory / "fair.p2p") as database:
        peer = Peer(database, directory)
        await peer.fill(documents)
        works: dict[str, Work] = {
            "scan": peer.scan,
            "scan, decoded": lambda: peer.scan(decode=True),
            "scan of large documents, decoded": lambda: peer.scan("large", decode=True),
            "scan of tombstones": lambda: peer.scan("deleted"),
            "change feed": peer.read_changes,
            "backup": peer.back_up,
            "plain copy of the data file": peer.copy,
        }
        probes: dict[str, Probe] = {
            "ms too late after sleeping 1 ms": peer.sleep,
            "ms to put a document": peer.put,
        }
        for title, probe in probes.items():
            print(f"\n{title:34}{'idle':>15}{'busy':>27}")
            print(
                f"{f'beside, at {documents:,} documents':34}"
                + f"{'p50':>9}{'p99':>9}{'max':>9}" * 2
            )
            for name, work in works.items():
                idle: list[float] = []
                busy: list[float] = []
                for _ in range(rounds):
                    idle += await measure(probe, None, seconds)
                    busy += await measure(probe, work, seconds)
                print(f"{name:34}{text(idle)}{text(busy)}", flush=True)


def main() -> None:
    """Print what other tasks see of each kind of work, then what puts do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each kind in each round")
    parser.add_argument("--directory", type=Path, help="where to make a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        trio.run(compare, Path(name), arguments.documents, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
