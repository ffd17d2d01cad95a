"""Names and passwords."""

import base64

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import CallbackError, ConfigurationError
from trio_p2p.security.auth import BasicAuthenticator, ListenerPasswordAuthenticator

TEXT = st.text(st.characters(codec="utf-8"))


@given(username=TEXT.filter(lambda name: ":" not in name), password=TEXT)
def test_a_listener_reads_what_a_replicator_shows(username, password):
    seen = []

    def callback(*credentials):
        seen.append(credentials)
        return True

    name, value = BasicAuthenticator(username, password).header()
    assert name == "Authorization"
    user = trio.run(ListenerPasswordAuthenticator(callback).authenticate, value)
    assert user == username
    assert seen == [(username, password)]


@given(
    st.none() | st.text() | st.binary().map(lambda raw: "Basic " + base64.b64encode(raw).decode())
)
def test_no_header_makes_the_listener_raise_or_admit_without_its_callback(value):
    assert trio.run(ListenerPasswordAuthenticator(lambda *_: False).authenticate, value) is None


@pytest.mark.parametrize("value", [None, "", "Basic", "Basic !!!", "Bearer eDp5", "Basic eHk="])
async def test_a_header_without_name_and_password_is_refused_unasked(value):
    def callback(*credentials):
        pytest.fail("was asked")

    assert await ListenerPasswordAuthenticator(callback).authenticate(value) is None


async def test_the_scheme_is_read_in_any_case():
    assert await ListenerPasswordAuthenticator(lambda *_: True).authenticate("basic eDp5") == "x"


async def test_an_async_callback_is_awaited():
    async def callback(username, password):
        await trio.lowlevel.checkpoint()
        return (username, password) == ("x", "y")

    listener = ListenerPasswordAuthenticator(callback)
    assert await listener.authenticate(BasicAuthenticator("x", "y").header()[1]) == "x"
    assert await listener.authenticate(BasicAuthenticator("x", "z").header()[1]) is None


async def test_a_callback_that_raises_is_told_apart_from_a_refusal():
    def callback(*credentials):
        raise KeyError("no table")

    with pytest.raises(CallbackError) as info:
        await ListenerPasswordAuthenticator(callback).authenticate("Basic eDp5")
    assert isinstance(info.value.__cause__, KeyError)


def test_a_colon_in_the_name_is_a_configuration_error():
    with pytest.raises(ConfigurationError):
        BasicAuthenticator("a:b", "c")


def test_the_password_does_not_show():
    assert "secret" not in repr(BasicAuthenticator("x", "secret"))
