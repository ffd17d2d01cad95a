import collections
import copy
import enum
import math
import struct
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from uuid import UUID

import cbor2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import BlobNotFoundError, InvalidDocumentError
from trio_p2p.model import codec
from trio_p2p.model.blob import format_digest
from trio_p2p.model.codec import (
    INTEGER_MAX,
    INTEGER_MIN,
    RESERVED_KEYS,
    _heads,
    body_from_json,
    body_to_json,
    check_body,
    decode_body,
    encode_body,
    parse_json,
)

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INTEGER_MIN, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)
bodies = st.dictionaries(keys.filter(lambda key: key not in RESERVED_KEYS), values, max_size=4)


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


def nested(depth: int) -> dict[str, object]:
    """A body of mappings in mappings: `depth` of them."""
    body: dict[str, object] = {}
    for _ in range(depth - 1):
        body = {"a": body}
    return body


def field(encoded: bytes) -> bytes:
    """CBOR of a body whose one field holds the given CBOR."""
    return b"\xa1\x61a" + encoded


# --- What a body may hold -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("text", "text"),
        ("", ""),
        ("\x00", "\x00"),
        (Name("text"), "text"),
        (True, True),
        (None, None),
        (INTEGER_MAX, INTEGER_MAX),
        (INTEGER_MIN, INTEGER_MIN),
        (Colour.RED, 1),
        (1.5, 1.5),
        (-0.0, -0.0),
        ([1, [2]], [1, [2]]),
        ((1, 2), [1, 2]),
        ({"b": 1, "a": 2}, {"b": 1, "a": 2}),
        ({"_id": 1}, {"_id": 1}),
        ({"@type": "blob"}, {"@type": "blob"}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=UTC), "2024-02-29T01:02:03.456Z"),
        (
            datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=2))),
            "2024-02-29T00:00:00.000+02:00",
        ),
    ],
)
def test_a_body_holds_json_values_and_what_becomes_them(value, stored):
    body = decode_body(encode_body({"a": value}))
    assert body == {"a": stored}
    assert type(body["a"]) is type(stored)


def test_encoding_leaves_the_body_as_it_was():
    inner = {"list": [1, ("a", Colour.RED)], "when": datetime(2024, 2, 29, tzinfo=UTC)}
    body = {"tuple": (1, 2), "plain": [None], "inner": inner, "name": Name("text")}
    before = copy.deepcopy(body)
    encoded = encode_body(body)
    assert body == before
    assert body["inner"] is inner
    assert type(body["name"]) is Name
    assert decode_body(encoded) == {
        "tuple": [1, 2],
        "plain": [None],
        "inner": {"list": [1, ["a", 1]], "when": "2024-02-29T00:00:00.000Z"},
        "name": "text",
    }


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"bytes"),
        {1, 2},
        Decimal(1),
        UUID(int=1),
        1j,
        object(),
        range(3),
        datetime(2024, 1, 1),
        datetime(2024, 1, 1, tzinfo=UTC).date(),
        math.nan,
        math.inf,
        -math.inf,
        INTEGER_MAX + 1,
        INTEGER_MIN - 1,
        pytest.param(10**5000, id="an integer too long to print"),
        "\ud800",
        {"\ud800": 1},
        {1: 1},
        {None: 1},
        {Name("key"): 1},
        {b"key": 1},
        [[object()]],
    ],
)
def test_a_body_holds_nothing_else(value):
    with pytest.raises(InvalidDocumentError):
        encode_body({"a": value})


@pytest.mark.parametrize("body", [None, [], "text", [("a", 1)], 1])
def test_a_body_is_a_mapping(body):
    with pytest.raises(InvalidDocumentError):
        encode_body(body)


@pytest.mark.behaviour("G8")
@pytest.mark.parametrize("key", sorted(RESERVED_KEYS))
def test_reserved_keys_are_refused_at_the_top_level_only(key):
    with pytest.raises(InvalidDocumentError):
        encode_body({key: 1})
    assert decode_body(encode_body({"a": {key: 1}})) == {"a": {key: 1}}


def test_a_body_is_nested_up_to_the_limit():
    deepest = nested(limits.BODY_DEPTH_MAX)
    assert check_body(encode_body(deepest)) == deepest
    for too_deep in (nested(limits.BODY_DEPTH_MAX + 1), {"a": [deepest]}):
        with pytest.raises(InvalidDocumentError):
            encode_body(too_deep)


def test_lists_count_as_nesting_like_mappings():
    value: list[object] = []
    for _ in range(limits.BODY_DEPTH_MAX - 2):
        value = [value]
    assert check_body(encode_body({"a": value})) == {"a": value}
    with pytest.raises(InvalidDocumentError):
        encode_body({"a": [value]})


def test_a_body_that_contains_itself_is_nested_too_deeply():
    body: dict[str, object] = {}
    body["a"] = body
    with pytest.raises(InvalidDocumentError):
        encode_body(body)


def test_a_body_has_at_most_so_many_bytes(monkeypatch):
    monkeypatch.setattr(limits, "BODY_BYTES_MAX", 20)
    largest = encode_body({"a": "x" * 16})
    assert len(largest) == 20
    assert check_body(largest) == {"a": "x" * 16}
    with pytest.raises(InvalidDocumentError):
        encode_body({"a": "x" * 17})
    with pytest.raises(InvalidDocumentError):
        check_body(largest + b"\0")


@pytest.mark.parametrize("wrap", [lambda blob: blob, lambda blob: [blob], lambda blob: {"b": blob}])
def test_a_blob_that_is_named_by_no_digest_is_refused(wrap):
    body = {"a": wrap({"@type": "blob", "digest": "sha1-xyz"})}
    with pytest.raises(BlobNotFoundError):
        encode_body(body)
    with pytest.raises(BlobNotFoundError):
        check_body(cbor2.dumps(body))


# --- CBOR from elsewhere --------------------------------------------------------------------------


@given(bodies, st.randoms())
def test_the_order_of_keys_makes_no_other_body(body, random):
    def shuffled(value):
        if isinstance(value, list):
            return [shuffled(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {key: shuffled(value[key]) for key in random.sample(sorted(value), len(value))}

    assert encode_body(shuffled(body)) == encode_body(body)


def test_keys_are_in_order():
    body = decode_body(encode_body({"b": [{"z": 1, "aa": 2}], "a": {"é": 1, "e": 2}}))
    assert list(body) == ["a", "b"]
    assert list(body["a"]) == ["e", "é"]
    assert list(body["b"][0]) == ["aa", "z"]


@given(bodies)
def test_bodies_round_trip(body):
    encoded = encode_body(body)
    assert decode_body(encoded) == body
    assert check_body(encoded) == body
    assert encode_body(decode_body(encoded)) == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00", id="a number"),
        pytest.param(b"\x80", id="a list"),
        pytest.param(b"\xa0\x00", id="trailing bytes"),
        pytest.param(b"\xa1\x61a", id="cut off"),
        pytest.param(b"\xa2\x61a\x01\x61a\x02", id="a key twice"),
        pytest.param(b"\xa1\x01\x01", id="a key that is a number"),
        pytest.param(b"\xa1\x41a\x01", id="a key that is bytes"),
        pytest.param(b"\xa1\x80\x01", id="a key that is a list"),
        pytest.param(b"\xbf\x61a\x01\xff", id="a mapping of indefinite length"),
        pytest.param(field(b"\x9f\x01\xff"), id="a list of indefinite length"),
        pytest.param(field(b"\x7f\x61x\xff"), id="text of indefinite length"),
        pytest.param(b"\xb8\x01\x61a\x01", id="a length in long form"),
        pytest.param(b"\xa1\x78\x01a\x01", id="a length of text in long form"),
        pytest.param(field(b"\x18\x01"), id="an integer in 8 bits that needs 5"),
        pytest.param(field(b"\x19\x00\x18"), id="an integer in 16 bits that needs 8"),
        pytest.param(field(b"\x1b" + bytes(7) + b"\x01"), id="an integer in 64 bits"),
        pytest.param(field(b"\x38\x01"), id="a negative integer in long form"),
        pytest.param(field(b"\x1b" + b"\xff" * 8), id="an integer above 63 bits"),
        pytest.param(field(b"\x3b" + b"\xff" * 8), id="an integer below 63 bits"),
        pytest.param(field(b"\xf9\x3c\x00"), id="a half float"),
        pytest.param(field(b"\xfa" + struct.pack(">f", 1.5)), id="a single float"),
        pytest.param(field(b"\xfb" + struct.pack(">d", math.nan)), id="not a number"),
        pytest.param(field(b"\xfb" + struct.pack(">d", math.inf)), id="infinity"),
        pytest.param(field(b"\x41x"), id="bytes"),
        pytest.param(field(b"\x61\xff"), id="text that is not UTF-8"),
        pytest.param(field(b"\x63\xed\xa0\x80"), id="a lone surrogate"),
        pytest.param(field(b"\xf7"), id="undefined"),
        pytest.param(field(b"\xf0"), id="a simple value"),
        pytest.param(field(b"\xff"), id="a break"),
        pytest.param(field(b"\x9b\x7f" + b"\xff" * 7), id="a list longer than memory"),
        pytest.param(field(b"\x81" * 100_000), id="lists without an end"),
        pytest.param(b"\xa1\x63_id\x01", id="a reserved key"),
    ],
)
def test_cbor_that_this_database_would_not_write_is_refused(encoded):
    with pytest.raises(InvalidDocumentError):
        check_body(encoded)


@pytest.mark.parametrize(
    "tag", [0, 1, 2, 3, 4, 5, 6, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 43000, 55799]
)
@pytest.mark.parametrize("content", [0, "2024-01-01T00:00:00Z", b"x", [1, 2], {"a": 1}])
def test_tags_are_refused(tag, content):
    encoded = cbor2.dumps({"a": cbor2.CBORTag(tag, content)})
    with pytest.raises(InvalidDocumentError):
        check_body(encoded)


def test_references_that_unfold_to_more_than_memory_holds_are_refused_before_they_do():
    doubled = [cbor2.CBORTag(28, [cbor2.CBORTag(29, index)] * 2) for index in range(60)]
    lists = [cbor2.CBORTag(28, []), *doubled]
    with pytest.raises(InvalidDocumentError):
        check_body(cbor2.dumps({"a": lists}))


@given(st.binary())
def test_any_bytes_are_a_body_or_refused(encoded):
    try:
        body = check_body(encoded)
    except (InvalidDocumentError, BlobNotFoundError):
        return
    assert encode_body(body) == encoded


@given(bodies, st.data())
def test_a_damaged_body_is_a_body_or_refused(body, data):
    encoded = bytearray(encode_body(body))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        body = check_body(bytes(encoded))
    except (InvalidDocumentError, BlobNotFoundError):
        return
    assert encode_body(body) == encoded


# --- JSON -----------------------------------------------------------------------------------------


@given(bodies)
def test_bodies_round_trip_through_json(body):
    encoded = encode_body(body)
    assert decode_body(body_from_json(body_to_json(encoded))) == body


def test_json_is_written_without_spaces():
    assert body_to_json(encode_body({"a": [1, None, "é"]})) == '{"a":[1,null,"é"]}'.encode()


def test_a_large_body_is_read_in_pieces_to_be_written_as_json(monkeypatch):
    """Between two of them other threads may run, which they may not while one is read."""
    sizes = []
    read = codec._Pieces.read

    def note(pieces, size=-1):
        sizes.append(size)
        return read(pieces, size)

    monkeypatch.setattr(codec._Pieces, "read", note)
    small, large = {"a": [[1]] * 1_000}, {"a": [[1]] * 100_000}
    for body in (small, large):
        assert body_to_json(encode_body(body)) == orjson.dumps(body)
    assert len(sizes) > 10
    assert all(0 < size <= 16_384 for size in sizes)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"1", b'{"a":NaN}', b'{"a":9223372036854775808}', b'{"_id":1}', b"\xff"],
)
def test_other_json_is_refused(text):
    with pytest.raises(InvalidDocumentError):
        body_from_json(text)


def test_json_that_names_a_blob_that_is_not_held_is_refused():
    with pytest.raises(BlobNotFoundError):
        body_from_json(orjson.dumps({"a": {"@type": "blob", "digest": "sha1-xyz"}}))


# --- Bodies made to do harm ----------------------------------------------------------------------


def counted(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(counted, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(counted, value))
    return 1


@given(bodies, st.integers(1, 12))
def test_no_more_values_are_read_than_there_may_be(body: dict[str, object], most: int) -> None:
    text = orjson.dumps(body)
    if counted(body) > most:
        with pytest.raises(InvalidDocumentError, match="too many values"):
            parse_json(text, values_max=most)


@given(bodies)
def test_as_many_values_as_there_may_be_are_read(body: dict[str, object]) -> None:
    # Each array and object may count for one more than it holds.
    text = orjson.dumps(body)
    assert parse_json(text, values_max=2 * counted(body) + 1) == body


def test_what_stands_in_text_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_VALUES_MAX", 10)
    prose = {"a": ',[{"' * 50, 'b"\\': "\\,[", "c": ["x,y", "\\"]}
    assert parse_json(orjson.dumps(prose), values_max=10) == prose


@pytest.mark.parametrize("ending", [b"", b"\\", b"\\x", b'\\"', b'"x'])
@pytest.mark.parametrize("opening", [b"", b'"', b'""', b"["])
def test_text_that_does_not_end_keeps_nobody_waiting(opening: bytes, ending: bytes) -> None:
    """Each quote might be the beginning of a text: looking for the end from each takes minutes."""
    text = b"," * 50 + opening + b'\\"' * 50_000 + ending
    began = time.process_time()
    with pytest.raises(InvalidDocumentError):
        parse_json(text, values_max=10)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("value", [b"[]", b"{}", b"0", b'""', b"[0]", b'{"a":0}'])
def test_a_body_of_endless_values_is_refused_before_it_is_read(value: bytes) -> None:
    count = limits.BODY_VALUES_MAX + 1
    text = b'{"a":[' + b",".join([value] * count) + b"]}"
    with pytest.raises(InvalidDocumentError, match="too many values"):
        body_from_json(text)


def test_a_body_of_too_many_values_is_refused_here_as_it_would_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BODY_VALUES_MAX", 100)
    assert encode_body({"a": [0] * 98})
    for body in ({"a": [0] * 99}, {"a": [{}] * 99}, {"a": ((0,) * 50, [0] * 48)}):
        with pytest.raises(InvalidDocumentError, match="too many values"):
            encode_body(body)


@pytest.mark.parametrize(
    "number", [b"9" * 1_000_000, b"-" + b"9" * 1_000_000, b"1e999999", b"0." + b"9" * 1_000_000]
)
def test_huge_numbers_are_refused_or_rounded_at_once(number: bytes) -> None:
    try:
        body = decode_body(body_from_json(b'{"a":' + number + b"}"))
    except InvalidDocumentError:
        return
    assert body == {"a": 1.0}


def test_a_body_names_as_many_blobs_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_BLOBS_MAX", 10)
    blobs = [{"@type": "blob", "digest": format_digest(bytes([n] * 20))} for n in range(11)]
    assert encode_body({"a": blobs[:10] * 2, "b": ["sha1-"] * 20})
    for body in ({"a": blobs}, {"a": blobs[:6], "b": {"c": blobs[6:]}}):
        with pytest.raises(InvalidDocumentError, match="too many blobs"):
            encode_body(body)
        with pytest.raises(InvalidDocumentError, match="too many blobs"):
            body_from_json(orjson.dumps(body))


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
@pytest.mark.parametrize("depth", [limits.BODY_DEPTH_MAX, 1_000, 100_000])
def test_deep_json_is_refused_and_exhausts_no_stack(opening: bytes, depth: int) -> None:
    closing = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]"}[opening]
    with pytest.raises(InvalidDocumentError):
        body_from_json(b'{"a":' + opening * depth + b"0" + closing * depth + b"}")


def test_cbor_keys_that_are_chosen_to_collide_are_refused_unread() -> None:
    # Numbers are their own hashes: a mapping of many multiples of a power of two takes for ever.
    count = 100_000
    keys = b"".join(b"\x1b" + (i << 40).to_bytes(8, "big") + b"\x00" for i in range(count))
    with pytest.raises(InvalidDocumentError):
        check_body(b"\xa1\x61a\xba" + count.to_bytes(4, "big") + keys)
    arrays = b"".join(b"\x81\x1b" + (i << 40).to_bytes(8, "big") + b"\x00" for i in range(count))
    with pytest.raises(InvalidDocumentError):
        check_body(b"\xa1\x61a\xba" + count.to_bytes(4, "big") + arrays)


@given(bodies)
def test_values_and_keys_of_cbor_are_counted(body: dict[str, object]) -> None:
    def heads(value: object) -> int:
        if isinstance(value, dict):
            return 1 + sum(1 + heads(item) for item in value.values())
        return 1 + sum(map(heads, value)) if isinstance(value, list) else 1

    assert _heads(encode_body(body)) == heads(body)


@pytest.mark.parametrize("value", [b"\x80", b"\xa0", b"\x00", b"\x60", b"\x81"])
def test_cbor_of_endless_values_is_refused_before_it_is_read(value: bytes) -> None:
    count = 2 * limits.BODY_VALUES_MAX + 1
    encoded = b"\xa1\x61a\x9a" + count.to_bytes(4, "big") + value * count
    with pytest.raises(InvalidDocumentError, match="too many values"):
        check_body(encoded)


def test_a_large_cbor_body_of_few_values_is_read() -> None:
    body = {"text": "x" * 2 * limits.BODY_VALUES_MAX, "bytes": ["y" * 300] * 10, "n": -(2**40)}
    assert check_body(encode_body(body)) == body


@given(st.binary(max_size=50))
def test_counting_what_is_no_cbor_ends(encoded: bytes) -> None:
    assert 0 <= _heads(encoded) <= len(encoded)
