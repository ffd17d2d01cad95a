"""Listener and replicator over real sockets on loopback, with TLS."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_p2p
from trio_p2p import ActivityLevel


def passes(user: str, password: str) -> bool:
    return (user, password) == ("ann", "s3cret")


@asynccontextmanager
async def open_pair(path: Path) -> AsyncIterator[tuple[trio_p2p.Database, trio_p2p.Database]]:
    async with (
        trio_p2p.open_database(path / "shop.p2p") as shop,
        trio_p2p.open_database(path / "till.p2p") as till,
    ):
        yield shop, till


def listening(
    database: trio_p2p.Database, **settings: Any
) -> trio_p2p.URLEndpointListenerConfiguration:
    defaults = {
        "collections": [database.default_collection],
        "network_interface": "127.0.0.1",
        "key_store": trio_p2p.MemoryKeyStore(),
    }
    return trio_p2p.URLEndpointListenerConfiguration(**(defaults | settings))


def replicating(
    database: trio_p2p.Database, url: str, **settings: Any
) -> trio_p2p.ReplicatorConfiguration:
    defaults = {
        "target": url,
        "collections": [database.default_collection],
        "accept_only_self_signed_server_certificate": url.startswith("wss:"),
        "max_attempts": 1,
    }
    return trio_p2p.ReplicatorConfiguration(**(defaults | settings))


@pytest.mark.behaviour("L8")
@pytest.mark.parametrize("disable_tls", [False, True])
async def test_both_directions_are_synced_and_counted(tmp_path: Path, disable_tls: bool) -> None:
    async with open_pair(tmp_path) as (shop, till):
        await shop.default_collection.put("apple", {"price": 120})
        await till.default_collection.put("pear", {"price": 95})
        async with trio_p2p.open_listener(listening(shop, disable_tls=disable_tls)) as listener:
            config = replicating(till, listener.urls[0])
            first = await trio_p2p.replicate(config)
            second = await trio_p2p.replicate(config)
        assert (first.documents_pushed, first.documents_pulled) == (1, 1)
        assert (second.documents_pushed, second.documents_pulled) == (0, 0)
        for collection in (shop.default_collection, till.default_collection):
            assert [d.id async for d in collection.documents()] == ["apple", "pear"]


@pytest.mark.behaviour("L10", "W2a")
async def test_a_wrong_password_is_a_permanent_error_that_says_so(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, till):
        asked: list[tuple[str, str]] = []

        def check(user: str, password: str) -> bool:
            asked.append((user, password))
            return passes(user, password)

        authenticator = trio_p2p.ListenerPasswordAuthenticator(check)
        async with trio_p2p.open_listener(listening(shop, authenticator=authenticator)) as listener:
            for wrong in (None, trio_p2p.BasicAuthenticator("ann", "guess")):
                config = replicating(till, listener.urls[0], authenticator=wrong, max_attempts=None)
                with pytest.raises(trio_p2p.ReplicationError, match="wrong user name") as caught:
                    await trio_p2p.replicate(config)
                assert caught.value.status == 401
                assert not caught.value.retryable
            right = trio_p2p.BasicAuthenticator("ann", "s3cret")
            await trio_p2p.replicate(replicating(till, listener.urls[0], authenticator=right))
        assert asked == [("ann", "guess"), ("ann", "s3cret")]


@pytest.mark.behaviour("T1a", "T1b", "T5", "L14a", "G5")
async def test_the_servers_certificate_decides_who_is_trusted(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, till):
        async with trio_p2p.open_listener(listening(shop)) as listener:
            assert listener.tls_identity is not None
            url, pin = listener.urls[0], listener.tls_identity.fingerprint
            trusting: list[dict[str, Any]] = [
                {"pinned_server_certificate": pin},
                {
                    "pinned_server_certificate": pin,
                    "accept_only_self_signed_server_certificate": False,
                },
                {"pinned_server_certificate": listener.tls_identity.certificates[0]},
            ]
            for settings in trusting:
                await trio_p2p.replicate(replicating(till, url, **settings))
            refusing: list[dict[str, Any]] = [
                {"accept_only_self_signed_server_certificate": False},
                {"pinned_server_certificate": "00" * 32},
            ]
            for settings in refusing:
                with pytest.raises(trio_p2p.ReplicationError) as caught:
                    await trio_p2p.replicate(replicating(till, url, **settings))
                assert not caught.value.retryable
        assert listener.tls_identity is None
        assert listener.urls == []
        assert listener.port is None


@pytest.mark.behaviour("L14a")
async def test_the_anonymous_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, _):
        keys = trio_p2p.FileKeyStore(tmp_path / "keys")
        prints = []
        for _ in range(2):
            async with trio_p2p.open_listener(listening(shop, key_store=keys)) as listener:
                assert listener.tls_identity is not None
                prints.append(listener.tls_identity.fingerprint)
        assert prints[0] == prints[1]


async def test_a_continuous_replicator_follows_edits_on_both_sides(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, till):
        mine, theirs = till.default_collection, shop.default_collection
        async with trio_p2p.open_listener(listening(shop)) as listener:
            config = replicating(till, listener.urls[0], continuous=True)
            async with trio_p2p.open_replicator(config) as replicator:
                await replicator.wait_for(ActivityLevel.IDLE)
                await mine.put("pear", {"price": 95})
                await wait_document(theirs, "pear")
                await theirs.put("apple", {"price": 120})
                await wait_document(mine, "apple")
                assert replicator.server_certificate is not None
                assert listener.status.connection_count == 1
            assert replicator.status.activity is ActivityLevel.STOPPED
            assert replicator.status.error is None


@pytest.mark.behaviour("L16", "R19a")
async def test_a_listener_that_comes_back_is_found_again(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, till):
        keys = trio_p2p.MemoryKeyStore()
        async with trio_p2p.open_listener(listening(shop, key_store=keys)) as listener:
            url, port = listener.urls[0], listener.port
            config = replicating(
                till, url, continuous=True, max_attempts=None, max_attempt_wait=0.05
            )
            replicator = trio_p2p.Replicator(config)
            async with trio.open_nursery() as nursery:
                await nursery.start(replicator.run)
                await replicator.wait_for(ActivityLevel.IDLE)
                await listener.stop()
                offline = await replicator.wait_for(ActivityLevel.OFFLINE)
                assert offline.error is not None
                assert offline.error.retryable
                await till.default_collection.put("pear", {"price": 95})
                again = listening(shop, key_store=keys, port=port)
                async with trio_p2p.open_listener(again):
                    await wait_document(shop.default_collection, "pear")
                    await replicator.wait_for(ActivityLevel.IDLE)
                    await replicator.stop()
        assert replicator.status.error is None
        assert replicator.statistics().connections >= 2


async def test_a_peer_nobody_listens_for_is_a_failure_that_may_pass(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (_, till):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        config = replicating(
            till, f"wss://127.0.0.1:{port}/shop", max_attempts=3, max_attempt_wait=0.01
        )
        async with trio_p2p.open_replicator(config) as replicator:
            levels = {status.activity async for status in replicator.status_changes()}
        assert replicator.status.error is not None
        assert replicator.status.error.retryable
        assert replicator.status.activity is ActivityLevel.STOPPED
        assert not {ActivityLevel.IDLE, ActivityLevel.BUSY} & levels


@pytest.mark.parametrize(
    ("url_of", "status"),
    [
        (lambda url: url.replace("/shop", "/other"), 404),
        (lambda url: url.replace("wss:", "ws:"), None),
    ],
)
async def test_a_wrong_url_is_a_clear_error(
    tmp_path: Path, url_of: Callable[[str], str], status: int | None
) -> None:
    async with open_pair(tmp_path) as (shop, till):
        async with trio_p2p.open_listener(listening(shop)) as listener:
            config = replicating(till, url_of(listener.urls[0]))
            with pytest.raises(trio_p2p.ReplicationError) as caught:
                await trio_p2p.replicate(config)
        if status is not None:
            assert caught.value.status == status


@pytest.mark.behaviour("X3")
async def test_a_client_that_says_nothing_holds_up_nobody(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, till):
        async with trio_p2p.open_listener(listening(shop)) as listener:
            assert listener.port is not None
            silent = await trio.open_tcp_stream("127.0.0.1", listener.port)
            async with silent:
                await trio_p2p.replicate(replicating(till, listener.urls[0]))
            garbled = await trio.open_tcp_stream("127.0.0.1", listener.port)
            async with garbled:
                await garbled.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await trio_p2p.replicate(replicating(till, listener.urls[0]))


@pytest.mark.behaviour("L4", "L6")
async def test_a_busy_port_and_a_foreign_address_are_refused(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, _):
        async with trio_p2p.open_listener(listening(shop)) as listener:
            taken = trio_p2p.URLEndpointListener(listening(shop, port=listener.port))
            with pytest.raises(trio_p2p.ListenError):
                await taken.serve()
        for nowhere in ("no-such-interface", "1.1.1.256", "192.0.2.1"):
            listening_there = listening(shop, network_interface=nowhere)
            with pytest.raises(trio_p2p.ListenError):
                async with trio_p2p.open_listener(listening_there):
                    pass


async def test_what_the_body_raises_leaves_as_it_was(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as (shop, till):

        async def fail_inside_both() -> None:
            async with trio_p2p.open_listener(listening(shop)) as listener:
                config = replicating(till, listener.urls[0], continuous=True)
                async with trio_p2p.open_replicator(config):
                    raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await fail_inside_both()


async def wait_document(collection: trio_p2p.Collection, document_id: str) -> None:
    async for change in collection.changes():
        if change.document_id == document_id:
            return
