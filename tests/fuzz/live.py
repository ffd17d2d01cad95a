"""A listener in a process of its own under fire, with an honest replicator beside.

`live.py --seconds 60` does it for a minute; the tests do it for some seconds. It fails if the
honest one cannot sync, if the listener's process ends or tells of an error that nobody expected, or
if it keeps memory in the end.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import corpus
import mutations
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import Request

import trio_p2p
from trio_p2p.blip import Message
from trio_p2p.errors import LocalProtocolError as OurProtocolError
from trio_p2p.testing.transcripts import read_transcript

HOSTILE = 6
SYNC_S = 30
# A conversation is played to its end or for so long.
CONVERSATION_S = 3
# What the interpreter and its allocator keep for later, once they are warm.
KEPT_MIB = 24


@dataclass
class Score:
    """What happened."""

    conversations: int = 0
    frames: int = 0
    syncs: int = 0
    slowest_sync_s: float = 0.0
    anonymous_mib: list[float] = field(default_factory=list)
    errors: str = ""


@dataclass(frozen=True)
class Recorded:
    """Conversations with Couchbase Lite: what the clients said."""

    frames: Sequence[Sequence[bytes]]
    messages: Sequence[Sequence[Message]]

    @classmethod
    def read(cls) -> Recorded:
        frames, messages = [], []
        for path in sorted(corpus.TRANSCRIPTS.glob("*.jsonl")):
            frames.append(corpus.conversation_frames(path.stem)["c2s"])
            for script in read_transcript(path):
                said = [s.message for s in script if s.by_client and not s.is_reply]
                messages.append(said)
        return cls([each for each in frames if each], [each for each in messages if each])


@asynccontextmanager
async def open_listener(directory: Path) -> AsyncIterator[tuple[trio.Process, int]]:
    """`trio-p2p listen` in a process of its own, and its port."""
    command = [sys.executable, "-m", "trio_p2p", "listen", "shop.p2p", "--interface", "127.0.0.1"]
    # What is logged as an error goes there, with a traceback.
    with (directory / "errors").open("wb") as errors:
        process = await trio.lowlevel.open_process(
            [*command, "--keys", "keys"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert process.stdout is not None
        told = b""
        while b"\n" not in told:
            received = await process.stdout.receive_some()
            if not received:
                errors_text = (directory / "errors").read_text()
                raise RuntimeError(f"the listener ended before it listened:\n{errors_text}")
            told += received
        found = re.search(rb":(\d+)/shop", told)
        assert found is not None, told
        yield process, int(found[1])
    finally:
        with trio.CancelScope(shield=True), suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            await process.wait()


def anonymous_mib(process: trio.Process) -> float:
    """The memory of a process that is its own: not the pages of the database file."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    found = re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


class Hostile:
    """Plays spoiled conversations, one after the other."""

    def __init__(self, port: int, recorded: Recorded, seed: int, score: Score) -> None:
        self._port = port
        self._recorded = recorded
        self._chance = random.Random(seed)
        self._score = score
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    async def run(self) -> None:
        while True:
            try:
                with trio.move_on_after(CONVERSATION_S):
                    await self._converse()
            except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass
            self._score.conversations += 1

    async def _converse(self) -> None:
        chance = self._chance
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        try:
            if chance.random() < 0.1:
                await stream.send_all(chance.randbytes(chance.randrange(1, 2_000)))
                await stream.receive_some()
                return
            stream = trio.SSLStream(stream, self._context, server_hostname="localhost")
            protocol = WSConnection(ConnectionType.CLIENT)
            request = protocol.send(
                Request(
                    host="127.0.0.1",
                    target="/shop/_blipsync",
                    subprotocols=["BLIP_3+CBMobile_4"],
                )
            )
            if chance.random() < 0.1:
                request = mutations.spoiled(chance, request)
            await stream.send_all(request)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, stream, nursery.cancel_scope)
                await self._send_frames(stream)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)

    async def _send_frames(self, stream: trio.abc.Stream) -> None:
        """Send, without waiting for the answer to the request."""
        chance = self._chance
        for frame in self._frames():
            data = _websocket_frame(chance, frame)
            if chance.random() < 0.02:
                data = mutations.spoiled(chance, data)
            await stream.send_all(data)
            self._score.frames += 1
            if chance.random() < 0.2:
                with trio.move_on_after(chance.random() / 20):
                    await trio.sleep_forever()
        if chance.random() < 0.5:
            with trio.move_on_after(0.2):
                await trio.sleep_forever()

    def _frames(self) -> list[bytes]:
        chance = self._chance
        if chance.random() < 0.6:
            said = mutations.reordered(chance, chance.choice(self._recorded.messages))
            spoiled = [
                mutations.spoiled_message(chance, each) if chance.random() < 0.3 else each
                for each in said
            ]
            with suppress(OurProtocolError):
                return mutations.frames_of(spoiled)
        frames = mutations.reordered(chance, chance.choice(self._recorded.frames))
        return [
            mutations.spoiled(chance, each) if chance.random() < 0.1 else each for each in frames
        ]

    async def _read(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        """Take what comes, or now and then do not."""
        if self._chance.random() < 0.1:
            return
        while await stream.receive_some():
            pass
        scope.cancel()


def _websocket_frame(chance: random.Random, payload: bytes) -> bytes:
    """A client's frame, in one piece or two."""
    if len(payload) > 1 and chance.random() < 0.1:
        cut = chance.randrange(1, len(payload))
        return _framed(chance, 0x02, payload[:cut]) + _framed(chance, 0x80, payload[cut:])
    return _framed(chance, 0x82, payload)


def _framed(chance: random.Random, first: int, payload: bytes) -> bytes:
    size = len(payload)
    head = bytes((first, 0x80 | min(size, 126) if size < 2**16 else 0x80 | 127))
    if size >= 126:
        head += size.to_bytes(2 if size < 2**16 else 8, "big")
    mask = chance.randbytes(4)
    repeated = mask * (size // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:size], "big")
    return head + mask + masked.to_bytes(size, "big")


async def _sync_honestly(directory: Path, port: int, score: Score, times: int | None) -> None:
    """Edit and sync, again and again; None: for ever."""
    async with trio_p2p.open_database(directory / "till.p2p") as till:
        notes = till.default_collection
        config = trio_p2p.ReplicatorConfiguration(
            target=f"wss://127.0.0.1:{port}/shop",
            collections=[notes],
            accept_only_self_signed_server_certificate=True,
            max_attempts=1,
        )
        while times is None or score.syncs < times:
            await notes.put("honest", {"n": score.syncs})
            started = trio.current_time()
            with trio.fail_after(SYNC_S):
                await trio_p2p.replicate(config)
            score.slowest_sync_s = max(score.slowest_sync_s, trio.current_time() - started)
            score.syncs += 1
            with trio.move_on_after(0.1):
                await trio.sleep_forever()


async def torment(directory: Path, seconds: float, seed: int) -> Score:
    """Do it for so long; memory is looked at after a third of the time, and in the end."""
    score, recorded = Score(), Recorded.read()
    async with open_listener(directory) as (process, port):
        for share in (1 / 3, 2 / 3):
            with trio.move_on_after(seconds * share):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_sync_honestly, directory, port, score, None)
                    for number in range(HOSTILE):
                        hostile = Hostile(port, recorded, seed * HOSTILE + number, score)
                        nursery.start_soon(hostile.run)
            # When nobody else is there: the listener has dealt with all that came before.
            await _sync_honestly(directory, port, Score(), 2)
            score.anonymous_mib.append(anonymous_mib(process))
            seed += 1
        assert process.returncode is None, "the listener's process ended"
    score.errors = (directory / "errors").read_text()
    return score


def check(score: Score) -> None:
    """Raise AssertionError if the honest one was kept from syncing, or memory was kept."""
    assert score.syncs >= 2, score
    assert score.conversations > 0, score
    assert "Traceback" not in score.errors, score.errors
    warm, end = score.anonymous_mib
    assert end - warm < KEPT_MIB, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    print("seed", seed, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        score = trio.run(torment, Path(directory), options.seconds, seed)
    print(score)
    check(score)


if __name__ == "__main__":
    main()
