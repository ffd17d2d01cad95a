"""Edits that turn one text into another, as Fleece writes them.

The edits are operations on the UTF-8 bytes of the old text, one behind the other: `5=` keeps five
bytes, `3-` leaves out three, `2+hi|` puts in two. Together they pass over the whole old text.

Finding few edits takes time that grows with the product of the lengths. So a long text is cut at
passages that occur once in either, and only what is left between them is compared letter by letter;
where no such passage is found, or an `Effort` is used up, a stretch is replaced as a whole.

Source of the format: Fleece's JSONDelta.cc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from rapidfuzz.distance import Levenshtein, Postfix, Prefix

from trio_p2p import limits
from trio_p2p.errors import DeltaError

_OPERATION: Final = re.compile(rb"([0-9]{1,9})([=+-])")
# Keeping fewer letters than this between two changes takes more room than writing them anew.
_KEPT_LETTERS_MIN: Final = 6
# Long enough to occur once in prose; short enough to fit between two edits.
_PASSAGE_LETTERS: Final = 32
# Where in a stretch such a passage is looked for, in eighths: near the middle first.
_PASSAGE_PLACES: Final = (4, 3, 5, 2, 6)
# Up to here comparing costs no more than looking for a passage.
_CELLS_MIN: Final = 2**18
# A comparison does 64 cells in the time in which some eight letters are searched.
_CELLS_PER_STEP: Final = 64
_LETTERS_PER_STEP: Final = 8


class Effort:
    """How much more work may go into one delta: bounds time without looking at a clock."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left."""
        return self._left == 0

    def spend(self, steps: int) -> bool:
        """Take so many steps; if there are not as many, take what is left and return False."""
        enough = steps <= self._left
        self._left = self._left - steps if enough else 0
        return enough


class _Change(NamedTuple):
    """The letters [old_start:old_end] of the old text become [new_start:new_end] of the new."""

    old_start: int
    old_end: int
    new_start: int
    new_end: int


def make_edits(old: str, new: str, effort: Effort) -> str:
    """Write the edits that turn `old` into `new`; both must be encodable as UTF-8."""
    edits = []
    at = 0
    for change in _joined(_changes(old, new, effort)):
        if change.old_start > at:
            edits.append(f"{_bytes(old[at : change.old_start])}=")
        if change.old_end > change.old_start:
            edits.append(f"{_bytes(old[change.old_start : change.old_end])}-")
        if change.new_end > change.new_start:
            inserted = new[change.new_start : change.new_end]
            edits.append(f"{_bytes(inserted)}+{inserted}|")
        at = change.old_end
    if at < len(old):
        edits.append(f"{_bytes(old[at:])}=")
    return "".join(edits)


def apply_edits(old: str, edits: str, effort: Effort) -> str:
    """Carry out edits, each of which takes a step. Raises DeltaError for anything amiss."""
    try:
        source, script = old.encode(), edits.encode()
    except UnicodeEncodeError as exc:
        raise DeltaError("text must be valid Unicode") from exc
    pieces = []
    at = read = 0
    while read < len(script):
        match = _OPERATION.match(script, read)
        if match is None or not effort.spend(1):
            raise DeltaError("not an edit, or too many", at=read)
        count, read = int(match[1]), match.end()
        if match[2] == b"+":
            end = read + count
            if script[end : end + 1] != b"|":
                raise DeltaError("an insertion does not end where it says", at=read)
            pieces.append(script[read:end])
            read = end + 1
            continue
        if match[2] == b"=":
            pieces.append(source[at : at + count])
        at += count
    if at != len(source):
        raise DeltaError("edits for a text of another length", bytes=len(source))
    try:
        return b"".join(pieces).decode()
    except UnicodeDecodeError as exc:
        raise DeltaError("edits split a character") from exc


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _joined(changes: Iterator[_Change]) -> Iterator[_Change]:
    """The same changes, those with next to nothing kept between them made one."""
    last: _Change | None = None
    for change in changes:
        if last is not None and change.old_start - last.old_end < _KEPT_LETTERS_MIN:
            last = _Change(last.old_start, change.old_end, last.new_start, change.new_end)
            continue
        if last is not None:
            yield last
        last = change
    if last is not None:
        yield last


def _changes(old: str, new: str, effort: Effort) -> Iterator[_Change]:
    """What differs, from left to right."""
    stretches = [_Change(0, len(old), 0, len(new))]
    while stretches:
        stretch = _trimmed(old, new, stretches.pop())
        old_letters = stretch.old_end - stretch.old_start
        new_letters = stretch.new_end - stretch.new_start
        cells = old_letters * new_letters
        if cells == 0:
            if old_letters or new_letters:
                yield stretch
        elif cells > _CELLS_MIN and (found := _passage(old, new, stretch, effort)):
            old_at, new_at = found
            stretches += (
                stretch._replace(old_start=old_at, new_start=new_at),
                stretch._replace(old_end=old_at, new_end=new_at),
            )
        elif cells <= limits.DELTA_CELLS_MAX and effort.spend(cells // _CELLS_PER_STEP):
            yield from _compared(old, new, stretch)
        else:
            yield stretch


def _trimmed(old: str, new: str, stretch: _Change) -> _Change:
    """A stretch without what its two sides have in common at both ends."""
    old_start, old_end, new_start, new_end = stretch
    same = Prefix.similarity(old[old_start:old_end], new[new_start:new_end])
    old_start, new_start = old_start + same, new_start + same
    same = Postfix.similarity(old[old_start:old_end], new[new_start:new_end])
    return _Change(old_start, old_end - same, new_start, new_end - same)


def _passage(old: str, new: str, stretch: _Change, effort: Effort) -> tuple[int, int] | None:
    """Where a passage begins that occurs once in either side of a stretch, if one is found."""
    old_start, old_end, new_start, new_end = stretch
    letters = old_end - old_start
    for eighths in _PASSAGE_PLACES:
        at = old_start + letters * eighths // 8
        passage = old[at : at + _PASSAGE_LETTERS]
        if not effort.spend((letters + new_end - new_start) // _LETTERS_PER_STEP):
            return None
        if new.count(passage, new_start, new_end) == 1 == old.count(passage, old_start, old_end):
            return at, new.index(passage, new_start, new_end)
    return None


def _compared(old: str, new: str, stretch: _Change) -> Iterator[_Change]:
    """What differs in a stretch, letter by letter."""
    old_start, old_end, new_start, new_end = stretch
    for operation in Levenshtein.opcodes(old[old_start:old_end], new[new_start:new_end]):
        if operation.tag != "equal":
            yield _Change(
                old_start + operation.src_start,
                old_start + operation.src_end,
                new_start + operation.dest_start,
                new_start + operation.dest_end,
            )
