"""Every error this package raises, as one tree.

::

    TrioP2PError
    ├─ ConfigurationError (ValueError)      the combination asked for cannot work: change it
    │  └─ KeyStoreError                     keys cannot be kept or read: unlock, mend permissions
    ├─ StoreError
    │  ├─ DatabaseNotFoundError             no database at this path
    │  ├─ DatabaseBusyError                 the directory is already open
    │  ├─ DatabaseExistsError               something stands where a backup is to go
    │  ├─ DuplicateDatabaseError            two peers hold copies with one identity: renew one
    │  ├─ AddressesExhaustedError           too few addresses to map it: let the process have more
    │  ├─ StoreClosedError                  the database was closed meanwhile
    │  │  └─ StoreFailedError               because the disk failed: open it again
    │  ├─ StoreFullError                    the size limit or the disk's end was reached: make room
    │  ├─ StoreCorruptError                 the data file is damaged: restore a backup
    │  ├─ StoreFormatError                  written by a version this one cannot read
    │  ├─ CollectionNotFoundError (KeyError)
    │  ├─ DocumentNotFoundError (KeyError)
    │  ├─ BlobNotFoundError (KeyError)      a body names a blob the database does not hold
    │  └─ ConflictError                     the document changed meanwhile: read it again
    ├─ InvalidDocumentError (ValueError)    this ID or body cannot be stored
    ├─ DeltaError (ValueError)              a delta that does not fit its base: take the whole body
    ├─ ClockSkewError            retryable  a version lies too far in the future of our clock
    ├─ ProtocolError
    │  ├─ LocalProtocolError                we tried something illegal: a bug of ours
    │  └─ RemoteProtocolError               the peer did
    ├─ PeerError                 depends    the peer answered a request with an error
    ├─ ConnectError
    │  ├─ PeerUnreachableError   retryable  no connection could be made
    │  ├─ NetworkUnavailableError  network  the network does not lead to the peer now
    │  ├─ HandshakeError         depends    the peer refused, or spoke another protocol
    │  ├─ AuthError                         the peer refused our credentials
    │  └─ TrustError                        we refused the peer's certificate
    ├─ ListenError                          a listener could not take its address
    ├─ ConnectionLostError       retryable  the connection ended before its work did
    ├─ ReplicationError          depends    a replication failed for good; `status` tells the code
    └─ CallbackError                        a resolver, filter or authenticator of the user raised

Classes name what the caller can do. Code that retries reads `retryable` and `network_dependent` and
nothing else; the table of `retry` is where they come from. Facts are keyword arguments: they stand
in the message and in `facts`.
"""

from __future__ import annotations

import reprlib
from typing import Any, ClassVar, Final

from trio_p2p.retry import Retry, retry_after


def _short_facts() -> reprlib.Repr:
    """Shows facts as `repr` does, but for what is very long.

    Many come from peers, and what an error says goes into logs, and into answers to other peers.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 300
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = 20
    return short


_FACTS: Final = _short_facts()


class TrioP2PError(Exception):
    """The root of the tree.

    `retryable` tells whether trying the same thing later, unchanged, may work;
    `network_dependent` whether it may once the network has changed.
    """

    retryable: bool = False
    network_dependent: bool = False

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        if not self.facts:
            return self.message
        told = ", ".join(f"{name}={_FACTS.repr(value)}" for name, value in self.facts.items())
        return f"{self.message} ({told})"


class ConfigurationError(TrioP2PError, ValueError):
    """The combination of settings cannot work."""


class KeyStoreError(ConfigurationError):
    """The key store cannot be read or written, or would show private keys to others."""


class StoreError(TrioP2PError):
    """The database could not do what was asked."""


class DatabaseNotFoundError(StoreError):
    """There is no database at this path and it was not to be created."""


class DatabaseBusyError(StoreError):
    """The database directory is already open, here or in another process."""


class DatabaseExistsError(StoreError):
    """Something stands at the path where a backup is to be made."""


class DuplicateDatabaseError(StoreError):
    """Two peers hold copies of one database; give one of them a new identity."""


class AddressesExhaustedError(StoreError):
    """The process has too few free addresses to map the database."""


class StoreClosedError(StoreError):
    """The database was closed."""


class StoreFailedError(StoreClosedError):
    """The disk failed under the database, which was closed for that: open it again.

    All that was acknowledged before is there then, unless it was opened with `durable=False`: a
    failing disk may take what a power cut may. Of what was being written when the disk failed, the
    next opening shows whether it is there.
    """

    def again(self) -> StoreFailedError:
        """The same for another one to raise."""
        error = StoreFailedError(self.message, **self.facts)
        error.__cause__ = self.__cause__ or self
        return error


class StoreFullError(StoreError):
    """The database reached its size limit, or the disk is full.

    Nothing was written; all that was before is there, and can be read and deleted.
    """


class StoreCorruptError(StoreError):
    """The data file or a record in it is damaged."""


class StoreFormatError(StoreError):
    """The database was written in a format this version does not read."""


class CollectionNotFoundError(StoreError, KeyError):
    """The database has no collection of this name."""


class DocumentNotFoundError(StoreError, KeyError):
    """The collection has no live document of this ID."""


class BlobNotFoundError(StoreError, KeyError):
    """A body names a blob that the database does not hold."""


class ConflictError(StoreError):
    """The document is not at the expected version; `expected` and `current` tell both."""

    def __init__(self, message: str, *, expected: Any, current: Any, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.expected = expected
        self.current = current


class InvalidDocumentError(TrioP2PError, ValueError):
    """A document ID or body that cannot be stored."""


class DeltaError(TrioP2PError, ValueError):
    """A delta that is malformed, does not fit its base, or does not yield a body."""


class ClockSkewError(TrioP2PError):
    """A version lies further in the future of our clock than peers accept."""

    retryable = True


class ProtocolError(TrioP2PError):
    """The rules of the wire were broken."""

    wire_code: ClassVar[int] = 1002


class LocalProtocolError(ProtocolError):
    """This side tried something the protocol forbids."""

    wire_code = 1011


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids; the connection cannot go on."""


class PeerError(TrioP2PError):
    """The peer answered a request with an error: `domain`, `code` and `text` are what it said.

    Or what was said to it, where a revision that came from it was refused here (`ours`).
    """

    def __init__(self, domain: str, code: int, text: str = "", *, ours: bool = False) -> None:
        who = "we" if ours else "the peer"
        super().__init__(f"{who} answered {domain}/{code}" + (f": {text}" if text else ""))
        self.domain = domain
        self.code = code
        self.text = text
        retry = retry_after(domain, code)
        self.retryable = retry is Retry.ALWAYS
        self.network_dependent = retry is not Retry.NEVER

    @property
    def status(self) -> int | None:
        """The HTTP status or WebSocket close code, if that is what it said."""
        return self.code if self.domain in ("HTTP", "WebSocket", "BLIP") else None


class ConnectError(TrioP2PError):
    """No usable connection to the peer could be made."""


class PeerUnreachableError(ConnectError):
    """Nothing answered at the peer's address in time."""

    retryable = True


class NetworkUnavailableError(ConnectError):
    """This machine's network does not lead to the peer: no such host or interface, no route."""

    network_dependent = True


class HandshakeError(ConnectError):
    """The peer answered but refused the connection; `status` is its HTTP status, if any."""

    def __init__(self, message: str, *, status: int | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.status = status
        self.retryable = status is not None and retry_after("HTTP", status) is Retry.ALWAYS


class AuthError(HandshakeError):
    """The peer refused the credentials it was given."""


class TrustError(ConnectError):
    """The peer's certificate was refused by the trust configured here.

    `certificates` is the chain it presented, leaf first, for showing or pinning it.
    """

    def __init__(self, message: str, *, certificates: tuple[Any, ...] = (), **facts: Any) -> None:
        super().__init__(message, **facts)
        self.certificates = certificates


class ListenError(TrioP2PError):
    """A listener could not take its address: the port is in use, or the address is not ours."""


class ConnectionLostError(TrioP2PError):
    """The connection ended; `code` is the WebSocket close code (1006: without a goodbye)."""

    retryable = True

    def __init__(self, message: str, *, code: int = 1006, reason: str = "", **facts: Any) -> None:
        super().__init__(message, code=code, **({"reason": reason} if reason else {}), **facts)
        self.code = code
        self.reason = reason
        self.retryable = retry_after("WebSocket", code) is Retry.ALWAYS


class ReplicationError(TrioP2PError):
    """A replication ended without having done its work.

    `status` is the HTTP status or WebSocket close code behind it, or None; the cause is chained.
    `retryable` takes into account whether it is continuous, and so waits for the network.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retryable: bool = False, **facts: Any
    ) -> None:
        super().__init__(message, **facts)
        self.status = status
        self.retryable = retryable


class CallbackError(TrioP2PError):
    """A function given by the user raised; its exception is chained.

    That of a filter is `retryable`: the document is put to it again later.
    """
