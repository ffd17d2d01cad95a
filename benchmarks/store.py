"""The store beside plain py-lmdb and plain files, on city records.

Plain is the least a program without this package could do: one environment with the same engine and
map size, durable, with one named database from ID to body; a transaction for each put or batch, a
snapshot for each get. IDs and bodies (CBOR of the same records) are bytes before its time begins;
the rows "encoded" add the time that it took to make them, as the store's puts always contain it.
It knows no versions and no changes, checks nothing and starts no thread. It makes as many commits
as the store made. Plain has no change feed: that is compared with its scan. Plain's blobs are
files, written, synced and renamed, then read with their SHA-1.

For each size both are filled in order of IDs, in turns of a batch. Then, in each round, both put
the same new documents at random places and take them out again, and both read the same documents;
who is first alternates. A figure is the median over the rounds; a ratio is one of times, the median
of the rounds' ratios.

Memory is anonymous memory (RssAnon) of another process: with the database open, and the most while
it reads everything and puts ten batches.

    python benchmarks/store.py [--sizes 10000 100000 1000000] [--rounds 5] [--directory DIR]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cbor2
import lmdb
import trio
from cities import Cities, Document

import trio_p2p
from trio_p2p import limits
from trio_p2p.model.codec import encode_body
from trio_p2p.testing.processes import anonymous_bytes

BATCH = 1_000
SMALL_BATCH = 100
WRITERS = 64
# How many documents are put or got in a round.
PUTS = 100
BATCHED_PUTS = 5_000
SMALL_BATCHED_PUTS = 1_000
CONCURRENT_PUTS = 5 * WRITERS
GETS = 5_000
MEMORY_BATCHES = 10
# Sizes of blobs, and how many are written and read in a round.
BLOBS = {"64 KiB": (64 * 1024, 16), "8 MiB": (8 * 2**20, 2)}
# Names in the temporary directory.
STORE, PLAIN, PLAIN_FILES = "store.p2p", "plain", "files"


@dataclass(slots=True)
class Row:
    """One operation, and the seconds it took each time."""

    name: str
    amount: float
    """What is done each time: documents, or megabytes of blobs."""
    is_speed: bool = False
    store: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Store to plain."""
        pairs = zip(self.store, self.plain, strict=True)
        return statistics.median(store / plain for store, plain in pairs)

    def text(self, seconds: Sequence[float]) -> str:
        """The median: microseconds a document, or megabytes a second."""
        median = statistics.median(seconds)
        if self.is_speed:
            return f"{self.amount / median:,.0f} MB/s"
        return f"{median / self.amount * 1e6:,.1f} us"


class Timer:
    """`seconds` is how long its block took."""

    def __enter__(self) -> Timer:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began


class Plain:
    """Puts and reads without the package; each function returns seconds."""

    def __init__(self, directory: Path) -> None:
        self._env = lmdb.open(  # noqa: TID251
            str(directory / PLAIN),
            map_size=limits.MAP_SIZE_BYTES_DEFAULT,
            max_dbs=1,
            lib_version=0,
        )
        self._documents = self._env.open_db(b"documents")
        self._files = directory / PLAIN_FILES
        self._files.mkdir(exist_ok=True)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def put(self, documents: Sequence[Document], commits: int) -> tuple[float, float]:
        """Put documents in so many commits; also the seconds with what encoding them took."""
        with Timer() as encoding:
            raw = [(name.encode(), cbor2.dumps(body)) for name, body in documents]
        size = -(-len(raw) // commits)
        with Timer() as putting:
            for start in range(0, len(raw), size):
                with self._env.begin(write=True, db=self._documents) as txn:
                    for key, body in raw[start : start + size]:
                        txn.put(key, body)
        return putting.seconds, putting.seconds + encoding.seconds

    def remove(self, documents: Sequence[Document]) -> None:
        """Take documents out again."""
        with self._env.begin(write=True, db=self._documents) as txn:
            for name, _ in documents:
                txn.delete(name.encode())

    def get(self, names: Sequence[str], *, decode: bool) -> float:
        """Get documents."""
        raw = [name.encode() for name in names]
        with Timer() as timer:
            for key in raw:
                with self._env.begin(db=self._documents) as txn:
                    body = txn.get(key)
                assert body is not None
                if decode:
                    cbor2.loads(body)
        return timer.seconds

    def scan(self, *, decode: bool) -> float:
        """Read everything."""
        with Timer() as timer, self._env.begin(db=self._documents) as txn:
            for _, body in txn.cursor():
                if decode:
                    cbor2.loads(body)
        return timer.seconds

    def save_blobs(self, contents: Sequence[bytes]) -> float:
        """Write files, named by their places in the sequence."""
        with Timer() as timer:
            for number, content in enumerate(contents):
                unfinished = self._files / "unfinished"
                with unfinished.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(self._files / str(number))
        return timer.seconds

    def read_blobs(self, count: int) -> float:
        """Read the files that were written last."""
        with Timer() as timer:
            for number in range(count):
                hashlib.sha1((self._files / str(number)).read_bytes()).digest()
        return timer.seconds


class Store:
    """Puts and reads with the package; each function returns seconds."""

    def __init__(self, database: trio_p2p.Database) -> None:
        self._database = database
        self._collection = database.default_collection
        self._blobs: list[trio_p2p.Blob] = []

    @property
    def commits(self) -> int:
        """Commits since opening."""
        return self._database.statistics().commits

    async def put_each(self, documents: Sequence[Document]) -> float:
        """Put documents one after the other."""
        with Timer() as timer:
            for name, body in documents:
                await self._collection.put(name, body)
        return timer.seconds

    async def put_batches(self, documents: Sequence[Document], size: int = BATCH) -> float:
        """Put documents in batches."""
        with Timer() as timer:
            for start in range(0, len(documents), size):
                async with self._collection.batch() as batch:
                    for name, body in documents[start : start + size]:
                        batch.put(name, body)
        return timer.seconds

    async def put_small_batches(self, documents: Sequence[Document]) -> float:
        """Put documents in small batches."""
        return await self.put_batches(documents, SMALL_BATCH)

    async def put_at_once(self, documents: Sequence[Document]) -> float:
        """Put documents in a task each, WRITERS at a time."""
        with Timer() as timer:
            for start in range(0, len(documents), WRITERS):
                async with trio.open_nursery() as nursery:
                    for name, body in documents[start : start + WRITERS]:
                        nursery.start_soon(self._collection.put, name, body)
        return timer.seconds

    async def remove(self, documents: Sequence[Document]) -> None:
        """Take documents out again."""
        async with self._collection.batch() as batch:
            for name, _ in documents:
                batch.purge(name)

    async def get(self, names: Sequence[str], *, decode: bool) -> float:
        """Get documents."""
        with Timer() as timer:
            for name in names:
                document = self._collection.get(name)
                assert document is not None
                if decode:
                    _ = document.body
        return timer.seconds

    async def scan(self, *, decode: bool) -> float:
        """Read everything."""
        with Timer() as timer:
            async for document in self._collection.documents():
                if decode:
                    _ = document.body
        return timer.seconds

    async def changes(self) -> float:
        """Read the change feed from its beginning."""
        with Timer() as timer:
            async for _ in self._collection.changes(live=False):
                pass
        return timer.seconds

    async def save_blobs(self, contents: Sequence[bytes]) -> float:
        """Save blobs."""
        with Timer() as timer:
            self._blobs = [await self._database.save_blob(content) for content in contents]
        return timer.seconds

    async def read_blobs(self) -> float:
        """Read the blobs that were saved last."""
        with Timer() as timer:
            for blob in self._blobs:
                await blob.read()
        return timer.seconds


class Comparison:
    """Compares store and plain at one size; `rows` is what came of it."""

    def __init__(self, store: Store, plain: Plain, cities: Cities, size: int, rounds: int) -> None:
        self.rows: list[Row] = []
        self._store, self._plain, self._cities = store, plain, cities
        self._size, self._rounds = size, rounds

    async def run(self) -> None:
        """Fill both, then measure the rest."""
        await self._fill()
        self._encode()
        store = self._store
        await self._put("put, one by one", PUTS, store.put_each)
        await self._put("put, batches of 100", SMALL_BATCHED_PUTS, store.put_small_batches)
        await self._put("put, batches of 1,000", BATCHED_PUTS, store.put_batches)
        await self._put(f"put, {WRITERS} tasks at once", CONCURRENT_PUTS, store.put_at_once)
        await self._read()
        for name, (length, count) in BLOBS.items():
            await self._blobs(name, length, count)

    async def _fill(self) -> None:
        rows = self._rows_of_puts("import in order, batches of 1,000", BATCH)
        documents = sorted(self._cities.take(0, self._size), key=lambda document: document[0])
        for start in range(0, self._size, BATCH):
            batch = documents[start : start + BATCH]
            store = await self._store.put_batches(batch)
            for row, plain in zip(rows, self._plain.put(batch, 1), strict=True):
                row.store.append(store)
                row.plain.append(plain)

    def _encode(self) -> None:
        row = self._row(Row("encode a body", BATCH))
        for turn, is_store in self._turns():
            encode = encode_body if is_store else cbor2.dumps
            bodies = [body for _, body in self._cities.take(turn * BATCH, BATCH)]
            with Timer() as timer:
                for body in bodies:
                    encode(body)
            (row.store if is_store else row.plain).append(timer.seconds)

    async def _put(
        self, name: str, count: int, put: Callable[[list[Document]], Awaitable[float]]
    ) -> None:
        rows = self._rows_of_puts(name, count)
        commits = 0
        for turn, is_store in self._turns():
            new = self._cities.take(self._size + turn * count, count)
            if is_store:
                before = self._store.commits
                seconds = await put(new)
                for row in rows:
                    row.store.append(seconds)
                commits = self._store.commits - before
                await self._store.remove(new)
            else:
                # In a round that plain begins: as many as in the round before.
                for row, plain in zip(rows, self._plain.put(new, commits), strict=True):
                    row.plain.append(plain)
                self._plain.remove(new)

    async def _read(self) -> None:
        names = [name for name, _ in self._cities.take(0, min(GETS, self._size))]
        for decode, text in ((False, ""), (True, ", decoded")):
            row = self._row(Row(f"get{text}", len(names)))
            for _, is_store in self._turns():
                if is_store:
                    row.store.append(await self._store.get(names, decode=decode))
                else:
                    row.plain.append(self._plain.get(names, decode=decode))
        for decode, text in ((False, ""), (True, ", decoded")):
            row = self._row(Row(f"scan{text}", self._size))
            for _, is_store in self._turns():
                if is_store:
                    row.store.append(await self._store.scan(decode=decode))
                else:
                    row.plain.append(self._plain.scan(decode=decode))
        row = self._row(Row("change feed", self._size))
        for _, is_store in self._turns():
            if is_store:
                row.store.append(await self._store.changes())
            else:
                row.plain.append(self._plain.scan(decode=False))

    async def _blobs(self, name: str, length: int, count: int) -> None:
        megabytes = length * count / 1e6
        writing = self._row(Row(f"save blobs of {name}", megabytes, is_speed=True))
        reading = self._row(Row(f"read blobs of {name}", megabytes, is_speed=True))
        for _, is_store in self._turns():
            # A blob that is there already would not be written.
            contents = [os.urandom(length) for _ in range(count)]
            if is_store:
                writing.store.append(await self._store.save_blobs(contents))
                reading.store.append(await self._store.read_blobs())
            else:
                writing.plain.append(self._plain.save_blobs(contents))
                reading.plain.append(self._plain.read_blobs(count))

    def _rows_of_puts(self, name: str, count: int) -> tuple[Row, Row]:
        """Plain's bytes are there before its time begins, or not."""
        return self._row(Row(name, count)), self._row(Row(f"{name}, encoded", count))

    def _row(self, row: Row) -> Row:
        self.rows.append(row)
        return row

    def _turns(self) -> Iterator[tuple[int, bool]]:
        """The number of the round, and whether it is the store's turn or plain's."""
        for turn in range(self._rounds):
            for is_store in (turn % 2 == 0, turn % 2 == 1):
                gc.collect()
                yield turn, is_store


async def compare(directory: Path, cities: Cities, size: int, rounds: int) -> list[Row]:
    """All rows of one size; the database stays in the directory."""
    plain = Plain(directory)
    async with trio_p2p.open_database(directory / STORE) as database:
        comparison = Comparison(Store(database), plain, cities, size, rounds)
        await comparison.run()
    plain.close()
    opening = Row("open", 1)
    for _ in range(rounds):
        began = time.perf_counter()
        async with trio_p2p.open_database(directory / STORE):
            opening.store.append(time.perf_counter() - began)
        with Timer() as timer:
            plain = Plain(directory)
        opening.plain.append(timer.seconds)
        plain.close()
    return [*comparison.rows, opening]


async def use(path: Path) -> None:
    """In a process of its own: print its memory with the database open, and the most of it."""
    async with trio_p2p.open_database(path) as database:
        collection = database.default_collection
        readings = [anonymous_bytes()]
        documents: list[trio_p2p.Document] = []
        async for document in collection.documents():
            if len(documents) < BATCH:
                documents.append(document)
            if document.sequence % BATCH == 0:
                readings.append(anonymous_bytes())
        readings += [
            anonymous_bytes()
            async for change in collection.changes(live=False)
            if change.sequence % BATCH == 0
        ]
        for _ in range(MEMORY_BATCHES):
            async with collection.batch() as batch:
                for document in documents:
                    batch.put(document.id, document.body)
            readings.append(anonymous_bytes())
    print(json.dumps([readings[0], max(readings)]))


def print_rows(size: int, rows: Sequence[Row]) -> None:
    """The table of one size."""
    print(f"\n{f'{size:,} documents':45}{'store':>13}{'plain':>13}{'ratio':>8}")
    for row in rows:
        store, plain = row.text(row.store), row.text(row.plain)
        print(f"{row.name:45}{store:>13}{plain:>13}{row.ratio:8.2f}", flush=True)


def print_growth(tables: dict[int, list[Row]]) -> None:
    """By how much the time a document takes grows from the smallest size to the largest."""
    smallest, largest = min(tables), max(tables)
    print(f"\n{f'{largest:,} to {smallest:,}':45}{'store':>13}{'plain':>13}")
    for small, large in zip(tables[smallest], tables[largest], strict=True):
        share = small.amount / large.amount
        store = statistics.median(large.store) / statistics.median(small.store) * share
        plain = statistics.median(large.plain) / statistics.median(small.plain) * share
        print(f"{small.name:45}{store:13.2f}{plain:13.2f}")


def print_memory(memory: dict[int, list[int]]) -> None:
    """What the other processes printed."""
    print(f"\n{'anonymous memory':45}{'opened':>13}{'most':>13}")
    for size, figures in memory.items():
        opened, most = (f"{figure / 2**20:.1f} MiB" for figure in figures)
        print(f"{f'{size:,} documents':45}{opened:>13}{most:>13}")


def main() -> None:
    """Print a table for each size, then how time and memory grow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to make a temporary directory")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.use:
        trio.run(use, arguments.use)
        return
    if any(size < BATCH or size % BATCH for size in arguments.sizes):
        parser.error(f"sizes are multiples of {BATCH}")
    cities = Cities()
    # What is always there should not be looked through by every collection of garbage.
    gc.freeze()
    tables: dict[int, list[Row]] = {}
    memory: dict[int, list[int]] = {}
    for size in sorted(set(arguments.sizes)):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            tables[size] = trio.run(compare, Path(name), cities, size, arguments.rounds)
            print_rows(size, tables[size])
            command = [sys.executable, __file__, "--use", str(Path(name, STORE))]
            memory[size] = json.loads(subprocess.check_output(command))
    if len(tables) > 1:
        print_growth(tables)
    print_memory(memory)


if __name__ == "__main__":
    main()
