"""Two peers in two processes, for as long as wanted, over a network that fails all the time.

`run` starts a listener and a replicator, each a process of its own, with a `FaultProxy` between
them. Both edit and delete the same documents, so there are conflicts all along. Then the network
is calm, the edits end, and both must hold the same, have no more memory than they had, and leave
no task, socket or file open.

A peer is `python -m trio_p2p.testing.soak ROLE DIRECTORY SEED SECONDS [PORT]`. It writes lines of
JSON and reads commands from its standard input, one a line.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn

import trio
import trio.testing

from trio_p2p.errors import ConflictError, DocumentNotFoundError
from trio_p2p.listener import open_listener
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.replication.status import ActivityLevel
from trio_p2p.replicator import open_replicator
from trio_p2p.replicator_configuration import ReplicatorConfiguration
from trio_p2p.security.keystore import MemoryKeyStore
from trio_p2p.store.database import Collection, Database, open_database
from trio_p2p.testing.processes import held_bytes, open_descriptors
from trio_p2p.testing.proxy import FaultProxy

_DOCUMENTS: Final = 100
_EDITS_PER_SECOND: Final = 20.0
_SAMPLES_PER_RUN: Final = 40
# So that a connection which is held up is noticed soon.
_HEARTBEAT_S: Final = 3.0
_ATTEMPT_WAIT_S: Final = 1.0
# How long connections live on average: long enough to open a session, and to do something in it.
_LIFE_S: Final = 3.0
# Longer than a process takes to start, or passing on what is left once nothing disturbs.
_SETTLE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class PeerReport:
    """What one peer said at its end."""

    documents: dict[str, list[Any]]
    """Version, whether deleted, and body, by ID."""
    edits: int
    resolved: int
    memory_bytes: list[int]
    """Memory that it held, at equal distances of time."""
    left_open: list[str]
    """Descriptors that were not open before it listened or connected."""
    tasks_left: int

    @property
    def memory_growth_bytes(self) -> float:
        """From the second quarter of the run to the last one, as medians."""
        quarter = len(self.memory_bytes) // 4
        second, last = self.memory_bytes[quarter : 2 * quarter], self.memory_bytes[-quarter:]
        return statistics.median(last) - statistics.median(second)


@dataclass(frozen=True, slots=True)
class SoakReport:
    """What came of a run."""

    listener: PeerReport
    replicator: PeerReport
    faults: dict[str, int] = field(default_factory=dict)


# --- The runner -----------------------------------------------------------------------------------


async def run(directory: Path, *, seconds: float, seed: int) -> SoakReport:
    """Run both peers for so long, then let them settle. Cancelling: kills both.

    Raises: RuntimeError if a peer ends early, trio.TooSlowError if one hangs.
    """
    async with (
        _open_peer("listener", directory / "a.p2p", seed, seconds) as listener,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(_SETTLE_S):
            proxy = FaultProxy(await listener.receive(), seed=seed, life_s=_LIFE_S)
        port = await nursery.start(proxy.serve)
        async with _open_peer("replicator", directory / "b.p2p", seed + 1, seconds, port) as other:
            await trio.sleep(seconds)
            proxy.calm_down()
            with trio.fail_after(_SETTLE_S):
                for peer in (listener, other):
                    await peer.command("finish")
                replicator_report = await other.report()
                await listener.command("close")
                listener_report = await listener.report()
        nursery.cancel_scope.cancel()
    return SoakReport(listener_report, replicator_report, dict(proxy.faults))


class _Peer:
    """A peer's process, seen from the runner."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._read = b""
        self._has_reported = False

    async def watch(self) -> None:
        """Wait until the process ends. Raises RuntimeError if it is too early for that."""
        await self._process.wait()
        if not self._has_reported:
            raise RuntimeError("a peer ended early")

    async def report(self) -> PeerReport:
        """What it writes last."""
        values = await self.receive()
        self._has_reported = True
        return PeerReport(**values)

    async def receive(self) -> Any:
        """The next line that it writes."""
        assert self._process.stdout is not None
        while b"\n" not in self._read:
            more = await self._process.stdout.receive_some()
            if not more:
                raise RuntimeError("a peer ended early")
            self._read += more
        line, self._read = self._read.split(b"\n", 1)
        return json.loads(line)

    async def command(self, text: str) -> None:
        """Tell it to do something."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(text.encode() + b"\n")


@asynccontextmanager
async def _open_peer(*arguments: object) -> AsyncIterator[_Peer]:
    command = [sys.executable, "-m", "trio_p2p.testing.soak", *map(str, arguments)]
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False
        )
        process: trio.Process = await nursery.start(start, command)
        peer = _Peer(process)
        nursery.start_soon(peer.watch)
        try:
            yield peer
        finally:
            nursery.cancel_scope.cancel()


# --- A peer ---------------------------------------------------------------------------------------


class _Worker:
    """Edits its database, and measures its process."""

    def __init__(self, database: Database, seed: int, seconds: float) -> None:
        self.collection: Collection = database.default_collection
        self.edits = 0
        self.resolved = 0
        self._random = Random(seed)
        self._seconds = seconds
        self._memory: list[int] = []
        self._open_before = open_descriptors()
        self._tasks_before = trio.lowlevel.current_statistics().tasks_living

    async def edit(self) -> NoReturn:
        """Put and delete documents at random."""
        while True:
            await trio.sleep(self._random.expovariate(_EDITS_PER_SECOND))
            name = f"document-{self._random.randrange(_DOCUMENTS)}"
            text = self._random.randbytes(self._random.choice((10, 100, 3_000))).hex()
            is_deletion = self._random.random() < 0.2
            self.edits += 1
            try:
                if is_deletion:
                    await self.collection.delete(name)
                else:
                    await self.collection.update(name, partial(_edited, text))
            except (DocumentNotFoundError, ConflictError):
                continue

    async def measure(self) -> NoReturn:
        """Note the memory from time to time."""
        while True:
            await trio.sleep(self._seconds / _SAMPLES_PER_RUN)
            self._memory.append(held_bytes())

    async def exchange_marks(self, ours: str, theirs: str) -> None:
        """Write a last document, and wait for the peer's: what was before it has come too."""
        await self.collection.put(ours, {})
        async for change in self.collection.changes():
            if change.document_id == theirs:
                return

    async def report(self) -> PeerReport:
        """What there is at the end, once listener or replicator is closed."""
        documents: dict[str, list[Any]] = {
            str(document.id): [str(document.version), document.deleted, document.body]
            async for document in self.collection.documents(include_deleted=True)
        }
        left_open = [
            what
            for name, what in open_descriptors().items()
            if self._open_before.get(name) != what and not what.startswith("/proc/")
        ]
        tasks = trio.lowlevel.current_statistics().tasks_living - self._tasks_before
        return PeerReport(
            documents, self.edits, self.resolved, self._memory, sorted(left_open), tasks
        )


def _edited(text: str, body: dict[str, Any] | None) -> dict[str, Any]:
    return {"edits": (body or {}).get("edits", 0) + 1, "text": text}


async def _listen(worker: _Worker, database: Database) -> None:
    configuration = URLEndpointListenerConfiguration(
        collections=[database.default_collection],
        network_interface="127.0.0.1",
        key_store=MemoryKeyStore(),
        heartbeat=_HEARTBEAT_S,
    )
    async with open_listener(configuration) as listener:
        _say(listener.port)
        await _work(worker)
        await worker.exchange_marks("mark-a", "mark-b")
        await _wait_for_command()  # The replicator leaves first, once all is settled.


async def _replicate(worker: _Worker, database: Database, port: int) -> None:
    configuration = ReplicatorConfiguration(
        target=f"wss://127.0.0.1:{port}/a",
        collections=[database.default_collection],
        continuous=True,
        accept_only_self_signed_server_certificate=True,
        heartbeat=_HEARTBEAT_S,
        max_attempt_wait=_ATTEMPT_WAIT_S,
    )
    async with open_replicator(configuration) as replicator:
        await _work(worker)
        await worker.exchange_marks("mark-b", "mark-a")
        async for status in replicator.status_changes():
            pending = replicator.pending_document_ids(database.default_collection)
            if status.activity is ActivityLevel.IDLE and not pending:
                break
        worker.resolved = replicator.statistics().conflicts_resolved


async def _work(worker: _Worker) -> None:
    """Edit and measure until told to finish."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.edit)
        nursery.start_soon(worker.measure)
        await _wait_for_command()
        nursery.cancel_scope.cancel()


async def _wait_for_command() -> None:
    """Wait for a line; which one does not matter, as they always come in the same order."""
    await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


async def _main(role: str, path: str, seed: str, seconds: str, port: str = "0") -> None:
    async with open_database(path) as database:
        await trio.testing.wait_all_tasks_blocked()  # What serves the database has begun.
        worker = _Worker(database, int(seed), float(seconds))
        if role == "listener":
            await _listen(worker, database)
        else:
            await _replicate(worker, database, int(port))
        report = await worker.report()
    _say({name: getattr(report, name) for name in PeerReport.__slots__})


if __name__ == "__main__":
    trio.run(partial(_main, *sys.argv[1:]))
