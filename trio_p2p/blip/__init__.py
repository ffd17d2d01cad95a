"""BLIP 3, the message protocol below replication, without any I/O.

`varint` < `frames` < `compress` < `outbox` and `message` < `connection`. The rest of the package
needs only the names here. `docs/topics/wire-protocol.md` shows what stands on the wire.
"""

from __future__ import annotations

from trio_p2p.blip.connection import (
    Connection,
    ErrorReceived,
    Event,
    PartReceived,
    ReplyReceived,
    RequestReceived,
)
from trio_p2p.blip.message import Message
from trio_p2p.blip.outbox import Outgoing

__all__ = [
    "Connection",
    "Message",
    "Outgoing",
    "Event",
    "RequestReceived",
    "ReplyReceived",
    "PartReceived",
    "ErrorReceived",
]
