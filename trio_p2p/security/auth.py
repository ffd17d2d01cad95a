"""Names and passwords, as HTTP's Basic scheme carries them (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from trio_p2p.errors import CallbackError, ConfigurationError


@dataclass(frozen=True, slots=True)
class BasicAuthenticator:
    """The name and password a replicator shows to a listener; only over TLS are they secret."""

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if ":" in self.username:
            raise ConfigurationError("a user name has no ':'", username=self.username)

    def header(self) -> tuple[str, str]:
        """The header that carries them."""
        credentials = f"{self.username}:{self.password}".encode()
        return "Authorization", "Basic " + base64.b64encode(credentials).decode("ascii")


@dataclass(frozen=True, slots=True)
class ListenerPasswordAuthenticator:
    """Asks `callback(username, password)`, sync or async, whether a client may come in."""

    callback: Callable[[str, str], bool | Awaitable[bool]]

    async def authenticate(self, header: str | None) -> str | None:
        """The user that an Authorization header admits, or None.

        Raises: CallbackError if the callback raised. Cancelling: safe; cancels the callback.
        """
        await trio.lowlevel.checkpoint()
        credentials = _parse(header)
        if credentials is None:
            return None
        try:
            verdict = self.callback(*credentials)
            if inspect.isawaitable(verdict):
                verdict = await verdict
        except Exception as exc:  # The guard around a function of the user's.
            raise CallbackError("the password callback raised") from exc
        return credentials[0] if verdict is True else None


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
