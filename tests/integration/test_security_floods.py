"""A listener among very many connections that only take up places, whichever stage they stop at."""

from __future__ import annotations

import resource
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_p2p
from trio_p2p import limits

# Both ends of two thousand connections are in this process.
FILES = 5_000
DEADLINE_S = 6.0
SYNC_S = 5.0
# The machine may be busy with other things: the best of so many floods counts.
ROUNDS = 3
PATIENCE_S = 60.0

HTTP_REQUEST = b"GET /shop/_blipsync HTTP/1.1\r\nHost: x\r\n" + b"X-Filler: y\r\n" * 100
# The beginning of a TLS record that holds a ClientHello of 500 bytes.
CLIENT_HELLO = b"\x16\x03\x01\x01\xf8\x01\x00\x01\xf4\x03\x03" + bytes(493)
UPGRADE_REQUEST = (
    b"GET /shop/_blipsync HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: BLIP_3+CBMobile_4\r\n\r\n"
)
# The beginning of a binary WebSocket message of 1,000 bytes.
MESSAGE = b"\x82\xfe\x03\xe8" + bytes(1_000)


async def through_tcp(stream: trio.SocketStream) -> trio.abc.Stream:
    await trio.lowlevel.checkpoint()
    return stream


async def through_tls(stream: trio.SocketStream) -> trio.abc.Stream:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    tls = trio.SSLStream(stream, context)
    await tls.do_handshake()
    return tls


async def through_http(stream: trio.SocketStream) -> trio.abc.Stream:
    await stream.send_all(UPGRADE_REQUEST)
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = await stream.receive_some()
        if not received:
            raise trio.BrokenResourceError
        answer += received
    return stream


@dataclass(frozen=True)
class Stage:
    """How far the connections come, and what half of them go on with, a byte a second."""

    name: str
    enter: Callable[[trio.SocketStream], Awaitable[trio.abc.Stream]]
    slow_data: bytes
    disable_tls: bool
    # Each half. Who shakes hands costs this process some milliseconds, at both ends.
    connections: int = 1_000
    waiting_max: int = limits.LISTENER_WAITING_MAX
    is_let_in: bool = False


STAGES = [
    Stage("TLS", through_tcp, CLIENT_HELLO, disable_tls=False),
    Stage("HTTP", through_tcp, HTTP_REQUEST, disable_tls=True),
    Stage("HTTP over TLS", through_tls, HTTP_REQUEST, False, connections=100, waiting_max=60),
    Stage("WebSocket", through_http, MESSAGE, True, connections=100, is_let_in=True),
]
SEATS = 60


@pytest.fixture
def many_files() -> None:
    """As many open files as the test needs, within what the system allows this user."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        assert hard >= FILES, f"{FILES} open files are needed: raise the hard limit (ulimit -Hn)"
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


class Crowd:
    """Connections to a listener, and how many of them are still open."""

    def __init__(self, port: int, stage: Stage) -> None:
        self._port = port
        self._stage = stage
        self.size = 2 * stage.connections
        self.opened = 0
        self.open = 0
        self.all_opened = trio.Event()
        self.all_gone = trio.Event()

    async def join(self, data: bytes) -> None:
        """Connect, send a byte of the data each second, and stay until the listener hangs up."""
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as tcp:
            self.open += 1
            stream = None
            # It may have to give way before it is that far.
            with suppress(trio.BrokenResourceError):
                stream = await self._stage.enter(tcp)
            self.opened += 1
            if self.opened == self.size:
                self.all_opened.set()
            if stream is not None:
                await self._stay(stream, data)
        self.open -= 1
        if not self.open and self.opened == self.size:
            self.all_gone.set()

    async def _stay(self, stream: trio.abc.Stream, data: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, data)
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()

    async def _send(self, stream: trio.abc.Stream, data: bytes) -> None:
        try:
            for byte in data:
                await stream.send_all(bytes([byte]))
                with trio.move_on_after(1):
                    await trio.sleep_forever()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def open_crowd(port: int, stage: Stage) -> AsyncIterator[Crowd]:
    """As many connections that say nothing, and as many that send one byte a second."""
    crowd = Crowd(port, stage)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(stage.connections):
                nursery.start_soon(crowd.join, b"")
                nursery.start_soon(crowd.join, stage.slow_data)
            await crowd.all_opened.wait()
            yield crowd


@pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])
async def test_an_honest_peer_syncs_within_seconds_among_silent_and_slow_ones_of_its_own_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_files: None, stage: Stage
) -> None:
    for deadline in ("HANDSHAKE_TIMEOUT_S", "FIRST_REQUEST_TIMEOUT_S", "MESSAGE_TIMEOUT_S"):
        monkeypatch.setattr(limits, deadline, DEADLINE_S)
    monkeypatch.setattr(limits, "LISTENER_WAITING_MAX", stage.waiting_max)
    async with (
        trio_p2p.open_database(tmp_path / "shop.p2p") as shop,
        trio_p2p.open_database(tmp_path / "till.p2p") as till,
    ):
        await shop.default_collection.put("apple", {"price": 120})
        listening: dict[str, Any] = {}
        replicating: dict[str, Any] = {}
        if not stage.is_let_in:
            listening["authenticator"] = trio_p2p.ListenerPasswordAuthenticator(
                lambda user, password: trio_p2p.same_secret(password, "s3cret")
            )
            replicating["authenticator"] = trio_p2p.BasicAuthenticator("ann", "s3cret")
        config = trio_p2p.URLEndpointListenerConfiguration(
            collections=[shop.default_collection],
            network_interface="127.0.0.1",
            key_store=trio_p2p.MemoryKeyStore(),
            disable_tls=stage.disable_tls,
            connections_max=SEATS,
            **listening,
        )
        async with trio_p2p.open_listener(config) as listener:
            assert listener.port is not None
            replication = trio_p2p.ReplicatorConfiguration(
                target=listener.urls[0],
                collections=[till.default_collection],
                accept_only_self_signed_server_certificate=not stage.disable_tls,
                max_attempts=1,
                **replicating,
            )
            places = listener._entrance.places
            took_s: list[float] = []
            while not took_s or (min(took_s) >= SYNC_S and len(took_s) < ROUNDS):
                gave_way = places.gave_way
                async with open_crowd(listener.port, stage) as crowd:
                    # It stands behind all of them, and comes in although they all came at once.
                    started = trio.current_time()
                    await trio_p2p.replicate(replication)
                    took_s.append(trio.current_time() - started)
                    assert till.default_collection.get("apple") is not None
                    there = places.seated if stage.is_let_in else places.waiting
                    assert places.gave_way - gave_way + there >= crowd.size
                    # While they are there nobody is kept out.
                    assert 0 < there <= (SEATS if stage.is_let_in else stage.waiting_max)
                    with trio.fail_after(SYNC_S):
                        await trio_p2p.replicate(replication)
                    # Who did not give way is gone after its deadline, however it trickles.
                    await crowd.all_gone.wait()
                await wait_all_tasks_blocked()
                assert (places.waiting, places.seated) == (0, 0)
            assert min(took_s) < SYNC_S, took_s
