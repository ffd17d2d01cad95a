"""Names and passwords, and client certificates."""

import base64
from datetime import UTC, datetime

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import CallbackError, ConfigurationError
from trio_p2p.security import passwords
from trio_p2p.security.auth import (
    Admitted,
    BasicAuthenticator,
    Client,
    ClientCertificateAuthenticator,
    Denied,
    ListenerCertificateAuthenticator,
    ListenerPasswordAuthenticator,
)
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.keystore import MemoryKeyStore

TEXT = st.text(st.characters(codec="utf-8"))
NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDENTITY = TLSIdentity.create("till", now=NOW)


def showing(username, password):
    """What a client shows that has this name and password."""
    return Client(BasicAuthenticator(username, password).header()[1])


# --- Passwords -----------------------------------------------------------------------------------


@given(username=TEXT.filter(lambda name: ":" not in name), password=TEXT)
def test_a_listener_reads_what_a_replicator_shows(username, password):
    seen = []

    def callback(*credentials):
        seen.append(credentials)
        return True

    name, value = BasicAuthenticator(username, password).header()
    assert name == "Authorization"
    verdict = trio.run(ListenerPasswordAuthenticator(callback).admit, Client(value))
    assert verdict == Admitted(username)
    assert seen == [(username, password)]


@given(
    st.none() | st.text() | st.binary().map(lambda raw: "Basic " + base64.b64encode(raw).decode())
)
def test_no_header_makes_the_listener_raise_or_admit_without_its_callback(value):
    listener = ListenerPasswordAuthenticator(lambda *_: False)
    assert not listener.recognises(Client(value))
    assert isinstance(trio.run(listener.admit, Client(value)), Denied)


@pytest.mark.parametrize("value", [None, "", "Basic", "Basic !!!", "Bearer eDp5", "Basic eHk="])
async def test_a_header_without_name_and_password_is_refused_unasked(value):
    def callback(*credentials):
        pytest.fail("was asked")

    verdict = await ListenerPasswordAuthenticator(callback).admit(Client(value))
    assert isinstance(verdict, Denied)
    assert verdict.status == 401
    assert verdict.challenge.startswith("Basic ")
    assert not verdict.wrong


async def test_the_scheme_is_read_in_any_case():
    listener = ListenerPasswordAuthenticator(lambda *_: True)
    assert await listener.admit(Client("basic eDp5")) == Admitted("x")


async def test_an_async_callback_is_awaited():
    async def callback(username, password):
        await trio.lowlevel.checkpoint()
        return (username, password) == ("x", "y")

    listener = ListenerPasswordAuthenticator(callback)
    assert await listener.admit(showing("x", "y")) == Admitted("x")
    verdict = await listener.admit(showing("x", "z"))
    assert verdict.wrong


@pytest.mark.parametrize("truthy", [1, "yes", [True]])
async def test_only_true_is_a_yes(truthy):
    assert isinstance(
        await ListenerPasswordAuthenticator(lambda *_: truthy).admit(showing("x", "y")), Denied
    )


async def test_a_callback_that_raises_is_told_apart_from_a_refusal():
    def callback(*credentials):
        raise KeyError("no table")

    for failing, client in (
        (ListenerPasswordAuthenticator(callback), showing("x", "y")),
        (
            ListenerCertificateAuthenticator(callback=callback),
            Client(certificates=IDENTITY.certificates),
        ),
    ):
        with pytest.raises(CallbackError) as info:
            await failing.admit(client)
        assert isinstance(info.value.__cause__, KeyError)


async def test_a_callback_whose_tasks_raise_when_it_is_cut_off_has_failed(autojump_clock):
    async def lose_the_directory():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("no table")

    async def callback(*credentials):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_the_directory)
            await trio.sleep_forever()

    with trio.move_on_after(1), pytest.raises(CallbackError) as info:
        await ListenerPasswordAuthenticator(callback).admit(showing("x", "y"))
    assert pytest.RaisesGroup(KeyError).matches(info.value.__cause__)


async def test_users_of_a_password_file_are_admitted_and_then_recognised(tmp_path):
    passwords.set_password(tmp_path / "users", "ann", "s3cret")
    listener = ListenerPasswordAuthenticator.from_file(tmp_path / "users")
    ann = showing("ann", "s3cret")
    assert not listener.recognises(ann)
    assert await listener.admit(ann) == Admitted("ann")
    assert listener.recognises(ann)
    assert not listener.recognises(showing("ann", "guess"))
    assert (await listener.admit(showing("ann", "guess"))).wrong
    (tmp_path / "users").unlink()
    assert not listener.recognises(ann)
    with pytest.raises(CallbackError):
        await listener.admit(ann)


def test_a_colon_in_the_name_is_a_configuration_error_that_repeats_nothing():
    with pytest.raises(ConfigurationError) as info:
        BasicAuthenticator("ann:s3cret", "")
    assert "s3cret" not in str(info.value)
    assert "s3cret" not in repr(info.value.facts)


@pytest.mark.parametrize("shown", [(5, "s3cret"), ("ann", b"s3cret"), ("ann", None)])
def test_a_name_or_password_that_is_no_text_is_refused(shown):
    with pytest.raises(ConfigurationError) as info:
        BasicAuthenticator(*shown)
    assert "s3cret" not in str(info.value)


def test_the_password_does_not_show():
    assert "secret" not in repr(BasicAuthenticator("x", "secret"))


# --- Certificates --------------------------------------------------------------------------------


async def test_a_certificate_that_tls_found_good_is_enough_where_there_are_roots():
    listener = ListenerCertificateAuthenticator(IDENTITY.certificates)
    assert listener.clients.roots == IDENTITY.certificates
    client = Client(certificates=IDENTITY.certificates)
    assert listener.recognises(client)
    assert await listener.admit(client) == Admitted()


@pytest.mark.behaviour("L11")
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_callback_gets_the_chain_and_decides_alone(is_async):
    seen = []

    def callback(chain):
        seen.append(chain)
        return len(seen) == 1

    async def async_callback(chain):
        await trio.lowlevel.checkpoint()
        return callback(chain)

    listener = ListenerCertificateAuthenticator(callback=async_callback if is_async else callback)
    assert listener.clients is not None
    assert listener.clients.roots is None
    client = Client(certificates=IDENTITY.certificates)
    assert not listener.recognises(client)
    assert await listener.admit(client) == Admitted()
    verdict = await listener.admit(client)
    assert (verdict.status, verdict.wrong) == (403, True)
    assert seen == [IDENTITY.certificates] * 2


async def test_without_a_certificate_nobody_is_admitted():
    """Such a client comes by a transport of the user's own, on which there is no TLS of ours."""
    for listener in (
        ListenerCertificateAuthenticator(IDENTITY.certificates),
        ListenerCertificateAuthenticator(callback=lambda chain: True),
    ):
        assert not listener.recognises(Client())
        verdict = await listener.admit(Client())
        assert (verdict.status, verdict.wrong) == (403, False)


def test_either_roots_or_a_callback_decides():
    for settings in ({}, {"root_certificates": IDENTITY.certificates, "callback": lambda _: True}):
        with pytest.raises(ConfigurationError):
            ListenerCertificateAuthenticator(**settings)
    with pytest.raises(ConfigurationError):
        ListenerCertificateAuthenticator([])


async def test_a_replicator_presents_the_identity_given_or_an_anonymous_one():
    assert await ClientCertificateAuthenticator(IDENTITY).identity(NOW) is IDENTITY
    store = MemoryKeyStore()
    first = await ClientCertificateAuthenticator(key_store=store).identity(NOW)
    again = await ClientCertificateAuthenticator(None, key_store=store).identity(NOW)
    assert first.certificates == again.certificates
    assert store.labels() == ("replicator",)
    assert "PrivateKey" not in repr(ClientCertificateAuthenticator(first))
