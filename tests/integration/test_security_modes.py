"""Every way to listen against every way to connect, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import security_modes as modes
from cryptography.hazmat.primitives.serialization import Encoding
from security_modes import Outcome

import trio_p2p
from trio_p2p import limits

# Certificates are judged by the time, which has to be the real one.
SHORT_TIMEOUT_S = 0.2


@pytest.fixture
def system_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of root certificates that OpenSSL takes for the system's."""
    path = tmp_path / "roots.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "no-directory"))
    return path


def know(system_roots: Path, trusting: modes.Trusting) -> None:
    system_roots.write_bytes(trusting.system_root.public_bytes(Encoding.PEM))


@asynccontextmanager
async def open_databases(
    path: Path,
) -> AsyncIterator[tuple[trio_p2p.Database, trio_p2p.Database]]:
    async with (
        trio_p2p.open_database(path / "shop.p2p") as shop,
        trio_p2p.open_database(path / "till.p2p") as till,
    ):
        await shop.default_collection.put("apple", {"price": 120})
        yield shop, till


def listening(shop: trio_p2p.Database, **settings: Any) -> Any:
    return trio_p2p.open_listener(
        trio_p2p.URLEndpointListenerConfiguration(
            collections=[shop.default_collection],
            network_interface=modes.HOST,
            key_store=trio_p2p.MemoryKeyStore(),
            **settings,
        )
    )


async def outcome_of(till: trio_p2p.Database, url: str, **settings: Any) -> Outcome:
    """Connect as told, and tell what came of it."""
    try:
        await trio_p2p.replicate(
            trio_p2p.ReplicatorConfiguration(
                target=url, collections=[till.default_collection], max_attempts=1, **settings
            )
        )
    except trio_p2p.ConfigurationError as exc:
        return Outcome(type(exc).__name__)
    except trio_p2p.ReplicationError as exc:
        cause: BaseException | None = exc
        while type(cause) is trio_p2p.ReplicationError:
            cause = cause.__cause__
        return Outcome(type(cause).__name__, exc.status, exc.retryable)
    assert till.default_collection.get("apple") is not None
    return modes.OK


@pytest.mark.behaviour("T1a", "T1b", "T2a", "T2b", "T3", "T5", "T6", "G5")
@pytest.mark.parametrize("row", modes.SERVERS)
async def test_whom_a_replicator_trusts(tmp_path: Path, system_roots: Path, row: str) -> None:
    server = modes.SERVERS[row]
    seen = []
    async with (
        open_databases(tmp_path) as (shop, till),
        listening(shop, **server.settings()) as listener,
    ):
        url = listener.urls[0].replace("wss://", "ws://").replace("ws://", f"{server.scheme}://")
        identity = listener.tls_identity or modes.KNOWN
        for trusting in modes.TRUSTING.values():
            know(system_roots, trusting)
            settings = trusting.settings(identity.certificates[0])
            seen.append(await outcome_of(till, url, **settings))
    assert dict(zip(modes.TRUSTING, seen, strict=True)) == dict(
        zip(modes.TRUSTING, modes.TRUST_TABLE[row], strict=True)
    )


@pytest.mark.behaviour("L10", "L11", "L12", "L13", "T7")
@pytest.mark.parametrize("disable_tls", [False, True])
@pytest.mark.parametrize("row", modes.AUTHENTICATORS)
async def test_whom_a_listener_admits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, disable_tls: bool
) -> None:
    if "never answers" in row:
        monkeypatch.setattr(limits, "AUTHENTICATOR_TIMEOUT_S", SHORT_TIMEOUT_S)
    monkeypatch.setattr(limits, "LOGIN_WAIT_S_MAX", 0.0)
    authenticator = modes.AUTHENTICATORS[row]
    seen = []
    async with open_databases(tmp_path) as (shop, till):
        if disable_tls and isinstance(authenticator, trio_p2p.ListenerCertificateAuthenticator):
            with pytest.raises(trio_p2p.ConfigurationError):
                listening(shop, authenticator=authenticator, disable_tls=True)
            return
        expected = modes.ADMISSION_TABLE[row]
        async with listening(
            shop, authenticator=authenticator, disable_tls=disable_tls
        ) as listener:
            for showing in modes.SHOWING.values():
                settings = {
                    "authenticator": showing.authenticator,
                    "accept_only_self_signed_server_certificate": not disable_tls,
                }
                seen.append(await outcome_of(till, listener.urls[0], **settings))
        if disable_tls:
            expected = [
                modes.MISCONFIGURED if showing.is_certificate else outcome
                for showing, outcome in zip(modes.SHOWING.values(), expected, strict=True)
            ]
    assert dict(zip(modes.SHOWING, seen, strict=True)) == dict(
        zip(modes.SHOWING, expected, strict=True)
    )


MAIN_SERVERS = ("anonymous", "self-signed", "of an authority", "of an authority, expired")
MAIN_AUTHENTICATORS = ("nobody asks", "password", "certificate: roots", "certificate: callback")
MAIN_SHOWING = ("nothing", "right password", "certificate of the authority", "expired", "revoked")


@pytest.mark.parametrize("who_asks", MAIN_AUTHENTICATORS)
@pytest.mark.parametrize("row", MAIN_SERVERS)
async def test_what_is_shown_counts_only_once_the_server_is_trusted(
    tmp_path: Path,
    system_roots: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: str,
    who_asks: str,
) -> None:
    """The two tables combined: trust comes first, whatever is asked and shown."""
    monkeypatch.setattr(limits, "LOGIN_WAIT_S_MAX", 0.0)
    trust = dict(zip(modes.TRUSTING, modes.TRUST_TABLE[row], strict=True))
    admission = dict(zip(modes.SHOWING, modes.ADMISSION_TABLE[who_asks], strict=True))
    expected, seen = {}, {}
    async with (
        open_databases(tmp_path) as (shop, till),
        listening(
            shop,
            **modes.SERVERS[row].settings(),
            authenticator=modes.AUTHENTICATORS[who_asks],
        ) as listener,
    ):
        leaf = listener.tls_identity.certificates[0]
        for column, trusting in modes.TRUSTING.items():
            know(system_roots, trusting)
            for shown in MAIN_SHOWING:
                settings = trusting.settings(leaf)
                settings["authenticator"] = modes.SHOWING[shown].authenticator
                pair = (column, shown)
                seen[pair] = await outcome_of(till, listener.urls[0], **settings)
                expected[pair] = trust[column] if trust[column].error else admission[shown]
    assert seen == expected


def test_the_documentation_shows_these_tables() -> None:
    page = modes.PAGE.read_text()
    assert modes.filled(page) == page, "run tests/integration/security_modes.py"


@pytest.mark.behaviour("L14b")
async def test_listeners_of_one_database_have_settings_of_their_own(tmp_path: Path) -> None:
    async with (
        open_databases(tmp_path) as (shop, till),
        listening(shop, disable_tls=True) as plain,
        listening(shop, authenticator=modes.AUTHENTICATORS["password"]) as by_password,
        listening(
            shop,
            tls_identity=modes.KNOWN,
            authenticator=modes.AUTHENTICATORS["certificate: roots"],
        ) as by_certificate,
    ):
        right, known = (
            modes.SHOWING[name].authenticator
            for name in ("right password", "known self-signed one")
        )
        rows = [
            (plain, modes.OK, modes.OK, modes.MISCONFIGURED),
            (by_password, modes.WRONG_PASSWORD, modes.OK, modes.WRONG_PASSWORD),
            (by_certificate, modes.NO_CERTIFICATE, modes.NO_CERTIFICATE, modes.OK),
        ]
        for listener, *expected in rows:
            trusting = {"accept_only_self_signed_server_certificate": listener is not plain}
            seen = [
                await outcome_of(till, listener.urls[0], authenticator=shown, **trusting)
                for shown in (None, right, known)
            ]
            assert seen == expected
        assert plain.tls_identity is None
        assert by_certificate.tls_identity is modes.KNOWN
        assert by_password.tls_identity is not None
