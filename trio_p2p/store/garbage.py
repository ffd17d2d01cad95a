"""Removes the blobs that nothing needs.

A blob is kept while any revision names it, a current one or one that is kept beside; while the
program has an object that stands for it; and for an hour after it was saved, if no document ever
named it: it may be saved by one run of a program and named by the next.

Blobs are removed by the writer, where nobody can name them meanwhile, and looked up in every state
that a restart may find. None is removed while a backup runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb
import trio

from trio_p2p import limits
from trio_p2p.errors import StoreError
from trio_p2p.store import blob_uses, files
from trio_p2p.store.blob_files import BlobFile
from trio_p2p.store.transaction import WriteTransaction

if TYPE_CHECKING:
    from trio_p2p.store.engine import Engine


class Removed(NamedTuple):
    """How many blobs were removed, and the bytes they held."""

    blobs: int
    bytes: int


async def remove_unneeded(engine: Engine) -> Removed:
    """Remove all blobs that nothing needs.

    Raises: StoreError. Cancelling: what was removed stays so.
    """
    count = length = 0
    async with engine.copying:
        # What was deleted is to be so on the disk too, before its blobs go.
        await engine.sync()
        try:
            listed = await engine.run_aside(_list, engine)
        except OSError as exc:
            raise _failure(engine, exc) from exc
        for some in _slices(listed):
            await trio.lowlevel.checkpoint()
            candidates = _unneeded(engine, some)
            if candidates:
                removed = await engine.write(partial(_remove, engine, candidates))
                count += len(removed)
                length += sum(blob.length for blob in removed)
    return Removed(count, length)


def _list(engine: Engine) -> list[BlobFile]:
    """All blobs; those that were begun and left are removed on the way."""
    engine.blob_files.drop_left(_spared_since_ns(engine))
    return list(engine.blob_files.all())


def _spared_since_ns(engine: Engine) -> int:
    return engine.now_ns() - limits.BLOB_UNNAMED_S * 10**9


def _slices(listed: list[BlobFile]) -> Iterator[list[BlobFile]]:
    for start in range(0, len(listed), limits.TIDY_RECORDS):
        yield listed[start : start + limits.TIDY_RECORDS]


def _unneeded(engine: Engine, listed: list[BlobFile]) -> list[BlobFile]:
    """Those that may be removed, as far as can be seen without holding up the writer."""
    spared_since_ns = _spared_since_ns(engine)
    with engine.read() as txn:
        return [
            blob
            for blob in listed
            if not blob_uses.is_used(txn.raw, txn.tables, blob.sha1)
            and (
                blob.saved_ns < spared_since_ns
                or blob_uses.was_named(txn.raw, txn.tables, blob.sha1)
            )
        ]


def _remove(engine: Engine, candidates: list[BlobFile], txn: WriteTransaction) -> list[BlobFile]:
    """Remove those that are still unneeded; returns them."""

    def used(raw: lmdb.Transaction[Any]) -> set[bytes]:
        return {b.sha1 for b in candidates if blob_uses.is_used(raw, txn.tables, b.sha1)}

    needed = used(txn.raw).union(*engine.ask_committed(used))
    removed = []
    for blob in candidates:
        if blob.sha1 in needed:
            continue
        try:
            if txn.blob_files.remove_unless_saved_anew(blob, engine.blobs.is_in_hand):
                blob_uses.forget_blob(txn, blob.sha1)
                removed.append(blob)
        except OSError as exc:
            raise _failure(engine, exc) from exc
    return removed


def _failure(engine: Engine, exc: OSError) -> StoreError:
    return files.failure("removing blobs failed", engine.path, exc)
