"""Message data: properties with their length, then the body."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.blip import Message, varint
from trio_p2p.blip.message import (
    decode_data,
    decode_properties,
    encode_data,
    encode_properties,
)
from trio_p2p.errors import LocalProtocolError, RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "blip_frames.json").read_text())

strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@pytest.mark.behaviour("B3", "X6")
@pytest.mark.parametrize("vector", VECTORS["properties"])
def test_properties_have_their_recorded_bytes(vector):
    encoded = bytes.fromhex(vector["hex"])
    assert encode_properties(vector["properties"]) == encoded
    assert decode_properties(encoded) == (vector["properties"], len(encoded))


@given(st.dictionaries(strings, strings), st.binary(max_size=200))
def test_a_message_survives_its_encoding(properties, body):
    assert decode_data(encode_data(Message(properties, body))) == (properties, body)


def test_the_order_of_properties_is_kept():
    properties, _ = decode_data(encode_data(Message({"b": "1", "a": "2"})))
    assert list(properties) == ["b", "a"]


@pytest.mark.behaviour("B4")
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "integer is cut short"),
        (b"\x0c", "ends inside its properties"),
        (b"\x0c" + b"Foo\0Barrrr\0", "ends inside its properties"),
        (b"\x02hi", "do not end with a NUL"),
        (b"\x02h\0", "has no value"),
        (b"\x10Foo\0Zip\0Foo\0Zap\0", "there twice"),
        (b"\x04\xff\0a\0", "not UTF-8"),
        (varint.encode(limits.PROPERTIES_BYTES_MAX + 1), "too long"),
    ],
)
def test_malformed_properties_are_refused_each_for_its_reason(data, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode_data(data)


@pytest.mark.parametrize(
    ("properties", "complaint"),
    [
        ({"a\0b": "c"}, "NUL"),
        ({"a": "\0"}, "NUL"),
        ({"a": "\ud800"}, "Unicode"),
        ({"a": "x" * limits.PROPERTIES_BYTES_MAX}, "too long"),
    ],
)
def test_properties_that_cannot_be_sent_are_refused(properties, complaint):
    with pytest.raises(LocalProtocolError, match=complaint):
        encode_data(Message(properties))


def test_there_are_as_many_properties_as_there_may_be():
    most = {str(n): "" for n in range(limits.PROPERTIES_MAX)}
    assert decode_properties(encode_properties(most))[0] == most
    with pytest.raises(RemoteProtocolError, match="too many properties"):
        decode_properties(encode_properties({**most, "x": ""}))


def test_a_message_is_held_with_its_properties():
    short = Message({"Profile": "rev"}, bytes(10))
    assert short.held_bytes == limits.REQUEST_BYTES + 10
    long = Message({"x" * 50_000: "y" * 20_000}, bytes(10))
    assert long.held_bytes == 70_010


def test_the_longest_properties_go_through():
    longest = {"a": "x" * (limits.PROPERTIES_BYTES_MAX - 3)}
    assert decode_data(encode_data(Message(longest))) == (longest, b"")


def test_a_message_larger_than_peers_accept_is_refused():
    with pytest.raises(LocalProtocolError, match="too large"):
        encode_data(Message({}, bytes(limits.MESSAGE_BYTES_MAX)))


@given(st.binary(max_size=64))
def test_arbitrary_bytes_raise_nothing_but_the_protocol_error(data):
    try:
        properties, body = decode_data(data)
    except RemoteProtocolError:
        return
    assert data.endswith(encode_properties(properties)[1:] + body)
