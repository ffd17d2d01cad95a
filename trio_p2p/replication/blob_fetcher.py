"""Fetches the blobs that arriving revisions name, so that they are here before these are stored."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import trio

from trio_p2p import limits
from trio_p2p.errors import PeerError, StoreError
from trio_p2p.ids import DocumentID
from trio_p2p.model.blob import named_blobs
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import GetAttachment, RevisionOutcome, SentRevision
from trio_p2p.replication.profile import IncomingAttachment
from trio_p2p.store import blob_uses
from trio_p2p.store.blobs import IncomingBlob

STATUS_TOO_MUCH = 400
STATUS_NOT_FOUND = 404
STATUS_BAD_BLOB = 502
# Transient: with any other status than such a one the peer would take the document for done.
STATUS_FULL = 503

# What is compressed already. Source: LiteCore's c4BlobStore.cc.
_COMPRESSED_TYPES = ("zip", "audio/", "image/", "video/")

OnReady = Callable[[RevisionOutcome | None, Sequence[object]], None]
"""Told once what failed, or None when all blobs are here, and what keeps them so while it is held.

At once if none of them has to be fetched.
"""


class _Wanted(NamedTuple):
    """A blob to fetch, as a document tells of it."""

    sha1: bytes
    document_id: DocumentID
    length_max: int
    compress: bool


@dataclass(slots=True, eq=False)
class _Waiting:
    """A revision that waits for blobs: those that are missing, and what keeps all of them here."""

    missing: dict[bytes, _Wanted]
    kept: Sequence[object]
    on_ready: OnReady


class BlobFetcher:
    """Fetches blobs for one collection of one session, some at a time, and each one once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        # The revisions that wait for each blob: for those to fetch, the earliest first, and for
        # those on their way, which nobody may wait for any more.
        self._queue: OrderedDict[bytes, list[_Waiting]] = OrderedDict()
        self._under_way: dict[bytes, list[_Waiting]] = {}

    def want(self, sent: SentRevision, on_ready: OnReady) -> None:
        """See to it that all blobs of a revision are here."""
        named = named_blobs(sent.revision.body)
        engine = self._link.engine
        # First, so that nobody removes one that is here, or comes, before the revision names it.
        kept = [engine.blobs.keep(sha1) for sha1 in named]
        missing = {sha1 for sha1 in named if not engine.blob_files.has(sha1)}
        missing |= self._foreign(named.keys() - missing)
        if not missing:
            on_ready(None, kept)
            return
        waiting = _Waiting(
            # Not the mappings: what else stands in them may take more memory than is counted.
            {sha1: _wanted(sha1, named[sha1], sent.document_id) for sha1 in sorted(missing)},
            kept,
            on_ready,
        )
        self._link.profile.hold(waiting, len(missing) * limits.BLOB_WANTED_BYTES)
        for sha1 in waiting.missing:
            others = self._under_way.get(sha1)
            if others is None:
                others = self._queue.setdefault(sha1, [])
            others.append(waiting)
        self._link.pulse.notify()

    def _foreign(self, held: Collection[bytes]) -> set[bytes]:
        """Of blobs that are here, those that only other collections than the session's name.

        That the peer names one of them does not tell that it has it: it has to prove that, or it
        could read what it knows no more of than the digest.
        """
        if not held:
            return set()
        with self._link.engine.read() as txn:
            return {sha1 for sha1 in held if blob_uses.is_foreign(txn, sha1, self._link.readable)}

    async def run(self) -> None:
        """Fetch for ever. Raises ConnectionLostError.

        Cancelling: what has come of a blob is kept, and gone on with next time.
        """
        async with trio.open_nursery() as nursery:
            while True:
                await self._link.pulse.until(self._may_fetch)
                sha1, waiting = self._queue.popitem(last=False)
                self._under_way[sha1] = waiting
                nursery.start_soon(self._fetch, waiting[0].missing[sha1])

    def _may_fetch(self) -> bool:
        return bool(self._queue) and len(self._under_way) < limits.BLOBS_FETCHED_AT_ONCE

    async def _fetch(self, wanted: _Wanted) -> None:
        try:
            failure = await self._get(wanted)
        except PeerError as exc:
            failure = _refused(exc)
        except StoreError as exc:
            failure = RevisionOutcome(STATUS_FULL, str(exc), retryable=True)
        is_longer = failure is not None and failure.status == STATUS_TOO_MUCH
        for waiting in self._under_way.pop(wanted.sha1):
            if is_longer and waiting.missing[wanted.sha1].length_max > wanted.length_max:
                # Another document told of another length: that is no fault of this one's.
                self._queue.setdefault(wanted.sha1, []).append(waiting)
                continue
            del waiting.missing[wanted.sha1]
            if failure is not None:
                self._forget(waiting)
            if failure is not None or not waiting.missing:
                self._link.profile.release(waiting)
                waiting.on_ready(failure, waiting.kept)
        self._link.pulse.notify()

    def _forget(self, waiting: _Waiting) -> None:
        """A revision waits no longer; what it alone wanted is fetched only if that has begun."""
        for sha1 in waiting.missing:
            if sha1 in self._under_way:
                self._under_way[sha1].remove(waiting)
                continue
            others = self._queue[sha1]
            others.remove(waiting)
            if not others:
                del self._queue[sha1]

    async def _get(self, wanted: _Wanted) -> RevisionOutcome | None:
        """See to it that a blob is here. Returns what failed.

        Another session that receives it is waited for, and so is one that goes on with it because
        it came too slowly here. Each time there is more patience with the other one, so that slow
        peers do not take a blob from each other for ever.
        """
        patience_s = limits.BLOB_PATIENCE_S
        while True:
            async with self._link.engine.blobs.receive(wanted.sha1, patience_s) as incoming:
                if incoming is not None:
                    return await self._receive(wanted, incoming)
                return await self._compare(wanted) if self._foreign([wanted.sha1]) else None
            patience_s *= 2

    async def _receive(self, wanted: _Wanted, incoming: IncomingBlob) -> RevisionOutcome | None:
        """Receive a blob, whole or what is missing of it. Returns what failed."""
        while True:
            request = GetAttachment(
                self._link.index,
                wanted.sha1,
                wanted.document_id,
                wanted.compress,
                incoming.length,
            )
            attachment = self._link.profile.get_attachment(request)
            try:
                if not await self._write(attachment, incoming, wanted.length_max):
                    await incoming.restart()
                    return RevisionOutcome(STATUS_TOO_MUCH, "a blob is larger than announced")
            finally:
                attachment.abandon()
            was_resumed = incoming.is_resumed
            if await incoming.finish():
                self._link.journal.blob_received()
                return None
            if not was_resumed:
                text = "a blob was damaged on its way"
                return RevisionOutcome(STATUS_BAD_BLOB, text, retryable=True)
            # Another peer may have sent the beginning: that is no fault of this one's.

    async def _compare(self, wanted: _Wanted) -> RevisionOutcome | None:
        """Receive a blob that is here, and keep nothing. Returns what failed.

        It is sent as one that is missing, so that peers of any kind can prove that they have it.
        """
        sha1 = hashlib.sha1(usedforsecurity=False)
        length = 0
        request = GetAttachment(self._link.index, wanted.sha1, wanted.document_id)
        attachment = self._link.profile.get_attachment(request)
        try:
            while part := await attachment.receive():
                length += len(part)
                if length > wanted.length_max:
                    return RevisionOutcome(STATUS_TOO_MUCH, "a blob is larger than announced")
                sha1.update(part)
        finally:
            attachment.abandon()
        if sha1.digest() != wanted.sha1:
            text = "a blob was damaged on its way"
            return RevisionOutcome(STATUS_BAD_BLOB, text, retryable=True)
        return None

    async def _write(
        self, attachment: IncomingAttachment, incoming: IncomingBlob, length_max: int
    ) -> bool:
        """Write what comes, to its end; False if it is too much."""
        begun = False
        while part := await attachment.receive():
            if not begun and attachment.start != incoming.length:
                # It begins elsewhere than it was asked to. Its digest is looked at in any case.
                await incoming.restart()
            begun = True
            if incoming.length + len(part) > length_max:
                return False
            await incoming.write(part)
            self._link.journal.blob_bytes_received(len(part))
        return True


def _wanted(sha1: bytes, properties: Mapping[str, Any], document_id: DocumentID) -> _Wanted:
    """What a mapping in a document tells of a blob."""
    length = properties.get("length")
    return _Wanted(
        sha1,
        document_id,
        length if type(length) is int else limits.BLOB_BYTES_MAX,
        _is_compressible(properties.get("content_type")),
    )


def _refused(error: PeerError) -> RevisionOutcome:
    """What becomes of a revision whose blob the peer refused.

    Its code is only taken over where it tells the same of a revision. Others would make a success
    of the failure, or the end of what is to be tried again.
    """
    if error.domain == "HTTP" and (error.code == STATUS_NOT_FOUND or 500 <= error.code < 600):
        return RevisionOutcome(error.code, f"no blob: {error.text}", retryable=True)
    return RevisionOutcome(STATUS_BAD_BLOB, f"no blob: {error}", retryable=True)


def _is_compressible(content_type: object) -> bool:
    """Whether deflating content of this type is worth the time; not if it is not known."""
    return isinstance(content_type, str) and not any(
        kind in content_type.lower() for kind in _COMPRESSED_TYPES
    )
