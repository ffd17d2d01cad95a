"""Deltas: what changed between two bodies, in the JSON form that Fleece gives it.

The delta of an object holds the keys that changed, each with what became of its value:

- `[]`: it is gone;
- `[v]`, or just `v` where that is neither an array nor an object: it is `v` now;
- an object: the delta of its value, which was and is an object or an array;
- `["5=3-2+hi|", 0, 2]`: the edits of its text (see `text_edits`).

The delta of an array is an object too: `"3"` holds the delta of the item there, and `"7-"` an array
of what stands from there on. Nothing changed is `{}`. `[old, new]` and `[old, 0, 0]`, a replacement
and a deletion as JSON-diff-patch writes them, are read but never written.

Source: Fleece's JSONDelta.cc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from trio_p2p import limits
from trio_p2p.errors import BlobNotFoundError, DeltaError, InvalidDocumentError
from trio_p2p.model.blob import ATTACHMENTS
from trio_p2p.model.codec import RESERVED_KEYS, decode_body, encode_body, parse_json
from trio_p2p.model.text_edits import Effort, apply_edits, make_edits

_ITEM: Final = re.compile(r"(0|[1-9][0-9]{0,8})(-?)")
_EDITS: Final = 2
_RESERVED: Final = RESERVED_KEYS - {ATTACHMENTS}
# A value is written in about the time in which so much of a text is searched.
_BYTES_PER_STEP: Final = 8

_ABSENT: Final = object()
"""In place of a value that was not there, or is no more."""
_SAME: Final = object()
"""In place of a change where there is none."""


def body_delta(old: bytes, new: bytes) -> bytes:
    """The delta between two encoded bodies, as JSON."""
    return orjson.dumps(make_delta(decode_body(old), decode_body(new)))


def patch_body(base: bytes, delta: bytes) -> bytes:
    """Apply a delta that came as JSON to an encoded body; returns the new body, encoded.

    A base may have attachments of the older kind, but they are not changed by a delta. Whether a
    database holds the blobs it names is not known here.

    Raises: DeltaError.
    """
    if len(delta) > limits.BODY_BYTES_MAX:
        raise DeltaError("a delta is too large", bytes=len(delta))
    try:
        changes = parse_json(delta)
    except InvalidDocumentError as exc:
        raise DeltaError(exc.message) from exc
    try:
        old = decode_body(base)
        new = apply_delta(old, changes)
        if new.get(ATTACHMENTS) != old.get(ATTACHMENTS):
            raise DeltaError("a delta of attachments")
        return encode_body(new, reserved=_RESERVED)
    except (InvalidDocumentError, BlobNotFoundError) as exc:
        raise DeltaError("a delta does not yield a body") from exc


def make_delta(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What changed from one body to the other, both as `decode_body` returns them.

    Numbers are the same only if they are of one type and sign: `1`, `1.0` and `true` differ.
    Takes time in proportion to the bodies, and no more for texts than `limits` allow.
    """
    return _Comparison().objects(old, new)


def apply_delta(base: Mapping[str, Any], delta: Any) -> dict[str, Any]:
    """Apply a delta to a body, which stays as it is; what did not change is shared with it.

    The outcome is not checked to be a body. Its size is at most that of base and delta together.

    Raises: DeltaError.
    """
    patched = _Patch().values(base, delta)
    if not isinstance(patched, dict):
        raise DeltaError("a delta yields no object", got=type(patched).__name__)
    return patched


class _Comparison:
    """Makes one delta."""

    def __init__(self) -> None:
        self._effort = Effort(limits.DELTA_STEPS_MAX)

    def objects(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        """What became of each key, where anything did."""
        delta = {}
        for key, value in new.items():
            change = self._values(old.get(key, _ABSENT), value)
            if change is not _SAME:
                delta[key] = change
        for key in old:
            if key not in new:
                delta[key] = []
        return delta

    def _values(self, old: Any, new: Any) -> Any:
        """What became of a value, or `_SAME`."""
        kind = type(new)
        if type(old) is not kind:
            return _whole(new)
        if kind is dict:
            return self._inner_objects(old, new)
        if kind is list:
            return self._arrays(old, new)
        if kind is str:
            return _SAME if old == new else self._texts(old, new)
        # A float has a sign even where it is zero.
        if old == new and (kind is not float or str(old) == str(new)):
            return _SAME
        return new

    def _inner_objects(self, old: dict[str, Any], new: dict[str, Any]) -> Any:
        delta = self.objects(old, new)
        if not delta:
            return _SAME
        # A blob's names belong together, and readers look for "digest" in what comes.
        if new.get("@type") == "blob":
            return _whole(new)
        # Only naming what is gone can take more room than telling what is there.
        if not old.keys() <= new.keys() and self._bytes(new) < self._bytes(delta):
            return _whole(new)
        return delta

    def _arrays(self, old: list[Any], new: list[Any]) -> Any:
        shared = min(len(old), len(new))
        changes = {}
        for index in range(shared):
            change = self._values(old[index], new[index])
            if change is not _SAME:
                changes[index] = change
        if not changes and len(old) == len(new):
            return _SAME
        tail = self._tail(changes, new, shared, None if len(old) == len(new) else shared)
        if tail == 0:
            return _whole(new)
        delta = {str(i): change for i, change in changes.items() if tail is None or i < tail}
        if tail is not None:
            delta[f"{tail}-"] = new[tail:]
        return delta

    def _tail(
        self, changes: Mapping[int, Any], new: list[Any], shared: int, tail: int | None
    ) -> int | None:
        """From where on to write an array anew; `tail` if that is to be no earlier.

        Where an item was put in or taken out, all that follow differ from what stood there.
        """
        best = len('"0-":[],') if tail is None else 0
        saved = 0
        for index in reversed(range(min(changes, default=shared), shared)):
            saved -= self._bytes(new[index]) + len(",")
            if index in changes:
                saved += self._bytes(changes[index]) + len(f'"{index}":,')
            if saved > best:
                best, tail = saved, index
        return tail

    def _texts(self, old: str, new: str) -> Any:
        if len(new.encode()) < limits.DELTA_TEXT_BYTES_MIN:
            return new
        change = [make_edits(old, new, self._effort), 0, _EDITS]
        return change if len(orjson.dumps(change)) < len(orjson.dumps(new)) else new

    def _bytes(self, value: Any) -> int:
        """The size of a value as JSON; 0 once effort is used up.

        It bounds what is spent on values that are nested deeply, which each level measures.
        """
        if self._effort.is_used_up:
            return 0
        size = len(orjson.dumps(value))
        self._effort.spend(1 + size // _BYTES_PER_STEP)
        return size


class _Patch:
    """Applies one delta."""

    def __init__(self) -> None:
        self._effort = Effort(limits.DELTA_EDITS_MAX)

    def values(self, old: Any, change: Any) -> Any:
        """What a value is after a change; `_ABSENT` if it is gone."""
        match change:
            case dict() if isinstance(old, Mapping):
                return self._objects(old, change)
            case dict() if isinstance(old, list):
                return self._arrays(old, change)
            case [new]:
                return new
            case [_, new] if old is not _ABSENT:
                return new
            case [] | [_, 0, 0] if old is not _ABSENT:
                return _ABSENT
            case [str(edits), 0, 2] if isinstance(old, str):
                return apply_edits(old, edits, self._effort)
            case None | str() | int() | float():
                return change
        raise DeltaError("not a change of such a value", change=type(change).__name__)

    def _objects(self, old: Mapping[str, Any], delta: dict[Any, Any]) -> dict[str, Any]:
        new = dict(old)
        for key, change in delta.items():
            if not isinstance(key, str):
                raise DeltaError("keys are text", got=type(key).__name__)
            value = self.values(old.get(key, _ABSENT), change)
            if value is _ABSENT:
                del new[key]
            else:
                new[key] = value
        return new

    def _arrays(self, old: list[Any], delta: dict[Any, Any]) -> list[Any]:
        new = list(old)
        items = 0
        tail: tuple[int, list[Any]] | None = None
        for key, change in delta.items():
            match = _ITEM.fullmatch(key) if isinstance(key, str) else None
            if match is None:
                raise DeltaError("not a place in an array")
            index = int(match[1])
            if match[2]:
                if tail is not None or not isinstance(change, list):
                    raise DeltaError("an array is written anew once, as an array")
                tail = index, change
                continue
            if index >= len(old):
                raise DeltaError("a change behind the end of an array", index=index)
            new[index] = self.values(old[index], change)
            if new[index] is _ABSENT:
                raise DeltaError("an item is taken out of an array", index=index)
            items = max(items, index + 1)
        if tail is not None:
            index, rest = tail
            if not items <= index <= len(old):
                raise DeltaError("an array is written anew from nowhere", index=index)
            new[index:] = rest
        return new


def _whole(value: Any) -> Any:
    """A change that tells the new value in full."""
    return [value] if isinstance(value, (dict, list)) else value
