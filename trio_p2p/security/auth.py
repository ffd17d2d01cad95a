"""Who a peer is: names and passwords (HTTP's Basic scheme, RFC 7617) and client certificates.

Of each there is the side that shows and the side that asks. What is shown goes out only once the
server is trusted, and stands in no `repr`.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, Self, runtime_checkable

import trio
from cryptography import x509

from trio_p2p.callbacks import failure_of
from trio_p2p.errors import CallbackError, ConfigurationError
from trio_p2p.security.anonymous import REPLICATOR_LABEL, AnonymousIdentity
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.keystore import KeyStore
from trio_p2p.security.passwords import PasswordFile
from trio_p2p.security.trust import ClientTrust, Roots, parse_roots
from trio_p2p.settings import check_types

CertificateCallback = Callable[[tuple[x509.Certificate, ...]], bool | Awaitable[bool]]


# --- Showing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BasicAuthenticator:
    """The name and password a replicator shows to a listener; only over TLS are they secret.

    Raises: ConfigurationError if one is no text, or for a name with a colon, which HTTP's Basic
    scheme cannot tell.
    """

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        check_types(self, BasicAuthenticator)
        if ":" in self.username:
            # What stands behind the colon may well be the password: it is not repeated.
            raise ConfigurationError("a user name has no ':'")

    def header(self) -> tuple[str, str]:
        """The header that carries them."""
        credentials = f"{self.username}:{self.password}".encode()
        return "Authorization", "Basic " + base64.b64encode(credentials).decode("ascii")


class ClientCertificateAuthenticator:
    """The identity a replicator presents to a listener that asks for a certificate.

    None is an anonymous one, made once, kept in `key_store` (None: the default one), and renewed
    before it expires.
    """

    def __init__(
        self, identity: TLSIdentity | None = None, *, key_store: KeyStore | None = None
    ) -> None:
        self._identity = identity
        self._anonymous = AnonymousIdentity(REPLICATOR_LABEL, key_store)

    def __repr__(self) -> str:
        return f"ClientCertificateAuthenticator({self._identity!r})"

    async def identity(self, now: datetime) -> TLSIdentity:
        """The identity to present now (aware). Raises: ConfigurationError, KeyStoreError.

        Cancelling: safe.
        """
        if self._identity is not None:
            await trio.lowlevel.checkpoint()
            return self._identity
        return await self._anonymous.current(now)


# --- Asking --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Client:
    """What a client shows: its Authorization header, and its certificates, leaf first."""

    authorization: str | None = None
    certificates: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """The client may come in; `user` is the name it proved to have, where it was asked for one."""

    user: str | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """The client may not come in: an HTTP status, a reason for people, a challenge if there is one.

    `wrong`: it tried, and what it showed was not right.
    """

    status: int
    reason: str
    challenge: str | None = None
    wrong: bool = False


@runtime_checkable
class ListenerAuthenticator(Protocol):
    """Decides which clients a listener lets in."""

    @property
    def clients(self) -> ClientTrust | None:
        """What certificate a client must present in the TLS handshake; None: it is not asked."""

    def recognises(self, client: Client) -> bool:
        """Whether it knows already that it will let this client in. Takes no time."""

    async def admit(self, client: Client) -> Admitted | Denied:
        """Decide. Raises: CallbackError if a function of the user's raised. Cancelling: safe."""


class ListenerPasswordAuthenticator:
    """Asks `callback(username, password)`, sync or async, whether a client may come in.

    The callback should take the same time for every answer: `same_secret` compares two passwords
    so. One that takes long must be async. `from_file` makes one that knows hashed passwords.
    """

    clients = None

    def __init__(self, callback: Callable[[str, str], bool | Awaitable[bool]]) -> None:
        self._callback = callback
        self._remembers: Callable[[str, str], bool] = lambda username, password: False

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Let in the users of a password file, as `trio-p2p passwd` writes it.

        It is read again when it changes. Raises: ConfigurationError if it cannot be read now.
        """
        file = PasswordFile(path)
        authenticator = cls(file.check)
        authenticator._remembers = file.remembers
        return authenticator

    def recognises(self, client: Client) -> bool:
        """See `ListenerAuthenticator.recognises`."""
        credentials = _parse(client.authorization)
        try:
            return credentials is not None and self._remembers(*credentials)
        except ConfigurationError:
            return False  # The file has changed and cannot be read: `admit` will tell.

    async def admit(self, client: Client) -> Admitted | Denied:
        """See `ListenerAuthenticator.admit`."""
        await trio.lowlevel.checkpoint()
        credentials = _parse(client.authorization)
        if credentials is not None and await _ask("password", self._callback, *credentials):
            return Admitted(credentials[0])
        challenge = 'Basic realm="trio_p2p", charset="UTF-8"'
        wrong = credentials is not None
        return Denied(401, "wrong user name or password", challenge, wrong)


class ListenerCertificateAuthenticator:
    """Lets in clients by their certificates, which TLS makes them present and prove.

    Either `root_certificates` (PEM, DER or objects): a client's certificate must be one of them, or
    lead to one through valid certificates, and be for clients; a self-signed one given as root
    admits itself. Or `callback(chain)`, sync or async, leaf first: it decides alone, and nothing of
    what the certificates say has been checked before but that the client has the leaf's key.

    Raises: ConfigurationError for none or both of them.
    """

    def __init__(
        self,
        root_certificates: Roots | None = None,
        *,
        callback: CertificateCallback | None = None,
    ) -> None:
        if (root_certificates is None) == (callback is None):
            raise ConfigurationError("give either root_certificates or a callback")
        roots = None if root_certificates is None else parse_roots(root_certificates)
        self.clients = ClientTrust(roots)
        self._callback = callback

    def recognises(self, client: Client) -> bool:
        """See `ListenerAuthenticator.recognises`."""
        return self._callback is None and bool(client.certificates)

    async def admit(self, client: Client) -> Admitted | Denied:
        """See `ListenerAuthenticator.admit`."""
        await trio.lowlevel.checkpoint()
        if not client.certificates:  # A transport of the user's own, without our TLS.
            return Denied(403, "a client certificate is asked for")
        if self._callback is None or await _ask("certificate", self._callback, client.certificates):
            return Admitted()
        return Denied(403, "the client certificate was refused", wrong=True)


async def _ask(
    kind: str, callback: Callable[..., bool | Awaitable[bool]], *arguments: object
) -> bool:
    """What a callback says; anything but True is a no. Raises: CallbackError."""
    try:
        verdict = callback(*arguments)
        if inspect.isawaitable(verdict):
            verdict = await verdict
    except (Exception, BaseExceptionGroup) as exc:  # The guard around a function of the user's.
        failure = failure_of(exc)
        if failure is None:
            raise
        raise CallbackError(f"the {kind} callback raised") from failure
    return verdict is True


def _parse(header: str | None) -> tuple[str, str] | None:
    """Name and password from the header's value; None if it is anything else."""
    scheme, _, encoded = (header or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        credentials = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    username, colon, password = credentials.partition(":")
    return (username, password) if colon else None
