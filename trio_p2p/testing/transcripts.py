"""Recorded conversations with Couchbase Lite: reading them, and putting ours beside them.

A recording is a file of JSON lines, one for each WebSocket frame of each connection. What two
conversations may differ in is left out of a message's `line` (sizes, times, abilities that this
package lacks or adds); `Names` translates the identifiers, which differ by nature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from trio_p2p.blip import Connection, ErrorReceived, Message, PartReceived, RequestReceived
from trio_p2p.blip.connection import ERROR_CODE, ERROR_DOMAIN, Event
from trio_p2p.errors import PeerError
from trio_p2p.store.database import Body, Collection
from trio_p2p.store.engine import Engine

BINARY = 2
"""The WebSocket opcode of BLIP frames."""

# Access revocation is not announced; the UUID in the reply to getCollections is ours
# alone, and that in the request names a database.
# `activeOnly` is never asked for here: see docs/decisions/0004.
_PROPERTIES_ASIDE = frozenset({"activeOnly", "revocations", "uuid"})
# Where the rows of a listing end with the size of a body: we count CBOR.
_SIZE_COLUMN = {"changes": 4, "proposeChanges": 3}
_COUNTER_MASK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Spoken:
    """One message of a connection. A reply has the number and profile of its request."""

    by_client: bool
    is_reply: bool
    number: int
    profile: str
    message: Message

    @property
    def line(self) -> str:
        """What is compared: equal texts say the same. Only of replies the number counts."""
        message = self.message
        properties = {k: v for k, v in message.properties.items() if k not in _PROPERTIES_ASIDE}
        what = {
            "properties": properties,
            "body": _comparable_body(self.profile, self.is_reply, message),
            "flags": [message.urgent, message.compressed, message.no_reply],
        }
        text = orjson.dumps(what, option=orjson.OPT_SORT_KEYS).decode()
        return f"{self.profile} reply {self.number} {text}" if self.is_reply else text

    @property
    def is_caught_up(self) -> bool:
        """Whether it says that there is nothing (more) to offer or propose.

        While a connection is open, Couchbase Lite says so again and again.
        """
        return self.profile in _SIZE_COLUMN and not self.is_reply and self.message.body == b"[]"


Script = list[Spoken]
"""The messages of one connection, in the order in which they were complete."""


def read_transcript(path: Path) -> list[Script]:
    """Read a recording: a script for each connection, in order. Raises RemoteProtocolError."""
    recorders: dict[int, _Recorder] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "ws" and entry["opcode"] == BINARY:
            recorder = recorders.setdefault(entry["conn"], _Recorder())
            recorder.receive(bytes.fromhex(entry["hex"]), by_client=entry["dir"] == "c2s")
    return [recorders[number].script for number in sorted(recorders)]


class _Recorder:
    """Decodes one connection. A BLIP connection stands for each side, to know its requests."""

    def __init__(self) -> None:
        self.script: Script = []
        self._client = Connection()
        self._server = Connection()
        self._profiles: dict[tuple[bool, int], str] = {}

    def receive(self, frame: bytes, *, by_client: bool) -> None:
        """Take the next frame, from either side."""
        sender, receiver = (self._client, self._server)[:: 1 if by_client else -1]
        for event in receiver.receive_frame(frame):
            if isinstance(event, RequestReceived):
                self._profiles[by_client, event.number] = event.message.properties["Profile"]
                # Or the reply to it would be one to no request.
                sender.send_request(event.message)
                while sender.next_frame() is not None:
                    pass
            self.script.append(self._spoken(event, by_client))

    def _spoken(self, event: Event, by_client: bool) -> Spoken:
        is_reply = not isinstance(event, RequestReceived)
        profile = self._profiles[by_client ^ is_reply, event.number]
        if isinstance(event, ErrorReceived):
            message = error_message(PeerError(event.domain, event.code, event.text))
        else:
            assert not isinstance(event, PartReceived)
            message = event.message
        return Spoken(by_client, is_reply, event.number, profile, message)


def error_message(error: PeerError) -> Message:
    """An error reply as it stands on the wire."""
    properties = {ERROR_DOMAIN: error.domain, ERROR_CODE: str(error.code)}
    return Message(properties, error.text.encode())


def recorded_blob(script: Script) -> bytes:
    """The content of the one blob that was sent in a conversation."""
    (sent,) = (s for s in script if s.profile == "getAttachment" and s.is_reply)
    return sent.message.body


def without_deltas(scripts: Sequence[Script]) -> list[Script]:
    """A conversation as it would have been if every body had been sent whole."""
    bodies: dict[tuple[str, str], dict[str, Any]] = {}

    def whole(said: Spoken) -> Spoken:
        if said.profile != "rev" or said.is_reply:
            return said
        properties = dict(said.message.properties)
        body = orjson.loads(said.message.body)
        base = properties.pop("deltaSrc", None)
        if base is not None:
            # All that was recorded replace top-level values.
            assert not any(isinstance(value, (dict, list)) for value in body.values())
            body = bodies[properties["id"], base] | body
        bodies[properties["id"], properties["rev"]] = body
        message = replace(said.message, properties=properties, body=orjson.dumps(body))
        return replace(said, message=message)

    return [[whole(said) for said in script] for script in scripts]


def with_version_vectors(scripts: Sequence[Script]) -> list[Script]:
    """A conversation of Couchbase Lite 3 as if both sides had told the abilities of version 4."""

    def abilities(properties: Mapping[str, str]) -> dict[str, str]:
        told = dict(properties)
        if told.pop("maxHistory", None):
            told["sendReplacementRevs"] = "1"
        if "versioning" in told:
            told["versioning"] = "version-vectors"
        return told

    def change(said: Spoken) -> Spoken:
        properties = abilities(said.message.properties)
        return replace(said, message=replace(said.message, properties=properties))

    return [[change(said) for said in script] for script in scripts]


def altered(
    scripts: Sequence[Script],
    *,
    by_client: bool,
    is_reply: bool,
    profile: str,
    properties: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> list[Script]:
    """A recording with other properties or another body in every message of one kind.

    A replay that accepts it compares nothing.
    """

    def change(said: Spoken) -> Spoken:
        if (said.by_client, said.is_reply, said.profile) != (by_client, is_reply, profile):
            return said
        message = said.message
        changed = {**message.properties, **(properties or {})}
        new_body = message.body if body is None else body
        return replace(said, message=replace(message, properties=changed, body=new_body))

    return [[change(said) for said in script] for script in scripts]


class Names:
    """Which of our identifiers stands for which recorded one."""

    def __init__(self, recorded_by_ours: Mapping[str, str]) -> None:
        self._recorded_by_ours = dict(recorded_by_ours)

    def learn(self, ours: Sequence[str], recorded: Sequence[str]) -> None:
        """More identifiers that correspond."""
        self._recorded_by_ours.update(zip(ours, recorded, strict=True))

    def to_recorded(self, message: Message) -> Message:
        """A message of ours, as the recorded peer would have written it."""
        return _renamed(message, self._recorded_by_ours)

    def to_ours(self, message: Message) -> Message:
        """A recorded message, as it reads with our identifiers."""
        return _renamed(message, {new: old for old, new in self._recorded_by_ours.items()})


def _renamed(message: Message, names: Mapping[str, str]) -> Message:
    properties, body = dict(message.properties), message.body
    for old, new in names.items():
        properties = {key: value.replace(old, new) for key, value in properties.items()}
        body = body.replace(old.encode(), new.encode())
    return replace(message, properties=properties, body=body)


class RecordedClock:
    """A wall clock that stands where the recording was made.

    Edits then get the versions that were recorded, but for their author.
    """

    def __init__(self, time_ns: int = 0x18EA_7BF5_A000_0000) -> None:
        self._time_ns = time_ns

    def __call__(self) -> int:
        return self._time_ns

    async def make_next(self, engine: Engine, time: int) -> None:
        """Let the next version that the database makes have this time, as a recorded one has."""
        self._time_ns = time & ~_COUNTER_MASK
        await engine.write(lambda txn: txn.clock.see(time - 1))

    async def edit(
        self, collection: Collection, time: int, document_id: str, body: Body | None
    ) -> None:
        """Put a document, or delete it for None, as a recorded peer did at this time."""
        await self.make_next(collection.database.engine, time)
        if body is None:
            await collection.delete(document_id)
        else:
            await collection.put(document_id, body)


def _comparable_body(profile: str, is_reply: bool, message: Message) -> Any:
    body = message.body
    if ERROR_CODE in message.properties:
        # Words for people.
        return None
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("latin-1")  # A blob, mostly.
    if profile in _SIZE_COLUMN and not is_reply:
        column = _SIZE_COLUMN[profile]
        return [[*row[:column], *("size" for _ in row[column:])] for row in value]
    if profile == "getCollections" and is_reply:
        return [_timeless(checkpoint) for checkpoint in value]
    if profile == "setCheckpoint":
        return _timeless(value)
    return value


def _timeless(checkpoint: Any) -> Any:
    if not isinstance(checkpoint, dict):
        return checkpoint
    return {key: value for key, value in checkpoint.items() if key != "time"}
