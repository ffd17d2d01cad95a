"""Frame headers and acknowledgements."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.blip import frames
from trio_p2p.errors import RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "blip_frames.json").read_text())


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**14), st.binary(max_size=8))
def test_a_header_survives_its_encoding(number, flags, payload):
    header = frames.encode_header(number, flags)
    assert frames.decode_header(header + payload) == (number, flags, len(header))


def test_no_header_of_ours_is_longer_than_reckoned():
    every_flag = frames.TYPE_MASK | frames.COMPRESSED | frames.URGENT | frames.NO_REPLY
    header = frames.encode_header(2**64 - 1, every_flag | frames.MORE_COMING)
    assert len(header) == frames.HEADER_BYTES_MAX


@pytest.mark.behaviour("X6")
@pytest.mark.parametrize("vector", VECTORS["direction"])
def test_recorded_headers_have_their_bytes(vector):
    flags = (
        frames.REQUEST
        | (frames.URGENT if vector["urgent"] else 0)
        | (frames.COMPRESSED if vector["compressed"] else 0)
        | (frames.NO_REPLY if vector["no_reply"] else 0)
    )
    assert frames.encode_header(vector["number"], flags).hex() == vector["header"]


@pytest.mark.behaviour("X6")
def test_the_acknowledgement_of_a_request_has_its_recorded_bytes():
    vector = VECTORS["acknowledgement"]
    frame = frames.encode_acknowledgement(
        vector["number"], vector["bytes_received"], of_reply=vector["of_reply"]
    )
    assert frame.hex() == vector["frame"]


def test_the_acknowledgement_of_a_reply_differs_in_its_type():
    assert frames.encode_acknowledgement(7, 1, of_reply=True) == b"\x07\x35\x01"


@pytest.mark.parametrize("frame", [b"", b"\x01", b"\x80", b"\x01\x80", b"\x81\x80"])
def test_a_header_cut_short_is_refused(frame):
    with pytest.raises(RemoteProtocolError):
        frames.decode_header(frame)
