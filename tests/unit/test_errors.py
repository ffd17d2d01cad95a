import inspect

import pytest

from trio_p2p import errors
from trio_p2p.errors import (
    AuthError,
    ClockSkewError,
    ConfigurationError,
    ConflictError,
    ConnectionLostError,
    DocumentNotFoundError,
    HandshakeError,
    InvalidDocumentError,
    LocalProtocolError,
    PeerError,
    PeerUnreachableError,
    RemoteProtocolError,
    ReplicationError,
    TrioP2PError,
    TrustError,
)

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, BaseException)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_in_the_tree_and_told_in_the_module_docstring(cls):
    assert issubclass(cls, TrioP2PError)
    assert cls.__name__ in errors.__doc__
    assert cls.__doc__


def test_facts_stand_in_the_message_and_are_kept():
    error = TrioP2PError("it broke", seconds=3, name="a")
    assert str(error) == "it broke (seconds=3, name='a')"
    assert error.message == "it broke"
    assert error.facts == {"seconds": 3, "name": "a"}
    assert str(TrioP2PError("it broke")) == "it broke"


@pytest.mark.parametrize(
    "fact", ["x" * 10**6, "\x00" * 10**6, b"x" * 10**6, list(range(10**5)), [["x" * 10**5] * 50]]
)
def test_long_facts_are_shortened_in_the_message_only(fact):
    error = TrioP2PError("it broke", fact=fact)
    assert len(str(error)) < 10_000
    assert error.facts == {"fact": fact}


def test_a_missing_document_reads_well_although_it_is_a_key_error():
    error = DocumentNotFoundError("no such document", document_id="a")
    assert isinstance(error, KeyError)
    assert str(error) == "no such document (document_id='a')"


@pytest.mark.parametrize("cls", [ConfigurationError, InvalidDocumentError])
def test_bad_input_is_a_value_error(cls):
    assert issubclass(cls, ValueError)


def test_a_conflict_tells_both_versions():
    error = ConflictError("it changed", expected="1@a", current=None, document_id="a")
    assert (error.expected, error.current) == ("1@a", None)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (TrioP2PError("x"), False),
        (ClockSkewError("x"), True),
        (PeerUnreachableError("x"), True),
        (TrustError("x"), False),
        (PeerError("HTTP", 503), True),
        (PeerError("HTTP", 429), True),
        (PeerError("WebSocket", 1006), True),
        (PeerError("HTTP", 404), False),
        (PeerError("BLIP", 503), False),
        (HandshakeError("x", status=502), True),
        (HandshakeError("x", status=404), False),
        (HandshakeError("x"), False),
        (AuthError("x", status=401), False),
        (ConnectionLostError("x"), True),
        (ConnectionLostError("x", code=4001), True),
        (ConnectionLostError("x", code=1002), False),
        (ReplicationError("x", status=503, retryable=True), True),
        (ReplicationError("x"), False),
    ],
)
def test_errors_tell_whether_trying_again_may_help(error, retryable):
    assert error.retryable is retryable


def test_a_peer_error_tells_what_the_peer_said():
    error = PeerError("HTTP", 404, "missing")
    assert (error.domain, error.code, error.text) == ("HTTP", 404, "missing")
    assert str(error) == "the peer answered HTTP/404: missing"
    assert str(PeerError("BLIP", 400)) == "the peer answered BLIP/400"
    assert str(PeerError("HTTP", 403, "private", ours=True)) == "we answered HTTP/403: private"


def test_a_lost_connection_tells_code_and_reason():
    error = ConnectionLostError("gone", code=1001, reason="bye")
    assert (error.code, error.reason) == (1001, "bye")
    assert str(error) == "gone (code=1001, reason='bye')"
    assert str(ConnectionLostError("gone")) == "gone (code=1006)"


def test_protocol_errors_carry_the_close_code_of_their_side():
    assert LocalProtocolError("x").wire_code == 1011
    assert RemoteProtocolError("x").wire_code == 1002
