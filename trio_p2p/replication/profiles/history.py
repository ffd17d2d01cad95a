"""How the Couchbase profile writes which versions a revision includes.

`rev` holds the current version, `history` the rest: `B, C` after a plain vector `A; B, C`, and
`B, C; D` after a merge `A, B, C; D`. The tree revision IDs of an upgraded document follow, newest
first.

Source: LiteCore's Pusher+Revs.cc and RevTrees/VersionVectorWithLegacy.hh.
"""

from __future__ import annotations

import re

from trio_p2p import limits
from trio_p2p.errors import RemoteProtocolError
from trio_p2p.model.document import Revision
from trio_p2p.model.version import (
    TREE_SOURCE,
    RevisionID,
    TreeRevisionID,
    VersionVector,
    parse_revision_id,
)

# The longest revision ID is shorter. Behind it, a peer may write as much as a message holds.
_ID_CHARACTERS_MAX = 100
_FIRST_TREE = re.compile(r"(?:^|[,;])\s*([1-9][0-9]*-[0-9a-f])")


def revision_id(text: object) -> RevisionID:
    """Read a revision ID, or of a whole vector that of its current version, and no more."""
    if not isinstance(text, str):
        raise RemoteProtocolError("a revision ID is text", got=type(text).__name__)
    try:
        return parse_revision_id(re.split("[,;]", text[:_ID_CHARACTERS_MAX], maxsplit=1)[0])
    except ValueError as exc:
        raise RemoteProtocolError("not a revision ID", got=text[:80]) from exc


def history_of(revision: Revision) -> str:
    """The text of the `history` property, "" if there is none."""
    if revision.is_legacy:
        return ", ".join(map(str, revision.trees[1:]))
    current = str(revision.vector.current)
    rest = str(revision.vector)[len(current) :].lstrip(",; ")
    trees = ", ".join(map(str, revision.trees))
    if not rest or not trees:
        return rest or trees
    return f"{rest} {trees}" if rest.endswith(";") else f"{rest}, {trees}"


def read_revision(current: str, history: str, body: bytes, *, deleted: bool) -> Revision:
    """Put a revision together again. Raises RemoteProtocolError."""
    try:
        vector_text, trees = _split(history)
        if "@" not in current:
            if vector_text:
                raise ValueError("a tree revision with versions in its history")
            return Revision.from_tree(
                (TreeRevisionID.parse(current), *trees), body, deleted=deleted
            )
        separator = ", " if ";" in vector_text else "; "
        text = f"{current}{separator}{vector_text}" if vector_text else current
        vector = VersionVector.parse(text)
        if vector.current.source == TREE_SOURCE:
            raise ValueError("a tree revision ID in the form of a version")
        return Revision(vector, body, deleted, trees)
    except ValueError as exc:
        raise RemoteProtocolError(
            "not a revision history", rev=current[:80], history=history[:80]
        ) from exc


def _split(history: str) -> tuple[str, tuple[TreeRevisionID, ...]]:
    match = _FIRST_TREE.search(history)
    if not match:
        return history.strip(), ()
    texts = [part.strip() for part in history[match.start(1) :].split(",")]
    trees = tuple(TreeRevisionID.parse(text) for text in texts[: limits.TREE_REVISIONS_MAX])
    return history[: match.start(1)].strip().rstrip(",").rstrip(), trees
