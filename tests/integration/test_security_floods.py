"""A listener among a thousand connections that only take up places."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import trio_p2p
from trio_p2p import limits

CONNECTIONS = 1_000
# Both ends of two thousand connections are in this process.
FILES = 5_000
DEADLINE_S = 6.0
SYNC_S = 5.0
PATIENCE_S = 60.0

HTTP_REQUEST = b"GET /shop/_blipsync HTTP/1.1\r\nHost: x\r\n" + b"X-Filler: y\r\n" * 100
# The beginning of a TLS record that holds a ClientHello of 500 bytes.
CLIENT_HELLO = b"\x16\x03\x01\x01\xf8\x01\x00\x01\xf4\x03\x03" + bytes(493)


@pytest.fixture
def many_files() -> None:
    """As many open files as the test needs, within what the system allows this user."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        assert hard >= FILES, f"{FILES} open files are needed: raise the hard limit (ulimit -Hn)"
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


class Crowd:
    """Connections to a listener, and how many of them are still open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.opened = 0
        self.open = 0
        self.all_opened = trio.Event()
        self.all_gone = trio.Event()

    async def join(self, data: bytes) -> None:
        """Connect, send a byte of the data each second, and stay until the listener hangs up."""
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            self.opened += 1
            self.open += 1
            if self.opened == 2 * CONNECTIONS:
                self.all_opened.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, data)
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
                nursery.cancel_scope.cancel()
        self.open -= 1
        if not self.open:
            self.all_gone.set()

    async def _send(self, stream: trio.SocketStream, data: bytes) -> None:
        try:
            for byte in data:
                await stream.send_all(bytes([byte]))
                with trio.move_on_after(1):
                    await trio.sleep_forever()
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def open_crowd(port: int, slow_data: bytes) -> AsyncIterator[Crowd]:
    """A thousand silent connections, and a thousand that send one byte a second."""
    crowd = Crowd(port)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                nursery.start_soon(crowd.join, b"")
                nursery.start_soon(crowd.join, slow_data)
            await crowd.all_opened.wait()
            yield crowd


@pytest.mark.parametrize("disable_tls", [False, True])
async def test_an_honest_peer_syncs_among_silent_and_slow_ones_of_its_own_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_files: None, disable_tls: bool
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", DEADLINE_S)
    async with (
        trio_p2p.open_database(tmp_path / "shop.p2p") as shop,
        trio_p2p.open_database(tmp_path / "till.p2p") as till,
    ):
        await shop.default_collection.put("apple", {"price": 120})
        config = trio_p2p.URLEndpointListenerConfiguration(
            collections=[shop.default_collection],
            network_interface="127.0.0.1",
            key_store=trio_p2p.MemoryKeyStore(),
            disable_tls=disable_tls,
            authenticator=trio_p2p.ListenerPasswordAuthenticator(
                lambda user, password: trio_p2p.same_secret(password, "s3cret")
            ),
        )
        replicating = {
            "collections": [till.default_collection],
            "authenticator": trio_p2p.BasicAuthenticator("ann", "s3cret"),
            "accept_only_self_signed_server_certificate": not disable_tls,
        }
        async with trio_p2p.open_listener(config) as listener:
            assert listener.port is not None
            slow_data = HTTP_REQUEST if disable_tls else CLIENT_HELLO
            replication = trio_p2p.ReplicatorConfiguration(target=listener.urls[0], **replicating)
            places = listener._entrance.places
            async with open_crowd(listener.port, slow_data) as crowd:
                # It stands behind all of them, and comes in although they all came at once.
                await trio_p2p.replicate(replication)
                assert till.default_collection.get("apple") is not None
                assert places.gave_way + places.waiting >= 2 * CONNECTIONS
                # While they are there nobody is kept out.
                assert 0 < places.waiting <= limits.LISTENER_WAITING_MAX
                with trio.fail_after(SYNC_S):
                    await trio_p2p.replicate(replication)
                # Who did not give way is gone after its deadline, however it trickles.
                await crowd.all_gone.wait()
            assert (places.waiting, places.seated) == (0, 0)
