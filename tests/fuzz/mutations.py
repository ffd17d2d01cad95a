"""Ways to spoil what is right: bytes, messages, conversations."""

from __future__ import annotations

import random
from collections.abc import Sequence

from trio_p2p.blip import Connection, Message

# Lengths and numbers at which something often changes.
_INTERESTING = (b"", b"\0", b"\x7f", b"\x80", b"\xff", b"\xff" * 9 + b"\x01", b"\0\0\xff\xff", b'"')


def spoiled(chance: random.Random, data: bytes) -> bytes:
    """Some bytes with one to three things wrong."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((1, 2, 8, 64, 1024)))
        match chance.randrange(7):
            case 0 if data:
                bit = 1 << chance.randrange(8)
                at = chance.randrange(len(data))
                data = data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:end] + data[at:]
            case 4:
                data = data[:at] + chance.choice(_INTERESTING) + data[at:]
            case 5:
                data = data[:at] + chance.randbytes(end - at) + data[end:]
            case _:
                data = data[at:end] + data[:at] + data[end:]
    return data


def spoiled_message(chance: random.Random, message: Message) -> Message:
    """A message with something wrong in it that BLIP does not mind."""
    properties, body = dict(message.properties), message.body
    if properties and chance.random() < 0.5:
        key = chance.choice(list(properties))
        text = spoiled(chance, properties[key].encode()).decode(errors="ignore").replace("\0", "")
        match chance.randrange(3):
            case 0:
                del properties[key]
            case 1:
                properties[key] = text
            case _:
                properties["x" + text[:10]] = text
    if chance.random() < 0.7:
        body = spoiled(chance, body)
    return Message(
        properties,
        body,
        urgent=chance.random() < 0.3,
        compressed=message.compressed,
        no_reply=message.no_reply if chance.random() < 0.8 else not message.no_reply,
    )


def reordered(chance: random.Random, items: Sequence[bytes | Message]) -> list[bytes | Message]:
    """A conversation with some of its parts left out, said twice, or at another time."""
    said = list(items)
    for _ in range(chance.randint(0, 4)):
        if len(said) < 2:
            break
        at, other = chance.randrange(len(said)), chance.randrange(len(said))
        match chance.randrange(4):
            case 0:
                said[at], said[other] = said[other], said[at]
            case 1:
                said.insert(other, said[at])
            case 2:
                del said[at]
            case _:
                del said[max(1, at) :]
    return said


def frames_of(said: Sequence[Message]) -> list[bytes]:
    """Messages as BLIP sends them: numbers, deflate stream and checksums are right."""
    blip = Connection()
    frames = []
    for message in said:
        blip.send_request(message)
        while (frame := blip.next_frame()) is not None:
            frames.append(frame)
    return frames
