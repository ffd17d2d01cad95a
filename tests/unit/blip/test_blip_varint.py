"""Variable-length integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.blip import varint
from trio_p2p.errors import RemoteProtocolError


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (50_123, "cb8703"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_known_numbers_have_their_known_bytes(value, encoded):
    assert varint.encode(value).hex() == encoded
    assert varint.decode(bytes.fromhex(encoded)) == (value, len(encoded) // 2)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=4), st.binary(max_size=4))
def test_a_number_is_found_wherever_it_stands(value, before, after):
    encoded = varint.encode(value)
    expected = (value, len(before) + len(encoded))
    assert varint.decode(before + encoded + after, len(before)) == expected


@pytest.mark.parametrize(
    "data",
    ["", "80", "ff" * 9, "ff" * 10, "ff" * 9 + "02", "80" * 10 + "01"],
)
def test_a_number_cut_short_or_beyond_64_bits_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        varint.decode(bytes.fromhex(data))


def test_a_number_with_needless_zeros_is_read():
    assert varint.decode(b"\x81\x80\x00") == (1, 3)
