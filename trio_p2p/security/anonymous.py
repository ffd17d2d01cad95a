"""The identity of those who have no other: made once, kept, and renewed before it expires.

It encrypts, and is recognised from one time to the next as long as it is not renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import trio

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.keystore import KeyStore, default_key_store

NAME = "trio-p2p anonymous"

# Labels in the key store. Whoever listens and whoever connects are two: a peer that pinned one of
# them need not know the other.
LISTENER_LABEL = "listener"
REPLICATOR_LABEL = "replicator"

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RunSync(Protocol):
    """Calls a function that may block, and returns what it does."""

    def __call__(self, function: Callable[..., T], *args: object) -> Awaitable[T]: ...


class AnonymousIdentity:
    """An identity under a label of a key store, which is looked at only when it is first needed."""

    def __init__(
        self, label: str, key_store: KeyStore | None, *, run_sync: RunSync | None = None
    ) -> None:
        """`key_store` None is the default one; `run_sync` None is a thread."""
        self._label = label
        self._key_store = key_store
        self._run_sync = run_sync or trio.to_thread.run_sync
        self._identity: TLSIdentity | None = None
        self._renew_at: datetime | None = None
        self._looking = trio.Lock()

    async def current(self, now: datetime) -> TLSIdentity:
        """The identity to use now (aware). It is renewed IDENTITY_RENEWAL_DAYS before it expires.

        While one task renews it, which may take long where a key store is locked, the others use
        the one there is.

        Raises: ConfigurationError if what is kept is damaged, KeyStoreError; but once there is one,
        they are only logged. Cancelling: safe; an identity that is being made is made and kept.
        """
        await trio.lowlevel.checkpoint()
        if self._identity is None:
            async with self._looking:
                if self._identity is None:
                    self._identity = await self._run_sync(self._find, now)
        elif self._may_renew(self._identity, now):
            async with self._looking:
                await self._renew(now)
        return self._identity

    def _may_renew(self, identity: TLSIdentity, now: datetime) -> bool:
        if self._looking.locked() or not _is_due(identity, now):
            return False
        return self._renew_at is None or now >= self._renew_at

    async def _renew(self, now: datetime) -> None:
        """Renew it. Where that is not possible it is good for some more days, and tried again."""
        try:
            self._identity = await self._run_sync(self._find, now)
        except ConfigurationError:
            self._renew_at = now + timedelta(seconds=limits.IDENTITY_RENEWAL_PAUSE_S)
            logger.exception("the anonymous identity %r cannot be renewed", self._label)

    def _find(self, now: datetime) -> TLSIdentity:
        store = self._key_store or default_key_store()
        kept = TLSIdentity.load(self._label, store)
        if kept is not None and not _is_due(kept, now):
            return kept
        made = TLSIdentity.create(NAME, now=now)
        if kept is not None:
            store.save(self._label, made.to_pkcs12())
        elif not store.add(self._label, made.to_pkcs12()):
            # Another process made one at the same moment: both should use that.
            kept = TLSIdentity.load(self._label, store)
            if kept is None:
                raise ConfigurationError("the anonymous identity comes and goes")
            return kept
        return made


def _is_due(identity: TLSIdentity, now: datetime) -> bool:
    return identity.expiration - now <= timedelta(days=limits.IDENTITY_RENEWAL_DAYS)
