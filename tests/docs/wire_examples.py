"""What the page on the wire protocol shows: frames taken apart, and conversations of real peers."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

import trio_p2p
from trio_p2p.blip import Connection, RequestReceived, frames, varint
from trio_p2p.testing.transcripts import BINARY, Spoken, read_transcript
from trio_p2p.transport.memory import MemoryTransport, memory_transport_pair

_BYTES = re.compile(r"(?P<hex>[0-9a-f]{2}(?: [0-9a-f]{2})*)(?: {2,}.*)?")


# --- Frames --------------------------------------------------------------------------------------


def bytes_of(text: str) -> bytes:
    """The bytes at the beginning of each line; what stands behind two spaces explains them."""
    found = [_BYTES.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return bytes.fromhex("".join(match["hex"] for match in found))


class Reader:
    """Reads the frames of one direction, in order, as the page shows them."""

    def __init__(self) -> None:
        self._connection = Connection()

    def read(self, frame: bytes) -> str:
        """What a frame says."""
        number, flags, start = frames.decode_header(frame)
        if flags & frames.TYPE_MASK == frames.ACK_REQUEST:
            return f"of request {number}, {varint.decode(frame, start)[0]} bytes have come\n"
        (event,) = self._connection.receive_frame(frame)
        assert isinstance(event, RequestReceived)
        message = event.message
        signs = {
            "urgent": message.urgent,
            "compressed": message.compressed,
            "no reply": message.no_reply,
        }
        head = ", ".join([f"request {number}", *(name for name, is_so in signs.items() if is_so)])
        properties = [f"{key}: {value}" for key, value in message.properties.items()]
        body = message.body.decode()
        return "\n".join([head, *properties, *([body] if body else [])]) + "\n"


# --- Conversations -------------------------------------------------------------------------------


class Recording:
    """A transport that notes what passes through it, as a recording of Couchbase Lite does."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self.lines: list[str] = []

    async def send(self, message: bytes) -> None:
        await self.send_all((message,))

    async def send_all(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self._note("c2s", message)
        await self._transport.send_all(messages)

    async def receive(self) -> bytes:
        message = await self._transport.receive()
        self._note("s2c", message)
        return message

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._transport.aclose(code, reason)

    def abort(self) -> None:
        self._transport.abort()

    def _note(self, direction: str, message: bytes) -> None:
        entry = {"kind": "ws", "opcode": BINARY, "conn": 0, "dir": direction, "hex": message.hex()}
        self.lines.append(json.dumps(entry))


class Peers:
    """A shop that is served and a till that replicates with it, over transports that record."""

    def __init__(self, shop: trio_p2p.Database, till: trio_p2p.Database, scratch: Path) -> None:
        self.here = till.default_collection
        self.there = shop.default_collection
        self.till = till
        self._scratch = scratch
        self._listener = trio_p2p.URLEndpointListener(
            trio_p2p.URLEndpointListenerConfiguration(
                collections=[self.there], enable_delta_sync=True
            )
        )

    async def replicate(self, kind: trio_p2p.ReplicatorType, **settings: Any) -> str:
        """Replicate once; returns what was said."""
        client, server = memory_transport_pair()
        recording = Recording(client)

        async def connect() -> Recording:
            await trio.lowlevel.checkpoint()
            return recording

        config = trio_p2p.ReplicatorConfiguration(
            target=connect,
            collections=[self.here],
            replicator_type=kind,
            enable_delta_sync=True,
            max_attempts=1,
            **settings,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listener.handle, server)
            await trio_p2p.replicate(config)
        self._scratch.write_text("\n".join(recording.lines))
        (script,) = read_transcript(self._scratch)
        return shown(script)


@asynccontextmanager
async def open_peers(directory: Path) -> AsyncIterator[Peers]:
    async with (
        trio_p2p.open_database(directory / "shop.p2p", delta_sync=True) as shop,
        trio_p2p.open_database(directory / "till.p2p", delta_sync=True) as till,
    ):
        yield Peers(shop, till, directory / "recording.jsonl")


def shown(script: Sequence[Spoken]) -> str:
    """A conversation for people to read: each request, its reply below it."""
    replies = {(s.by_client, s.number): s for s in script if s.is_reply}
    lines = []
    for said in script:
        if said.is_reply:
            continue
        properties = dict(said.message.properties)
        lines += _told(said, [properties.pop("Profile")], properties)
        reply = replies.get((not said.by_client, said.number))
        if reply is not None:
            lines += _told(reply, ["reply"], dict(reply.message.properties))
    return "\n".join(lines) + "\n"


def _told(said: Spoken, words: list[str], properties: dict[str, str]) -> list[str]:
    words += [f"{key}={value}" for key, value in properties.items()]
    lines = [("> " if said.by_client else "< ") + " ".join(words)]
    if said.message.body:
        lines.append("      " + said.message.body.decode())
    return lines


MENU = {"name": "menu", "dishes": {f"dish {n}": n for n in range(20)}}
Say = Callable[[Peers], Awaitable[str]]


async def _push(peers: Peers) -> str:
    await peers.here.put("apple", {"name": "Apple", "price": 120})
    return await peers.replicate(trio_p2p.ReplicatorType.PUSH)


async def _pull(peers: Peers) -> str:
    await _push(peers)
    await peers.there.put("pear", {"name": "Pear", "price": 95})
    return await peers.replicate(trio_p2p.ReplicatorType.PULL)


async def _conflict(peers: Peers) -> str:
    await _push(peers)
    await peers.there.put("apple", {"name": "Apple", "price": 130})
    await peers.here.put("apple", {"name": "Apple", "price": 110})
    return await peers.replicate(trio_p2p.ReplicatorType.PUSH)


async def _delta(peers: Peers) -> str:
    await peers.here.put("menu", MENU)
    await peers.replicate(trio_p2p.ReplicatorType.PUSH)
    await peers.here.put("menu", MENU | {"name": "lunch"})
    return await peers.replicate(trio_p2p.ReplicatorType.PUSH)


async def _blob(peers: Peers) -> str:
    blob = await peers.till.save_blob(b"not really a picture", "text/plain")
    await peers.here.put("holiday", {"picture": blob})
    return await peers.replicate(trio_p2p.ReplicatorType.PUSH)


CONVERSATIONS: dict[str, Say] = {
    "push": _push,
    "pull": _pull,
    "conflict": _conflict,
    "delta": _delta,
    "blob": _blob,
}
