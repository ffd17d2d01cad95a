"""Versions and version vectors: what tells "newer" from "conflict" without walking histories.

A `Version` says who wrote a revision and when; a `VersionVector` says which versions of every
author a revision includes, current one first. A revision made by a merge lists the two versions it
merged right after its own.

Text form (`,` and `;` may be followed by spaces when read)::

    7@me                      made by me, nothing before
    7@me; 5@you, 3@her        edited by me, on top of what you and she had written
    7@me, 5@you, 3@her; 1@him a merge by me of your revision and hers

Binary form, used in the store: the number of merged versions (2 bytes, big-endian), then every
version as 8 bytes of time and 16 bytes of source.

Source: version vectors after Parker et al. (1983), with the rules of Couchbase Lite 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Self

from trio_p2p import limits
from trio_p2p.ids import SourceID, format_source_id, parse_source_id

_TIME_TEXT = re.compile(r"[0-9a-f]{1,16}\Z")
_TREE_TEXT = re.compile(r"([1-9][0-9]{0,9})-((?:[0-9a-f]{2}){1,32})\Z")
_VERSION_BYTES = 24
# Couchbase Lite 3 would go to 32 bits, but a greater one is no valid time (see `as_version`).
_GENERATION_MAX = 2**23 - 1

# The author that stands for tree revision IDs when they are compared as versions. Its 22
# characters read "Revision+Tree+Encoding".
TREE_SOURCE = parse_source_id("Revision+Tree+Encoding")


class Order(Enum):
    """How one revision relates to another."""

    SAME = "same"
    """They are one revision."""
    OLDER = "older"
    """The other one was made on top of it."""
    NEWER = "newer"
    """It was made on top of the other one."""
    CONFLICTING = "conflicting"
    """Neither was made on top of the other one."""


class Version(NamedTuple):
    """One author's timestamp. Versions sort by time, then source.

    `time` is in nanoseconds since 1970, its lowest 16 bits a counter: see `model.clock`. `source`
    is the author's source ID, 16 bytes.
    """

    time: int
    source: SourceID

    def __str__(self) -> str:
        return f"{self.time:x}@{format_source_id(self.source)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<hex time>@<source>`. Raises ValueError; spaces are not allowed."""
        time_text, at, source_text = text.partition("@")
        if not at or not _TIME_TEXT.match(time_text):
            raise ValueError(f"not a version: {text!r}")
        time = int(time_text, 16)
        if time == 0:
            raise ValueError(f"a version's time is not zero: {text!r}")
        return cls(time, parse_source_id(source_text))

    def to_bytes(self) -> bytes:
        """24 bytes: time, then source."""
        return self.time.to_bytes(8, "big") + self.source

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote. Raises ValueError."""
        if len(raw) != _VERSION_BYTES:
            raise ValueError("a version has 24 bytes")
        return cls(int.from_bytes(raw[:8], "big"), SourceID(raw[8:]))


class TreeRevisionID(NamedTuple):
    """A revision ID of Couchbase Lite 3: generation and digest. Sorts by both."""

    generation: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.generation}-{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<generation>-<lower-case hex>`. Raises ValueError."""
        match = _TREE_TEXT.match(text)
        if not match or int(match[1]) > _GENERATION_MAX:
            raise ValueError(f"not a tree revision ID: {text!r}")
        return cls(int(match[1]), bytes.fromhex(match[2]))

    def as_version(self) -> Version:
        """The version that stands for it: generation in the upper bits, then 5 digest bytes."""
        low = int.from_bytes(self.digest[:5].ljust(5, b"\0"), "big")
        return Version(self.generation << 40 | low, TREE_SOURCE)


RevisionID = Version | TreeRevisionID
"""What names one revision of a document on the wire."""


def parse_revision_id(text: str) -> RevisionID:
    """Read either kind. Raises ValueError."""
    return Version.parse(text) if "@" in text else TreeRevisionID.parse(text)


@dataclass(frozen=True, slots=True)
class VersionVector:
    """Every author's latest version that a revision includes.

    `current` is the revision's own; `merged` are the two that it was made from if it is a merge;
    `previous` all others. As text it is `current; previous, …`, or `current, merged, merged;
    previous, …` after a merge.
    """

    current: Version
    merged: tuple[Version, ...] = ()
    previous: tuple[Version, ...] = ()

    def __iter__(self) -> Iterator[Version]:
        yield self.current
        yield from self.merged
        yield from self.previous

    def __len__(self) -> int:
        return 1 + len(self.merged) + len(self.previous)

    def __str__(self) -> str:
        text = ", ".join(map(str, (self.current, *self.merged)))
        if self.previous:
            return f"{text}; {', '.join(map(str, self.previous))}"
        return f"{text};" if self.merged else text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Without any `;` all versions are taken as current and merged ones.

        Raises: ValueError, also for an author that stands twice where it may not.
        """
        head, semicolon, tail = text.partition(";")
        current, *merged = (Version.parse(part.strip(" ")) for part in head.split(","))
        previous = (
            tuple(Version.parse(part.strip(" ")) for part in tail.split(","))
            if semicolon and tail.strip(" ")
            else ()
        )
        return cls.checked(current, tuple(merged), previous)

    @classmethod
    def checked(
        cls, current: Version, merged: tuple[Version, ...], previous: tuple[Version, ...]
    ) -> Self:
        """A vector from parts that came from outside. Raises ValueError."""
        if 1 + len(merged) + len(previous) > limits.VECTOR_VERSIONS_MAX:
            raise ValueError("too many versions in one vector")
        # A merge of one's own revision names its author twice: as its own and as a merged version.
        authors = {version.source for version in merged}
        if len(authors) < len(merged):
            raise ValueError("an author stands twice among merged versions")
        if any(v.source == current.source and v.time >= current.time for v in merged):
            raise ValueError("a merged version is not older than its author's current one")
        authors.add(current.source)
        for version in previous:
            if version.source in authors:
                raise ValueError("an author stands twice in a vector")
            authors.add(version.source)
        return cls(current, merged, previous)

    def to_bytes(self) -> bytes:
        """The binary form."""
        return len(self.merged).to_bytes(2, "big") + b"".join(v.to_bytes() for v in self)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote. Raises ValueError."""
        if len(raw) < 2 + _VERSION_BYTES or (len(raw) - 2) % _VERSION_BYTES:
            raise ValueError("a damaged version vector")
        split = int.from_bytes(raw[:2], "big") + 1
        versions = [
            Version.from_bytes(raw[at : at + _VERSION_BYTES])
            for at in range(2, len(raw), _VERSION_BYTES)
        ]
        if split > len(versions):
            raise ValueError("a damaged version vector")
        return cls(versions[0], tuple(versions[1:split]), tuple(versions[split:]))

    def time_of(self, source: SourceID) -> int:
        """The latest time of this author that is included; 0 if none."""
        return max((v.time for v in self if v.source == source), default=0)

    def has(self, version: Version) -> bool:
        """Whether this version, or a later one of the same author, is included."""
        return self.time_of(version.source) >= version.time

    def includes(self, other: VersionVector) -> bool:
        """Whether it has every version of the other vector. Looks at each version once."""
        latest = _latest(self)
        return all(latest.get(source, 0) >= time for time, source in other)

    def compare(self, other: VersionVector) -> Order:
        """Relate two revisions of one document by their current versions.

        When each includes the other's current version, or neither does, they conflict.
        """
        return relate(
            same=self.current == other.current,
            includes=self.has(other.current),
            included=other.has(self.current),
        )

    def edited(self, version: Version) -> VersionVector:
        """The vector of an edit of this revision. `version` must be later than all in it."""
        assert all(version > old for old in self), (version, self)
        latest = _latest(self)
        latest.pop(version.source, None)
        # The order of the parts is kept: newest first as far as the authors' clocks agree.
        previous = tuple(v for v in self if latest.get(v.source) == v.time)
        return _pruned(version, (), previous, keeping={self.current.source})

    def greatest(self) -> Version:
        """The latest version in the vector; of a revision made here, the current one."""
        return max(self) if self.merged or self.previous else self.current


def relate(*, same: bool, includes: bool, included: bool) -> Order:
    """The order that follows from whether each revision includes the other's version."""
    if same:
        return Order.SAME
    if includes == included:
        return Order.CONFLICTING
    return Order.NEWER if includes else Order.OLDER


def merge(first: VersionVector, second: VersionVector, version: Version) -> VersionVector:
    """The vector of a new revision that merges two. `version` must be later than all in them."""
    assert version > max(first.greatest(), second.greatest()), (version, first, second)
    latest = _latest((*first, *second))
    merged = tuple(sorted((first.current, second.current), reverse=True))
    distinct = len({v.source for v in merged}) == len(merged)
    if not distinct or any(latest[v.source] != v.time for v in merged):
        # Vectors made elsewhere may know a later version of a merged author. It cannot stand
        # beside the merged one, and losing it would lose history: so the merge part goes.
        merged = ()
    head = {version.source, *(v.source for v in merged)}
    sides = {first.current.source, second.current.source}
    return _pruned(version, merged, _descending(latest, leaving_out=head), keeping=sides)


def join(winner: VersionVector, loser: VersionVector) -> VersionVector:
    """The winner's revision, now also including what the loser did: a trivial merge.

    The winner's merge part stays unless the loser knows later versions of one of its authors.
    """
    latest = _latest((*winner, *loser))
    current = Version(latest[winner.current.source], winner.current.source)
    merged = winner.merged
    if any(latest[v.source] > v.time for v in merged if v.source != current.source):
        merged = ()
    head = {current.source, *(v.source for v in merged)}
    sides = {loser.current.source}
    return _pruned(current, merged, _descending(latest, leaving_out=head), keeping=sides)


def _pruned(
    current: Version,
    merged: tuple[Version, ...],
    previous: tuple[Version, ...],
    *,
    keeping: set[SourceID],
) -> VersionVector:
    """A vector that peers accept: where there are too many authors, the oldest versions go.

    A peer that has nothing newer than one of those will see a conflict, and resolve it. So the
    authors in `keeping` stay, whose versions this revision was made from: else a peer that has one
    of them would refuse what was made to settle just that.
    """
    room = limits.VECTOR_VERSIONS_MAX - 1 - len(merged)
    if len(previous) > room:
        last_to_go = sorted(previous, key=lambda v: (v.source in keeping, v), reverse=True)
        kept = set(last_to_go[:room])
        previous = tuple(version for version in previous if version in kept)
    return VersionVector(current, merged, previous)


def _latest(versions: Iterable[Version]) -> dict[SourceID, int]:
    latest: dict[SourceID, int] = {}
    for time, source in versions:
        if latest.get(source, 0) < time:
            latest[source] = time
    return latest


def _descending(latest: dict[SourceID, int], *, leaving_out: set[SourceID]) -> tuple[Version, ...]:
    kept = (Version(time, source) for source, time in latest.items() if source not in leaving_out)
    return tuple(sorted(kept, reverse=True))
