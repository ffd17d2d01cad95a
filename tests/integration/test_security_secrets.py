"""What is secret stays so: in logs, in errors, in anything that can be printed."""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import trio_p2p
from trio_p2p.testing.certificates import Authority

PASSWORD = "s3cret-Passw0rd"
HEADER_SECRET = "s3ssion-c00kie"
SECRETS = (
    PASSWORD,
    HEADER_SECRET,
    base64.b64encode(f"ann:{PASSWORD}".encode()).decode(),
)


@asynccontextmanager
async def open_peers(path: Path, **settings: Any) -> AsyncIterator[tuple[Any, trio_p2p.Database]]:
    """A listener with these settings, and another database."""
    async with (
        trio_p2p.open_database(path / "shop.p2p") as shop,
        trio_p2p.open_database(path / "till.p2p") as till,
    ):
        defaults = {
            "collections": [shop.default_collection],
            "network_interface": "127.0.0.1",
            "key_store": trio_p2p.MemoryKeyStore(),
        }
        config = trio_p2p.URLEndpointListenerConfiguration(**(defaults | settings))
        async with trio_p2p.open_listener(config) as listener:
            yield listener, till


def replicating(
    till: trio_p2p.Database, url: str, **settings: Any
) -> trio_p2p.ReplicatorConfiguration:
    defaults = {
        "target": url,
        "collections": [till.default_collection],
        "authenticator": trio_p2p.BasicAuthenticator("ann", PASSWORD),
        "headers": {"Cookie": HEADER_SECRET},
        "accept_only_self_signed_server_certificate": url.startswith("wss:"),
        "max_attempts": 1,
    }
    return trio_p2p.ReplicatorConfiguration(**(defaults | settings))


async def everything_told(config: trio_p2p.ReplicatorConfiguration) -> str:
    """All that can be printed of a replication: itself, its status, its error with its causes."""
    replicator = trio_p2p.Replicator(config)
    await replicator.run()
    error = replicator.status.error
    told = [config, replicator, replicator.status, replicator.statistics(), replicator.result()]
    text = "\n".join(map(repr, told)) + "\n".join(map(str, told))
    if error is not None:
        text += "".join(traceback.format_exception(error)) + repr(error.facts)
    return text


@pytest.mark.parametrize("disable_tls", [False, True])
async def test_passwords_show_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, disable_tls: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    verdicts: list[Any] = [True, False, LookupError("no table")]

    def decide(user: str, password: str) -> bool:
        assert (user, password) == ("ann", PASSWORD)
        verdict = verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return bool(verdict)

    authenticator = trio_p2p.ListenerPasswordAuthenticator(decide)
    settings = {"authenticator": authenticator, "disable_tls": disable_tls}
    async with open_peers(tmp_path, **settings) as (listener, till):
        url = listener.urls[0]
        text = ""
        for target in (url, url, url, url.replace("/shop", "/nowhere")):
            verdicts = verdicts or [True]
            text += await everything_told(replicating(till, target))
        text += repr(listener.configuration) + repr(listener) + repr(authenticator)
        text += repr(listener.connections()) + repr(listener.status)
    text += caplog.text
    assert "no table" in text
    assert "wrong user name" in text
    assert "no such database" in text
    for secret in SECRETS:
        assert secret not in text


@pytest.mark.parametrize("is_trusted", [False, True])
async def test_a_server_that_is_not_trusted_sees_no_password(
    tmp_path: Path, is_trusted: bool
) -> None:
    seen = []

    def note(user: str, password: str) -> bool:
        seen.append(password)
        return True

    authenticator = trio_p2p.ListenerPasswordAuthenticator(note)
    async with open_peers(tmp_path, authenticator=authenticator) as (listener, till):
        pin = listener.tls_identity.fingerprint if is_trusted else "00" * 32
        await everything_told(replicating(till, listener.urls[0], pinned_server_certificate=pin))
    assert seen == ([PASSWORD] if is_trusted else [])


async def test_a_header_that_http_forbids_is_not_repeated(tmp_path: Path) -> None:
    async with trio_p2p.open_database(tmp_path / "till.p2p") as till:
        for name, value in (
            ("Cookie", f"{HEADER_SECRET}\r\nX: y"),
            ("Cookie", f" {HEADER_SECRET}"),
            ("Coo kie", HEADER_SECRET),
        ):
            with pytest.raises(trio_p2p.ConfigurationError) as caught:
                replicating(till, "wss://127.0.0.1/shop", headers={name: value})
            assert HEADER_SECRET not in "".join(traceback.format_exception(caught.value))


async def test_private_keys_show_nowhere(tmp_path: Path) -> None:
    identity = trio_p2p.TLSIdentity.create("till")
    shown = trio_p2p.ClientCertificateAuthenticator(identity)
    key = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    number = str(identity.private_key.private_numbers().private_value)
    async with open_peers(tmp_path, tls_identity=identity) as (listener, till):
        config = replicating(till, listener.urls[0], authenticator=shown)
        text = await everything_told(config)
        text += repr(listener.configuration) + repr(identity) + repr(shown)
    for secret in (number, *key.decode().splitlines()[1:-1]):
        assert secret not in text


# --- What is not secret, and is told -------------------------------------------------------------


@pytest.mark.behaviour("T8")
@pytest.mark.parametrize(
    ("is_signed", "settings"),
    [
        (False, {"accept_only_self_signed_server_certificate": False}),
        (False, {"pinned_server_certificate": "00" * 32}),
        (True, {}),
    ],
)
async def test_the_certificate_of_a_server_that_is_not_trusted_can_be_looked_at(
    tmp_path: Path, is_signed: bool, settings: dict[str, Any]
) -> None:
    identity = Authority(datetime.now(UTC)).issue("till") if is_signed else None
    async with open_peers(tmp_path, tls_identity=identity) as (listener, till):
        replicator = trio_p2p.Replicator(replicating(till, listener.urls[0], **settings))
        assert replicator.server_certificate is None
        await replicator.run()
        assert isinstance(replicator.status.error, trio_p2p.ReplicationError)
        assert isinstance(replicator.status.error.__cause__, trio_p2p.TrustError)
        assert replicator.server_certificate == listener.tls_identity.certificates[0]


@pytest.mark.behaviour("L18", "T7")
async def test_both_sides_can_look_at_the_certificate_of_the_other(tmp_path: Path) -> None:
    ours = trio_p2p.TLSIdentity.create("till")
    authenticator = trio_p2p.ListenerCertificateAuthenticator(ours.certificates)
    async with open_peers(tmp_path, authenticator=authenticator) as (listener, till):
        shown = trio_p2p.ClientCertificateAuthenticator(ours)
        config = replicating(till, listener.urls[0], authenticator=shown, continuous=True)
        async with trio_p2p.open_replicator(config) as replicator:
            await replicator.wait_for(trio_p2p.ActivityLevel.IDLE)
            [connection] = listener.connections()
            assert connection.certificate == ours.certificates[0]
            assert replicator.server_certificate == listener.tls_identity.certificates[0]


async def test_an_anonymous_client_is_the_same_one_after_a_restart(tmp_path: Path) -> None:
    seen = []

    def note(chain: tuple[Any, ...]) -> bool:
        seen.append(chain[0])
        return True

    authenticator = trio_p2p.ListenerCertificateAuthenticator(callback=note)
    async with open_peers(tmp_path, authenticator=authenticator) as (listener, till):
        for _ in range(2):
            store = trio_p2p.FileKeyStore(tmp_path / "keys")
            shown = trio_p2p.ClientCertificateAuthenticator(key_store=store)
            await trio_p2p.replicate(replicating(till, listener.urls[0], authenticator=shown))
    assert seen[0] == seen[1]


async def test_a_listener_renews_its_anonymous_identity_while_it_runs(tmp_path: Path) -> None:
    now = [trio_p2p.TLSIdentity.create("x").certificates[0].not_valid_before_utc.timestamp()]
    async with (
        trio_p2p.open_database(tmp_path / "shop.p2p", clock=lambda: int(now[0] * 10**9)) as shop,
        trio_p2p.open_database(tmp_path / "till.p2p", clock=lambda: int(now[0] * 10**9)) as till,
    ):
        config = trio_p2p.URLEndpointListenerConfiguration(
            collections=[shop.default_collection],
            network_interface="127.0.0.1",
            key_store=trio_p2p.MemoryKeyStore(),
        )
        seen = []
        async with trio_p2p.open_listener(config) as listener:
            for _ in range(4):
                replicator = trio_p2p.Replicator(replicating(till, listener.urls[0]))
                await replicator.run()
                assert replicator.status.error is None
                assert listener.tls_identity.certificates[0] == replicator.server_certificate
                seen.append(listener.tls_identity.fingerprint)
                now[0] += 200 * 24 * 3600  # Every second one is in its last days.
    assert [seen[0] == seen[1], seen[1] == seen[2], len(set(seen))] == [True, False, 2]
