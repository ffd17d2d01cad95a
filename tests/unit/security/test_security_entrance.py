"""How clients come in, over streams in memory."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import AuthError, ConnectionLostError, HandshakeError
from trio_p2p.security.auth import (
    BasicAuthenticator,
    ListenerCertificateAuthenticator,
    ListenerPasswordAuthenticator,
)
from trio_p2p.security.entrance import Entrance, Rules
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.tls import open_client_tls
from trio_p2p.security.trust import Trust
from trio_p2p.transport.websocket import open_client_websocket

NOW = datetime.now(UTC)
IDENTITY = TLSIdentity.create("till", now=NOW)
PROTOCOL = "BLIP_3+CBMobile_4"


def entrance(authenticator=None, *, connections_max=10):
    return Entrance(
        Rules(
            paths=("/shop ä/_blipsync", "/_blipsync"),
            subprotocols=("new", PROTOCOL),
            authenticator=authenticator,
            connections_max=connections_max,
            heartbeat_s=300.0,
            now=lambda: NOW,
        )
    )


@asynccontextmanager
async def entering(door, *, address="192.0.2.7:1", tls=False, shown=None, **options):
    """Be let in as a client; yields what the listener's side knows of it."""
    ours, theirs = memory_stream_pair()
    guests = trio.Event(), []
    left = trio.Event()
    password = options.pop("password", None)
    headers = [BasicAuthenticator("ann", password).header()] if password is not None else []

    async def serve():
        try:
            async with door.admit(theirs, address, IDENTITY if tls else None) as guest:
                guests[1].append(guest)
                guests[0].set()
                await trio.sleep_forever()
        except (HandshakeError, ConnectionLostError):
            pass
        left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            stream = ours
            if tls:
                trust = Trust(only_self_signed=True)
                stream = await open_client_tls(ours, host="x", trust=trust, now=NOW, identity=shown)
            defaults = {
                "host": "x",
                "resource": "/shop%20%C3%A4/_blipsync",
                "subprotocols": [PROTOCOL],
                "headers": headers,
            }
            async with open_client_websocket(stream, **(defaults | options)) as client:
                await guests[0].wait()
                yield guests[1][0], client
        finally:
            await ours.aclose()
            nursery.cancel_scope.cancel()


async def refusal_of(door, **options):
    """What a client is told that is not let in."""
    with pytest.RaisesGroup(HandshakeError, flatten_subgroups=True) as info:
        async with entering(door, **options):
            pytest.fail("was let in")
    return info.value.exceptions[0]


async def test_without_an_authenticator_everybody_comes_in():
    door = entrance()
    async with entering(door) as (guest, client):
        assert (guest.user, guest.certificate) == (None, None)
        assert client.subprotocol == PROTOCOL
        assert (door.places.waiting, door.places.seated) == (0, 1)
    assert (door.places.waiting, door.places.seated) == (0, 0)


async def test_the_name_proved_by_a_password_is_told(autojump_clock):
    door = entrance(ListenerPasswordAuthenticator(lambda user, word: word == "s3cret"))
    async with entering(door, tls=True, password="s3cret") as (guest, _):
        assert guest.user == "ann"
    for password in (None, "guess"):
        error = await refusal_of(door, password=password)
        assert isinstance(error, AuthError)
        assert error.status == 401


async def test_the_certificate_shown_is_told():
    door = entrance(ListenerCertificateAuthenticator(callback=lambda chain: True))
    async with entering(door, tls=True, shown=IDENTITY) as (guest, _):
        assert guest.certificate == IDENTITY.certificates[0]


async def test_a_certificate_refused_by_the_callback_is_forbidden():
    door = entrance(ListenerCertificateAuthenticator(callback=lambda chain: False))
    error = await refusal_of(door, tls=True, shown=IDENTITY)
    assert error.status == 403
    assert not error.retryable


async def test_where_certificates_are_asked_for_a_stream_without_tls_is_refused():
    """Streams of the user's own have no TLS of ours; they must not be a way around it."""
    for authenticator in (
        ListenerCertificateAuthenticator(IDENTITY.certificates),
        ListenerCertificateAuthenticator(callback=lambda chain: True),
    ):
        error = await refusal_of(entrance(authenticator))
        assert error.status == 403


async def test_a_database_that_is_not_served_is_not_found():
    assert (await refusal_of(entrance(), resource="/other/_blipsync")).status == 404
    assert (await refusal_of(entrance(), resource="/shop%20%C3%A4/../_blipsync")).status == 404


@pytest.mark.behaviour("B11b")
async def test_a_web_page_is_refused_whatever_it_shows(autojump_clock):
    asked = []
    door = entrance(ListenerPasswordAuthenticator(lambda *shown: asked.append(shown) or True))
    headers = [BasicAuthenticator("ann", "s3cret").header(), ("Origin", "https://x")]
    error = await refusal_of(door, headers=headers)
    assert error.status == 403
    assert asked == []


async def test_who_may_not_come_in_does_not_learn_which_databases_there_are():
    door = entrance(ListenerPasswordAuthenticator(lambda *_: False))
    assert (await refusal_of(door, resource="/other/_blipsync")).status == 401


async def test_a_protocol_that_is_not_spoken_is_refused_and_the_best_common_one_chosen():
    error = await refusal_of(entrance(), subprotocols=["BLIP_3+CBMobile_2"])
    assert error.status == 400
    async with entering(entrance(), subprotocols=[PROTOCOL, "new"]) as (_, client):
        assert client.subprotocol == "new"


async def test_a_callback_that_raises_costs_only_its_client(caplog):
    def callback(user, password):
        raise LookupError("no table")

    error = await refusal_of(entrance(ListenerPasswordAuthenticator(callback)), password="x")
    assert (error.status, error.retryable) == (500, False)
    assert "no table" in caplog.text


async def test_a_callback_that_does_not_answer_is_waited_for_a_bounded_time(autojump_clock):
    async def callback(user, password):
        await trio.sleep_forever()

    started = trio.current_time()
    error = await refusal_of(entrance(ListenerPasswordAuthenticator(callback)), password="x")
    assert (error.status, error.retryable) == (503, True)
    assert trio.current_time() - started == limits.AUTHENTICATOR_TIMEOUT_S


async def test_wrong_passwords_make_their_address_wait_but_never_lock_it_out(autojump_clock):
    door = entrance(ListenerPasswordAuthenticator(lambda user, word: word == "s3cret"))
    for _ in range(20):
        await refusal_of(door, password="guess")
    started = trio.current_time()
    async with entering(door, password="s3cret"):
        assert trio.current_time() - started == limits.LOGIN_WAIT_S_MAX
    started = trio.current_time()
    async with entering(door, password="s3cret", address="198.51.100.1:1"):
        assert trio.current_time() == started


async def test_who_is_recognised_does_not_wait(autojump_clock):
    authenticator = ListenerPasswordAuthenticator(lambda user, word: word == "s3cret")
    authenticator._remembers = lambda user, word: word == "s3cret"
    door = entrance(authenticator)
    for _ in range(20):
        await refusal_of(door, password="guess")
    started = trio.current_time()
    async with entering(door, password="s3cret"):
        assert trio.current_time() == started


async def test_a_missing_password_is_no_failed_attempt(autojump_clock):
    door = entrance(ListenerPasswordAuthenticator(lambda user, word: word == "s3cret"))
    for _ in range(20):
        await refusal_of(door)
    started = trio.current_time()
    async with entering(door, password="s3cret"):
        assert trio.current_time() == started


async def test_one_too_many_is_told_to_come_back():
    door = entrance(connections_max=1)
    async with entering(door) as (guest, _):
        guest.settle()
        error = await refusal_of(door)
        assert (error.status, error.retryable) == (503, True)
        assert door.places.seated == 1
    async with entering(door):
        pass


async def test_who_gives_way_loses_its_connection(autojump_clock):
    door = entrance(connections_max=2)
    async with entering(door) as (first, _), entering(door) as (second, client):
        first.settle()
        second.settle()
        async with entering(door, address="198.51.100.1:1"):
            with pytest.raises(ConnectionLostError) as info:
                await client.receive()
            assert info.value.retryable
        assert door.places.gave_way == 1


async def test_who_was_let_in_and_asks_for_nothing_gives_way_when_seats_are_short(autojump_clock):
    door = entrance(connections_max=2)
    async with entering(door) as (_, silent), entering(door) as (asking, client):
        asking.settle()
        async with entering(door) as (newcomer, _):
            newcomer.settle()
            with pytest.raises(ConnectionLostError):
                await silent.receive()
            assert (await refusal_of(door)).status == 503
            with trio.move_on_after(1) as waiting:
                await client.receive()
            assert waiting.cancelled_caught


@pytest.mark.parametrize("tls", [False, True])
async def test_clients_that_say_nothing_give_way_to_those_that_do(monkeypatch, tls):
    monkeypatch.setattr(limits, "LISTENER_WAITING_MAX", 4)
    door = entrance()
    async with trio.open_nursery() as nursery:

        async def stay_silent():
            _ours, theirs = memory_stream_pair()
            with pytest.raises(ConnectionLostError, match="gave way"):
                async with door.admit(theirs, "192.0.2.7:1", IDENTITY if tls else None):
                    pytest.fail("was let in")

        for _ in range(20):
            nursery.start_soon(stay_silent)
        await wait_all_tasks_blocked()
        assert door.places.waiting == 4
        async with entering(door, tls=tls):
            assert door.places.waiting == 3
            assert door.places.gave_way == 17
            for place in list(door.places._waiting.most_crowded()):
                place.give_way()


class Lingering:
    """A transport whose goodbye is never heard."""

    async def aclose(self, code, reason):
        await trio.sleep_forever()


@asynccontextmanager
async def all_seats_taken():
    """An entrance whose one seat is taken by a peer that has asked for something."""
    door = entrance(connections_max=1)
    async with door.seat(Lingering(), "192.0.2.7:1") as guest:
        guest.settle()
        yield door


async def test_who_hears_no_refusal_is_waited_for_a_bounded_time(autojump_clock):
    async with all_seats_taken() as door:
        with (
            trio.fail_after(60),
            pytest.raises(HandshakeError, match="too many connections"),
        ):
            async with door.seat(Lingering(), "192.0.2.7:1"):
                pytest.fail("was let in")
    assert trio.current_time() == limits.CUT_TIMEOUT_S


async def test_who_is_being_refused_gives_way_too():
    async def come():
        with pytest.raises(ConnectionLostError, match="gave way"):
            async with door.seat(Lingering(), "192.0.2.7:1"):
                pytest.fail("was let in")

    async with all_seats_taken() as door, trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await wait_all_tasks_blocked()
        assert door.places.make_room()
