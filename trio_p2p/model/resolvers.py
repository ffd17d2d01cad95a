"""Resolvers to choose from, beside the default one.

`merge_fields` may be used by any number of peers that resolve the same conflicts: what it returns
depends on the two revisions and what they started from. The other two are for links where one side
always resolves, such as between a hub and its spokes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trio_p2p.model.blob import BlobValue
from trio_p2p.model.conflict import Conflict, Resolution
from trio_p2p.model.document import Document


def local_wins(conflict: Conflict) -> Resolution:
    """What this peer has stays, be it a deletion."""
    return conflict.local


def remote_wins(conflict: Conflict) -> Resolution:
    """What the other peer has is taken, be it a deletion."""
    return conflict.remote


def merge_fields(conflict: Conflict) -> Resolution:
    """Each top-level field as it was changed; where both sides changed one, the later version's.

    A field that one side removed is removed, unless the other side changed it later. Where it is
    not known what both sides started from, every field in which they differ is the later version's.
    A deletion of the whole document wins.
    """
    if conflict.local is None or conflict.remote is None:
        return None
    sides = (conflict.local, conflict.remote)
    earlier, later = sorted(sides, key=lambda document: document.version)
    if conflict.base is None:
        return later
    merged = _merge(conflict.base.body, earlier.body, later.body)
    return _as_side(merged, later) or _as_side(merged, earlier) or merged


_ABSENT: Final = object()


def _merge(base: dict[str, Any], earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    merged = {}
    for field in {*later, *earlier}:
        before = base.get(field, _ABSENT)
        value = later.get(field, _ABSENT)
        if _is_same(value, before):
            value = earlier.get(field, _ABSENT)
        if value is not _ABSENT:
            merged[field] = value
    return merged


def _as_side(merged: dict[str, Any], side: Document) -> Document | None:
    """The side that already is what came of the merge, so that no new revision is needed."""
    return side if _is_same(merged, side.body) else None


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of bodies are equal, as JSON sees it: order in mappings tells nothing, and
    True is not 1.
    """
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, BlobValue) and isinstance(other, BlobValue):
        return _is_same(one.blob_properties(), other.blob_properties())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)
