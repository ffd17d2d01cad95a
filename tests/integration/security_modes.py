"""Every way to listen and every way to connect, and what comes of each pair.

The tables below are what the tests expect and what the documentation shows. Run this file to write
them into the documentation.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from cryptography import x509

import trio_p2p
from trio_p2p.security.trust import fingerprint
from trio_p2p.testing.certificates import Authority

PAGE = Path(__file__).parents[2] / "docs/topics/security.md"

HOST = "127.0.0.1"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Outcome:
    """What comes of one pair. `error` is None if they connect, else the cause's class."""

    error: str | None = None
    status: int | None = None
    retryable: bool = False

    def __str__(self) -> str:
        if self.error is None:
            return "connects"
        status = "" if self.status is None else f" {self.status}"
        return f"`{self.error}`{status}" + (", retried" if self.retryable else "")


OK = Outcome()
UNTRUSTED = Outcome("TrustError")
MISCONFIGURED = Outcome("ConfigurationError")
NO_TLS = Outcome("HandshakeError")
ONLY_TLS = Outcome("HandshakeError", 400)
WRONG_PASSWORD = Outcome("AuthError", 401)
NO_CERTIFICATE = Outcome("AuthError")
BAD_CERTIFICATE = Outcome("AuthError")
REFUSED = Outcome("HandshakeError", 403)
FAILED = Outcome("HandshakeError", 500)
LATER = Outcome("HandshakeError", 503, retryable=True)


class Authorities:
    """Who vouches for whom: made once, used by all rows and columns."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.root = Authority(self.now)
        self.below = Authority(self.now, common_name="below", issuer=self.root)
        self.powerless = Authority(
            self.now, common_name="powerless", issuer=self.root, may_sign=False
        )
        self.stranger = Authority(self.now, common_name="stranger")

    def server(
        self, *, signer: Authority | None = None, address: str = HOST, **settings: Any
    ) -> trio_p2p.TLSIdentity:
        return (signer or self.below).issue("server", addresses=[address], **settings)

    def client(self, *, signer: Authority | None = None, **settings: Any) -> trio_p2p.TLSIdentity:
        return (signer or self.below).issue("client", **settings)

    def self_signed(self, *, at: timedelta = timedelta(0), **settings: Any) -> trio_p2p.TLSIdentity:
        """One that signed itself, made `at` that time from now, for a day."""
        attributes = {"iPAddress": HOST}
        return trio_p2p.TLSIdentity.create(
            "self-signed", attributes=attributes, valid_for=DAY, now=self.now + at, **settings
        )


def leaf_only(identity: trio_p2p.TLSIdentity) -> trio_p2p.TLSIdentity:
    """The same without those who vouch for it."""
    return trio_p2p.TLSIdentity(identity.certificates[:1], identity.private_key)


AUTHORITIES = Authorities()
EXPIRED = {"ends": AUTHORITIES.now - HOUR}
EARLY = {"starts": AUTHORITIES.now + HOUR}

# --- Trusting the server -------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A row: what a listener shows. `scheme` is what the replicator asks for."""

    identity: trio_p2p.TLSIdentity | None = None
    disable_tls: bool = False
    scheme: str = "wss"

    def settings(self) -> dict[str, Any]:
        return {"disable_tls": self.disable_tls, "tls_identity": self.identity}


SERVERS: Mapping[str, Server] = {
    "no TLS": Server(disable_tls=True, scheme="ws"),
    "no TLS, asked for `wss://`": Server(disable_tls=True),
    "anonymous, asked for `ws://`": Server(scheme="ws"),
    "anonymous": Server(),
    "self-signed": Server(AUTHORITIES.self_signed()),
    "self-signed, expired": Server(AUTHORITIES.self_signed(at=-2 * DAY)),
    "self-signed, not valid yet": Server(AUTHORITIES.self_signed(at=2 * DAY)),
    "self-signed, for clients only": Server(AUTHORITIES.self_signed(usages=[trio_p2p.CLIENT_AUTH])),
    "of an authority": Server(AUTHORITIES.server()),
    "of an authority, expired": Server(AUTHORITIES.server(**EXPIRED)),
    "of an authority, not valid yet": Server(AUTHORITIES.server(**EARLY)),
    "of an authority, for another host": Server(AUTHORITIES.server(address="192.0.2.7")),
    "of an authority, for clients only": Server(AUTHORITIES.server(usages=[trio_p2p.CLIENT_AUTH])),
    "of one that may not sign": Server(AUTHORITIES.server(signer=AUTHORITIES.powerless)),
    "broken chain": Server(leaf_only(AUTHORITIES.server())),
}

Settings = dict[str, Any]


@dataclass(frozen=True)
class Trusting:
    """A column: whom a replicator trusts. `leaf` is the server's certificate."""

    settings: Callable[[x509.Certificate], Settings]
    system_root: x509.Certificate = AUTHORITIES.root.certificate


TRUSTING: Mapping[str, Trusting] = {
    "nothing set, the system knows the authority": Trusting(lambda leaf: {}),
    "nothing set, it does not": Trusting(
        lambda leaf: {}, system_root=AUTHORITIES.stranger.certificate
    ),
    "roots: the authority": Trusting(
        lambda leaf: {"trusted_root_certificates": [AUTHORITIES.root.certificate]},
        system_root=AUTHORITIES.stranger.certificate,
    ),
    "roots: the server's own": Trusting(lambda leaf: {"trusted_root_certificates": [leaf]}),
    "self-signed only": Trusting(lambda leaf: {"accept_only_self_signed_server_certificate": True}),
    "pinned: the server's own": Trusting(
        lambda leaf: {"pinned_server_certificate": fingerprint(leaf).hex()}
    ),
    "pinned: the authority": Trusting(
        lambda leaf: {"pinned_server_certificate": AUTHORITIES.root.certificate}
    ),
    "pinned: another": Trusting(
        lambda leaf: {"pinned_server_certificate": AUTHORITIES.stranger.certificate}
    ),
}

_ = UNTRUSTED
TRUST_TABLE: Mapping[str, list[Outcome]] = {
    "no TLS": [OK, OK, *[MISCONFIGURED] * 6],
    "no TLS, asked for `wss://`": [NO_TLS] * 8,
    "anonymous, asked for `ws://`": [ONLY_TLS, ONLY_TLS, *[MISCONFIGURED] * 6],
    "anonymous": [_, _, _, _, OK, OK, _, _],
    "self-signed": [_, _, _, OK, OK, OK, _, _],
    "self-signed, expired": [_, _, _, _, _, OK, _, _],
    "self-signed, not valid yet": [_, _, _, _, _, OK, _, _],
    "self-signed, for clients only": [_, _, _, _, _, OK, _, _],
    "of an authority": [OK, _, OK, OK, _, OK, OK, _],
    "of an authority, expired": [_, _, _, _, _, OK, _, _],
    "of an authority, not valid yet": [_, _, _, _, _, OK, _, _],
    "of an authority, for another host": [_, _, _, _, _, OK, OK, _],
    "of an authority, for clients only": [_, _, _, _, _, OK, _, _],
    "of one that may not sign": [_, _, _, _, _, OK, _, _],
    "broken chain": [_, _, _, OK, _, OK, _, _],
}

# --- Admitting the client ------------------------------------------------------------------------

REVOKED = AUTHORITIES.client()
KNOWN = AUTHORITIES.self_signed()
RIGHT = ("ann", "s3cret")


def is_right(user: str, password: str) -> bool:
    return trio_p2p.same_secret(user, RIGHT[0]) and trio_p2p.same_secret(password, RIGHT[1])


async def is_right_async(user: str, password: str) -> bool:
    await trio.lowlevel.checkpoint()
    return is_right(user, password)


def is_not_revoked(chain: tuple[x509.Certificate, ...]) -> bool:
    return chain[0].serial_number != REVOKED.certificates[0].serial_number


async def is_not_revoked_async(chain: tuple[x509.Certificate, ...]) -> bool:
    await trio.lowlevel.checkpoint()
    return is_not_revoked(chain)


def fails(*asked: object) -> bool:
    raise LookupError("the authenticator's own failure")


async def never_answers(*asked: object) -> bool:
    await trio.sleep_forever()
    raise AssertionError


Authenticator = (
    trio_p2p.ListenerPasswordAuthenticator | trio_p2p.ListenerCertificateAuthenticator | None
)
PasswordCallback = Callable[[str, str], bool | Awaitable[bool]]
by_password = trio_p2p.ListenerPasswordAuthenticator
by_certificate = trio_p2p.ListenerCertificateAuthenticator

AUTHENTICATORS: Mapping[str, Authenticator] = {
    "nobody asks": None,
    "password": by_password(is_right),
    "password, async": by_password(is_right_async),
    "password, the callback fails": by_password(fails),
    "password, it never answers": by_password(never_answers),
    "certificate: roots": by_certificate([AUTHORITIES.root.certificate, KNOWN.certificates[0]]),
    "certificate: callback": by_certificate(callback=is_not_revoked),
    "certificate: callback, async": by_certificate(callback=is_not_revoked_async),
    "certificate: the callback fails": by_certificate(callback=fails),
    "certificate: it never answers": by_certificate(callback=never_answers),
}


@dataclass(frozen=True)
class Showing:
    """A column: what a replicator shows."""

    authenticator: Any = None
    is_certificate: bool = field(init=False)

    def __post_init__(self) -> None:
        kind = trio_p2p.ClientCertificateAuthenticator
        object.__setattr__(self, "is_certificate", isinstance(self.authenticator, kind))


def certificate(identity: trio_p2p.TLSIdentity) -> Showing:
    return Showing(trio_p2p.ClientCertificateAuthenticator(identity))


SHOWING: Mapping[str, Showing] = {
    "nothing": Showing(),
    "right password": Showing(trio_p2p.BasicAuthenticator(*RIGHT)),
    "wrong password": Showing(trio_p2p.BasicAuthenticator("ann", "guess")),
    "certificate of the authority": certificate(AUTHORITIES.client()),
    "known self-signed one": certificate(KNOWN),
    "anonymous one": Showing(
        trio_p2p.ClientCertificateAuthenticator(key_store=trio_p2p.MemoryKeyStore())
    ),
    "of another authority": certificate(AUTHORITIES.client(signer=AUTHORITIES.stranger)),
    "expired": certificate(AUTHORITIES.client(**EXPIRED)),
    "not valid yet": certificate(AUTHORITIES.client(**EARLY)),
    "for servers only": certificate(AUTHORITIES.client(usages=[trio_p2p.SERVER_AUTH])),
    "of one that may not sign": certificate(AUTHORITIES.client(signer=AUTHORITIES.powerless)),
    "broken chain": certificate(leaf_only(AUTHORITIES.client())),
    "revoked": certificate(REVOKED),
}

_CALLBACK = [*[NO_CERTIFICATE] * 3, *[OK] * 9, REFUSED]
_BY_PASSWORD = [WRONG_PASSWORD, OK, WRONG_PASSWORD, *[WRONG_PASSWORD] * 10]

ADMISSION_TABLE: Mapping[str, list[Outcome]] = {
    "nobody asks": [OK] * 13,
    "password": _BY_PASSWORD,
    "password, async": _BY_PASSWORD,
    "password, the callback fails": [WRONG_PASSWORD, FAILED, FAILED, *[WRONG_PASSWORD] * 10],
    "password, it never answers": [WRONG_PASSWORD, LATER, LATER, *[WRONG_PASSWORD] * 10],
    "certificate: roots": [*[NO_CERTIFICATE] * 3, OK, OK, *[BAD_CERTIFICATE] * 7, OK],
    "certificate: callback": _CALLBACK,
    "certificate: callback, async": _CALLBACK,
    "certificate: the callback fails": [*[NO_CERTIFICATE] * 3, *[FAILED] * 10],
    "certificate: it never answers": [*[NO_CERTIFICATE] * 3, *[LATER] * 10],
}


# --- For the documentation -----------------------------------------------------------------------


def tables() -> dict[str, str]:
    """The tables as Markdown, by name."""
    admission = {
        shown: [row[place] for name, row in ADMISSION_TABLE.items() if "async" not in name]
        for place, shown in enumerate(SHOWING)
    }
    askers = [name for name in ADMISSION_TABLE if "async" not in name]
    return {
        "trust": _markdown("the listener's certificate", TRUSTING, TRUST_TABLE),
        "admission": _markdown("what the replicator shows", askers, admission),
    }


def _markdown(corner: str, columns: Iterable[str], table: Mapping[str, list[Outcome]]) -> str:
    head = [corner, *columns]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *map(str, outcomes)] for name, outcomes in table.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def filled(page: str) -> str:
    """The page with the tables as they are now."""
    for name, table in tables().items():
        pattern = re.compile(f"(<!-- table: {name} -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
        assert pattern.search(page), name
        page = pattern.sub(lambda found, table=table: found[1] + table + found[2], page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
