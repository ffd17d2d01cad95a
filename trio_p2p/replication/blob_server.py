"""Gives the peer the blobs it asks for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

import trio

from trio_p2p import limits
from trio_p2p.errors import BlobNotFoundError, StoreError
from trio_p2p.model.blob import format_digest
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.messages import (
    AttachmentProof,
    GetAttachment,
    ProveAttachment,
    Refusal,
    Respond,
)
from trio_p2p.replication.profile import Profile
from trio_p2p.store import blob_uses
from trio_p2p.store.blobs import BlobStream
from trio_p2p.store.engine import Engine

logger = logging.getLogger(__name__)


class BlobServer:
    """Sends blobs in one session, some at a time: those that its collections name."""

    def __init__(
        self, engine: Engine, profile: Profile, journal: Journal, collections: Collection[int]
    ) -> None:
        """`collections` are the numbers of those that the peer may read."""
        self._collections = collections
        self._engine = engine
        self._profile = profile
        self._journal = journal
        self._sending = trio.Semaphore(limits.BLOBS_SENT_AT_ONCE)

    async def send(self, request: GetAttachment, respond: Respond) -> None:
        """Answer a request with a blob, or tell that it is not here.

        Cancelling: the blob ends early, which the peer notices by its digest.
        """
        async with self._sending:
            try:
                self._check(request.sha1)
                async with self._engine.blobs.open(request.sha1, request.start) as content:
                    await self._send(request, content)
            except BlobNotFoundError as exc:
                respond(Refusal(404, str(exc)))
            except StoreError as exc:
                respond(Refusal(503, str(exc)))

    async def prove(self, request: ProveAttachment, respond: Respond) -> None:
        """Answer a request with a proof that a blob is here, or tell that it is not."""
        proof = hashlib.sha1(bytes((len(request.nonce),)), usedforsecurity=False)
        proof.update(request.nonce)
        try:
            async with self._sending:
                self._check(request.sha1)
                async with self._engine.blobs.open(request.sha1) as content:
                    async for part in content:
                        proof.update(part)
        except StoreError as exc:
            respond(Refusal(404 if isinstance(exc, BlobNotFoundError) else 503, str(exc)))
        else:
            respond(AttachmentProof(format_digest(proof.digest())))

    def _check(self, sha1: bytes) -> None:
        """Raises BlobNotFoundError for a blob that is none of the peer's business."""
        with self._engine.read() as txn:
            if not blob_uses.may_be_read(txn, sha1, self._collections):
                raise blob_uses.not_held([sha1])

    async def _send(self, request: GetAttachment, content: BlobStream) -> None:
        async with aclosing(self._counted(content)) as parts:
            try:
                went_whole = await self._profile.send_attachment(request, content.start, parts)
            except StoreError as exc:
                # Part of it is on its way, so that nothing but an early end can tell the peer.
                logger.error("a blob could not be sent: %s", exc)
                return
        if went_whole:
            self._journal.blob_sent()

    async def _counted(self, content: BlobStream) -> AsyncGenerator[bytes, None]:
        async for part in content:
            yield bytes(part)
            self._journal.blob_bytes_sent(len(part))
