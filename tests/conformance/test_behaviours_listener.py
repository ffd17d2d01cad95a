"""Listeners on real sockets of this machine, and who may connect to them."""

import dataclasses
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import trio
from loopback import PULL, PUSH, ids, put_many

from trio_p2p import (
    ActivityLevel,
    BasicAuthenticator,
    ClientCertificateAuthenticator,
    ConfigurationError,
    ListenerCertificateAuthenticator,
    ListenerPasswordAuthenticator,
    ListenError,
    ListenerStatus,
    MemoryKeyStore,
    ReplicationError,
    TLSIdentity,
    URLEndpointListener,
    URLEndpointListenerConfiguration,
    open_listener,
    open_replicator,
    replicate,
)
from trio_p2p.testing.certificates import Authority
from trio_p2p.transport.interfaces import own_addresses


@pytest.fixture
def listening(pair):
    """A configuration of a listener for what is there, on loopback and without TLS unless told."""

    def listening(**settings):
        defaults = {
            "collections": [pair.theirs],
            "network_interface": "127.0.0.1",
            "disable_tls": True,
        }
        return URLEndpointListenerConfiguration(**defaults | settings)

    return listening


@pytest.fixture
def over_tls(listening):
    """As `listening`, with TLS."""

    def over_tls(**settings):
        return listening(disable_tls=False, key_store=MemoryKeyStore(), **settings)

    return over_tls


@pytest.fixture
def trusting(pair):
    """A configuration of a replicator that trusts any self-signed certificate."""

    def trusting(listener, **settings):
        settings.setdefault("accept_only_self_signed_server_certificate", True)
        return pair.configuration(target=listener.urls[0], **settings)

    return trusting


# --- What a listener tells ------------------------------------------------------------------------


@pytest.mark.behaviour("L1")
async def test_a_listener_of_no_collections_is_refused(pair, listening):
    for collections in ([], [pair.mine, pair.theirs]):
        with pytest.raises(ConfigurationError, match="collection"):
            listening(collections=collections)


@pytest.mark.behaviour("L2a")
async def test_the_configuration_is_kept_as_it_was_given(listening):
    configuration = listening(port=4984, heartbeat=30.0)
    listener = URLEndpointListener(configuration)
    assert listener.configuration is configuration
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration.port = 1


@pytest.mark.behaviour("L2b", "L3")
@pytest.mark.parametrize("disable_tls", [False, True])
async def test_port_and_urls_are_there_while_it_listens(pair, listening, disable_tls):
    configuration = listening(
        disable_tls=disable_tls, key_store=MemoryKeyStore(), network_interface=None
    )
    listener = URLEndpointListener(configuration)
    assert (listener.port, listener.urls) == (None, [])
    async with open_listener(configuration) as listener:
        port = listener.port
        assert 0 < port < 2**16
        urls = [urlsplit(url) for url in listener.urls]
        assert {url.scheme for url in urls} == {"ws" if disable_tls else "wss"}
        assert {url.port for url in urls} == {port}
        assert {url.path for url in urls} == {f"/{pair.there.name}"}
        assert len(urls) == len({url.hostname for url in urls}) == len(own_addresses())
    assert (listener.port, listener.urls) == (None, [])
    async with open_listener(listening(port=port)) as again:
        assert again.port == port


@pytest.mark.behaviour("L4", "L5")
async def test_a_port_that_is_taken_is_an_error_until_it_is_free(listening, nursery):
    async with open_listener(listening()) as listener:
        second = listening(port=listener.port)
        with pytest.raises(ListenError, match="in use"):
            async with open_listener(second):
                pass
        taken = URLEndpointListener(second)
        with pytest.raises(ListenError):
            await taken.serve()
        assert (taken.port, taken.urls) == (None, [])
    # Over and over, on the same port.
    listener = URLEndpointListener(second)
    await listener.stop()
    for _ in range(3):
        await nursery.start(listener.serve)
        assert listener.port == second.port
        with pytest.raises(ConfigurationError, match="already"):
            await listener.serve()
        assert listener.port == second.port
        await listener.stop()
        await listener.stop()
        assert (listener.port, listener.urls) == (None, [])


@pytest.mark.behaviour("L6")
@pytest.mark.parametrize("interface", ["foo", "1.1.1.256", "192.0.2.1", ""])
async def test_an_interface_that_is_not_there_is_an_error_at_the_start(listening, interface):
    listener = URLEndpointListener(listening(network_interface=interface))
    with pytest.raises(ListenError):
        await listener.serve()
    assert (listener.port, listener.urls) == (None, [])


@pytest.mark.behaviour("L7")
@pytest.mark.parametrize("interface", ["lo", "127.0.0.1"])
async def test_an_interface_given_is_the_only_one_served_and_told(pair, listening, interface):
    async with open_listener(listening(network_interface=interface)) as listener:
        (url,) = listener.urls
        assert urlsplit(url).hostname == "127.0.0.1"
        await replicate(pair.configuration(target=url))
        for address in own_addresses():
            if not address.is_loopback:
                with pytest.raises(OSError, match=r"refused|connect"):
                    await trio.open_tcp_stream(str(address), listener.port)


@pytest.mark.behaviour("L8")
@pytest.mark.parametrize("tls", [False, True])
async def test_a_hundred_documents_go_each_way_with_equal_counts(
    pair, listening, over_tls, trusting, tls
):
    await put_many(pair.mine, ids(*range(1, 101)))
    await put_many(pair.theirs, ids(*range(201, 301)))
    configuration = over_tls() if tls else listening()
    async with open_listener(configuration) as listener:
        settings = {} if tls else {"accept_only_self_signed_server_certificate": False}
        for kind, pushed, pulled in ((PUSH, 100, 0), (PULL, 0, 100)):
            result = await replicate(trusting(listener, replicator_type=kind, **settings))
            assert (result.documents_pushed, result.documents_pulled) == (pushed, pulled)
        told = listener.statistics()
        assert (told.documents_pulled, told.documents_pushed) == (100, 100)
        await pair.mine.put("a", {})
        await pair.theirs.put("b", {})
        result = await replicate(trusting(listener, **settings))
        assert (result.documents_pushed, result.documents_pulled) == (1, 1)
    await pair.assert_equal()


@pytest.mark.behaviour("L9")
async def test_connections_are_counted_and_none_is_left(pair, listening):
    await put_many(pair.theirs, ids(*range(1, 401)))
    seen = set()

    async def watch(listener):
        while True:
            seen.add(dataclasses.astuple(listener.status))
            await trio.lowlevel.checkpoint()

    async with open_listener(listening()) as listener, trio.open_nursery() as nursery:
        assert listener.status == ListenerStatus(0, 0)
        nursery.start_soon(watch, listener)
        configuration = pair.configuration(target=listener.urls[0], continuous=True)
        async with open_replicator(configuration) as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
            assert listener.status == ListenerStatus(1, 0)
            assert len(listener.connections()) == 1
            await pair.theirs.put("late", {})
            while pair.mine.get("late") is None:
                await trio.lowlevel.checkpoint()
        with trio.fail_after(2):
            while listener.status != ListenerStatus(0, 0):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert seen == {(0, 0), (1, 0), (1, 1)}


@pytest.mark.behaviour("L16", "B11c")
@pytest.mark.parametrize("way", ["stop", "cancel"])
async def test_when_a_listener_ends_its_peers_go_offline_to_come_back(pair, listening, way):
    listener, scope = URLEndpointListener(listening()), trio.CancelScope()

    async def serve(*, task_status):
        with scope:
            await listener.serve(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        configuration = pair.configuration(
            target=listener.urls[0], continuous=True, max_attempts=None
        )
        async with open_replicator(configuration) as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
            if way == "stop":
                await listener.stop()
            else:
                scope.cancel()
            status = await replicator.wait_for(ActivityLevel.OFFLINE)
            assert status.error.status == (4001 if way == "stop" else 1006)
            assert status.error.retryable
            assert listener.status == ListenerStatus(0, 0)


# --- Who is let in --------------------------------------------------------------------------------


@pytest.mark.behaviour("L10", "W2a")
async def test_a_password_decides_who_is_let_in(pair, over_tls, trusting):
    asked = []

    def check(user, password):
        asked.append((user, password))
        return (user, password) == ("ann", "s3cret")

    await pair.mine.put("a", {})
    configuration = over_tls(authenticator=ListenerPasswordAuthenticator(check))
    async with open_listener(configuration) as listener:
        for wrong in (None, ("ann", "guess"), ("bob", "s3cret")):
            shown = BasicAuthenticator(*wrong) if wrong else None
            with pytest.raises(ReplicationError) as refused:
                await replicate(trusting(listener, authenticator=shown, max_attempts=5))
            assert refused.value.status == 401
        assert pair.theirs.count == 0
        right = BasicAuthenticator("ann", "s3cret")
        result = await replicate(trusting(listener, authenticator=right))
        assert result.documents_pushed == 1
    assert asked == [("ann", "guess"), ("bob", "s3cret"), ("ann", "s3cret")]


@pytest.mark.behaviour("L11", "L18", "T7")
async def test_a_callback_decides_by_the_clients_certificate(pair, over_tls, trusting):
    identity = TLSIdentity.create("till 3")
    seen = []

    def check(chain):
        seen.append(chain)
        return chain[0].subject.rfc4514_string() == "CN=till 3"

    authenticator = ListenerCertificateAuthenticator(callback=check)
    async with open_listener(over_tls(authenticator=authenticator)) as listener:
        with pytest.raises(ReplicationError, match="certificate"):
            await replicate(trusting(listener))
        assert seen == []
        other = ClientCertificateAuthenticator(TLSIdentity.create("till 4"))
        with pytest.raises(ReplicationError):
            await replicate(trusting(listener, authenticator=other))
        shown = ClientCertificateAuthenticator(identity)
        configuration = trusting(listener, authenticator=shown, continuous=True)
        async with open_replicator(configuration) as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
            # Each side can read the other's certificate.
            (connection,) = listener.connections()
            assert connection.certificate == identity.certificates[0]
            assert replicator.server_certificate == listener.tls_identity.certificates[0]
    assert [chain[0].subject.rfc4514_string() for chain in seen] == ["CN=till 4", "CN=till 3"]


@pytest.mark.behaviour("L12", "T7")
async def test_only_who_is_signed_by_a_root_is_let_in(pair, over_tls, trusting):
    now = datetime.fromtimestamp(pair.there.engine.now_ns() / 10**9, UTC)
    ours, foreign = Authority(now), Authority(now)
    authenticator = ListenerCertificateAuthenticator([ours.certificate])
    async with open_listener(over_tls(authenticator=authenticator)) as listener:
        for wrong in (None, foreign.issue("till 3"), TLSIdentity.create("till 3", now=now)):
            shown = ClientCertificateAuthenticator(wrong) if wrong else None
            with pytest.raises(ReplicationError, match="certificate"):
                await replicate(trusting(listener, authenticator=shown))
        shown = ClientCertificateAuthenticator(ours.issue("till 3"))
        await replicate(trusting(listener, authenticator=shown))


@pytest.mark.behaviour("L13")
async def test_client_certificates_without_tls_are_a_configuration_error(listening):
    authenticator = ListenerCertificateAuthenticator(callback=lambda chain: True)
    with pytest.raises(ConfigurationError, match="TLS"):
        listening(disable_tls=True, authenticator=authenticator)


@pytest.mark.behaviour("L14a")
async def test_tls_without_an_identity_makes_an_anonymous_one(listening, over_tls):
    async with open_listener(over_tls()) as listener:
        assert listener.tls_identity.is_self_signed
    assert listener.tls_identity is None
    async with open_listener(listening(disable_tls=True)) as listener:
        assert listener.tls_identity is None


@pytest.mark.behaviour("L14b", "L18")
async def test_the_identity_that_was_given_is_the_one_in_use(pair, over_tls, trusting):
    now = datetime.fromtimestamp(pair.there.engine.now_ns() / 10**9, UTC)
    identity = TLSIdentity.create("shop", valid_for=timedelta(days=9), now=now)
    async with open_listener(over_tls(tls_identity=identity)) as listener:
        assert listener.tls_identity is identity
        configuration = trusting(listener, continuous=True)
        async with open_replicator(configuration) as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
            assert replicator.server_certificate == identity.certificates[0]


# --- Whom a client trusts -------------------------------------------------------------------------


def authorities(now):
    """A root and an intermediate authority, and an identity of a server signed by that."""
    root = Authority(now)
    intermediate = Authority(now, common_name="intermediate", issuer=root)
    return root, intermediate, intermediate.issue("shop", addresses=["127.0.0.1"])


@pytest.mark.behaviour("T1a", "T1b", "T2a", "T2b", "T5", "T6", "G5")
async def test_the_chain_of_the_server_is_trusted_as_configured(pair, over_tls):
    now = datetime.fromtimestamp(pair.there.engine.now_ns() / 10**9, UTC)
    root, intermediate, signed = authorities(now)
    self_signed = TLSIdentity.create("shop", now=now)

    async def outcome(identity, **settings):
        async with open_listener(over_tls(tls_identity=identity)) as listener:
            run = await pair.replicate(target=listener.urls[0], **settings)
            return str(run.error) if run.error else None

    only_self_signed = {"accept_only_self_signed_server_certificate": True}
    pinned = {"pinned_server_certificate": self_signed.certificates[0]}
    assert await outcome(self_signed, **only_self_signed) is None
    assert await outcome(self_signed, **pinned) is None
    assert await outcome(self_signed, **pinned, **only_self_signed) is None
    assert "authority" in await outcome(self_signed)
    assert "pinned" in await outcome(TLSIdentity.create("shop", now=now), **pinned)

    assert await outcome(signed, pinned_server_certificate=signed.certificates[0]) is None
    assert await outcome(signed, trusted_root_certificates=[root.certificate]) is None
    assert await outcome(signed, trusted_root_certificates=[intermediate.certificate]) is None
    assert "only self-signed" in await outcome(signed, **only_self_signed)
    assert "authority" in await outcome(signed)
    assert await outcome(signed, trusted_root_certificates=[Authority(now).certificate])


@pytest.mark.behaviour("T3")
async def test_who_signs_without_being_an_authority_vouches_for_nobody(pair, over_tls):
    now = datetime.fromtimestamp(pair.there.engine.now_ns() / 10**9, UTC)
    none = Authority(now, may_sign=False)
    identity = none.issue("shop", addresses=["127.0.0.1"])
    async with open_listener(over_tls(tls_identity=identity)) as listener:
        run = await pair.replicate(
            target=listener.urls[0], trusted_root_certificates=[none.certificate]
        )
    assert not run.error.retryable


@pytest.mark.behaviour("T4")
async def test_an_expired_certificate_is_refused_where_any_self_signed_one_is_accepted(
    pair, over_tls, trusting
):
    now = datetime.fromtimestamp(pair.there.engine.now_ns() / 10**9, UTC)
    long_ago = now - timedelta(days=400)
    expired = TLSIdentity.create("shop", valid_for=timedelta(days=365), now=long_ago)
    async with open_listener(over_tls(tls_identity=expired)) as listener:
        with pytest.raises(ReplicationError, match="expired"):
            await replicate(trusting(listener))


@pytest.mark.behaviour("T8")
async def test_the_certificate_of_a_server_that_was_refused_can_be_read(pair, over_tls):
    async with open_listener(over_tls()) as listener:
        configuration = pair.configuration(target=listener.urls[0])
        async with open_replicator(configuration) as replicator:
            with pytest.raises(ReplicationError):
                await replicator.wait_for(ActivityLevel.IDLE)
        assert replicator.server_certificate == listener.tls_identity.certificates[0]
