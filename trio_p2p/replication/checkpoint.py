"""Checkpoints: what both sides need not say again.

A checkpoint holds which local sequences the peer has (or need not have), and up to which of the
peer's sequences we have everything. Both sides keep a copy. Where the copies differ, only what
both agree on counts, which is slow but never wrong.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson

from trio_p2p import limits
from trio_p2p.model.sequence_set import SequenceSet
from trio_p2p.replication.messages import RemoteSequence

_SEQUENCE_END: Final = 2**63


@dataclass(slots=True)
class Checkpoint:
    """`local`: our sequences that are done; `remote`: the peer's sequence reached, as JSON text."""

    local: SequenceSet = field(default_factory=SequenceSet)
    remote: RemoteSequence | None = None

    def to_json(self, time_s: int) -> bytes:
        """The body that both sides store. `time_s` is told for people to read.

        Of very many ranges the last ones are left out: they will be offered again.
        """
        body: dict[str, Any] = {"time": time_s}
        if self.local.low_water:
            body["local"] = self.local.low_water
        pairs = self.local.to_pairs()[: 2 * limits.CHECKPOINT_RANGES_MAX]
        if len(pairs) > 2:
            body["localCompleted"] = pairs
        if self.remote is not None:
            body["remote"] = orjson.Fragment(self.remote)
        return orjson.dumps(body)

    @classmethod
    def from_json(cls, text: bytes) -> Checkpoint:
        """Read a body. Whatever cannot be understood counts as nothing done.

        So does one that is larger than any of ours, which may take long to read.
        """
        if len(text) > limits.CHECKPOINT_BYTES_MAX:
            return cls()
        try:
            body = orjson.loads(text)
            # No more of them than we write ourselves: a peer may list them in an order that makes
            # each one cost more than the one before.
            pairs = list(body.get("localCompleted", ()))[: 2 * limits.CHECKPOINT_RANGES_MAX]
            local = SequenceSet.from_pairs(pairs)
            low_water = body.get("local", 0)
            if type(low_water) is int and 0 < low_water < _SEQUENCE_END:
                local.add_range(0, low_water + 1)
            remote = body.get("remote")
            # Encoding raises TypeError too: orjson reads deeper nesting than it writes.
            reached = None if remote is None else _sequence_text(remote)
        except (ValueError, AttributeError, TypeError):
            return cls()
        return cls(local, reached)

    @property
    def remote_sequence(self) -> int:
        """`remote` if it is a number, as our own sequences are; else 0."""
        number = int(self.remote) if self.remote is not None and self.remote.isdecimal() else 0
        return number if number < _SEQUENCE_END else 0

    def agreed(self, other: Checkpoint) -> Checkpoint:
        """What both copies say is done."""
        return Checkpoint(self.local.intersection(other.local), _earlier(self.remote, other.remote))


def checkpoint_id(
    database_id: UUID,
    peer_key: str,
    collection: str,
    document_ids: Iterable[str] | None,
    *,
    channels: Iterable[str] | None = None,
    filtered: Iterable[str] = (),
) -> str:
    """The name of a checkpoint: whatever changes its meaning changes its name.

    The direction is not part of it: a push-only replication keeps the `remote` part as it is, and
    a pull-only one the `local` part, so both serve a later replication in both directions.
    `filtered` names the directions that a filter restricts; what it does is not known.
    """
    parts: list[Any] = [str(database_id), peer_key, collection]
    if document_ids is not None:
        parts.append(sorted(document_ids))
    if channels is not None:
        parts.append({"channels": sorted(channels)})
    if filters := sorted(filtered):
        parts.append({"filtered": filters})
    digest = hashlib.sha1(orjson.dumps(parts), usedforsecurity=False).digest()
    return "cp-" + base64.b64encode(digest).decode("ascii")


class RemoteSequences:
    """How far the peer's sequences are done, in the order it offered them.

    What is not done is a gap; of what is done behind a gap, only the last one is remembered. With
    too many gaps nothing behind the last of them counts any more: it is offered again next time.
    """

    def __init__(self, reached: RemoteSequence | None) -> None:
        self.reached = reached
        self._start = _Gap("", None)
        self._end = self._start
        self._gaps: dict[RemoteSequence, _Gap] = {}
        self._is_full = False
        # The last one that was offered in order.
        self._offered = reached

    def begin(self, sequence: RemoteSequence, *, in_order: bool = True) -> None:
        """Take note of an offered sequence.

        One that may be offered ahead of its turn is not `in_order`: what comes behind it waits for
        it, but that it is done does not tell of those before it.
        """
        if sequence in self._gaps or self._is_full:
            return
        if in_order:
            self._offered = sequence
        elif sequence == self._offered or is_behind(sequence, self._offered):
            return
        if len(self._gaps) >= limits.SEQUENCE_GAPS_MAX:
            self._is_full = True
            return
        gap = self._gaps[sequence] = _Gap(sequence, self._end, in_order=in_order)
        self._end.behind = gap
        self._end = gap

    def is_open(self, sequence: RemoteSequence) -> bool:
        """Whether one was taken note of and is not done: `reached` does not pass it."""
        return sequence in self._gaps

    def complete(self, sequence: RemoteSequence) -> None:
        """Mark one as done; `reached` moves once everything before it is done too."""
        gap = self._gaps.pop(sequence, None)
        if gap is None:
            return
        before = gap.before
        assert before is not None, sequence
        before.behind = gap.behind
        if gap.behind is None:
            self._end = before
        else:
            gap.behind.before = before
        before.done = gap.done or (sequence if gap.in_order else before.done)
        done = before.done
        if before is self._start and done is not None and not is_behind(done, self.reached):
            self.reached = done


@dataclass(slots=True)
class _Gap:
    """A sequence that is not done, between others; `done` is the last one done behind it."""

    sequence: RemoteSequence
    before: _Gap | None
    behind: _Gap | None = None
    done: RemoteSequence | None = None
    in_order: bool = True


def is_behind(sequence: RemoteSequence, other: RemoteSequence | None) -> bool:
    """Whether a sequence is known to come before another one, if there is one."""
    if other is None or not (sequence.isdecimal() and other.isdecimal()):
        return False
    return int(sequence) < int(other)


def _sequence_text(value: Any) -> RemoteSequence:
    return orjson.dumps(value).decode()


def _earlier(ours: RemoteSequence | None, theirs: RemoteSequence | None) -> RemoteSequence | None:
    """The earlier of two sequences; None, the beginning, where they cannot be ordered."""
    if ours == theirs:
        return ours
    if ours is None or theirs is None or not (ours.isdecimal() and theirs.isdecimal()):
        return None
    return min(ours, theirs, key=int)
