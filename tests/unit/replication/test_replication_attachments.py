"""Blobs as older peers list them."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import InvalidDocumentError
from trio_p2p.model.blob import digests, format_digest, named_blobs, with_blobs
from trio_p2p.model.codec import decode_body
from trio_p2p.replication.profiles.attachments import body_from_peer, with_stubs

DIGEST = format_digest(bytes(range(20)))
BLOB = {"@type": "blob", "digest": DIGEST, "length": 3, "content_type": "text/plain"}
STUB = {"digest": DIGEST, "length": 3, "content_type": "text/plain", "stub": True, "revpos": 1}


def test_each_blob_is_listed_by_the_path_to_it():
    body = {"photo": BLOB, "more": [{"a/b": BLOB}], "~": BLOB, "other": DIGEST}
    assert orjson.loads(with_stubs(orjson.dumps(body))) == body | {
        "_attachments": {"blob_/photo": STUB, "blob_/more/0/a~1b": STUB, "blob_/~0": STUB}
    }


def test_a_list_of_blobs_is_no_part_of_a_body():
    body = orjson.dumps({"photo": BLOB, "_attachments": {"blob_/photo": STUB}})
    assert decode_body(body_from_peer(body)) == {"photo": BLOB}


def test_attachments_of_their_own_are_kept_and_count_as_blobs():
    body = {"n": 1, "_attachments": {"photo.png": STUB, "note": "text", "blob_/x": STUB}}
    encoded = body_from_peer(orjson.dumps(body))
    kept = {"n": 1, "_attachments": {"photo.png": STUB, "note": "text"}}
    assert decode_body(encoded) == kept
    assert digests(encoded) == {bytes(range(20))}
    assert named_blobs(encoded) == {bytes(range(20)): STUB}
    made = with_blobs(kept, lambda naming: ("blob", naming["digest"]))
    assert made == {"n": 1, "_attachments": {"photo.png": ("blob", DIGEST), "note": "text"}}


def test_they_go_on_beside_what_is_listed_for_a_peer():
    body = {"photo": BLOB, "_attachments": {"photo.png": STUB}}
    told = orjson.loads(with_stubs(orjson.dumps(body)))
    assert told["_attachments"] == {"photo.png": STUB, "blob_/photo": STUB}


@pytest.mark.parametrize("value", [None, 1, "x", [], [{"photo.png": STUB}]])
def test_what_is_no_list_is_left_alone(value):
    body = orjson.dumps({"photo": BLOB, "_attachments": value})
    assert orjson.loads(with_stubs(body)) == orjson.loads(body)


def test_a_list_that_would_be_larger_than_a_body_is_left_out(monkeypatch):
    body = {"x" * 1_000: [BLOB] * 50, "photo": BLOB}
    monkeypatch.setattr(limits, "BODY_BYTES_MAX", 100_000)
    assert len(orjson.loads(with_stubs(orjson.dumps(body)))["_attachments"]) == 51
    monkeypatch.setattr(limits, "BODY_BYTES_MAX", 40_000)
    assert orjson.loads(with_stubs(orjson.dumps(body))) == body


def test_long_paths_to_many_values_keep_nobody_waiting():
    """Written for each of them, these would be gigabytes."""
    value = {"photo": BLOB, "many": [[{}] * 1_000] * 50}
    for _ in range(50):
        value = {"x" * 20_000: value}
    began = time.process_time()
    told = orjson.loads(with_stubs(orjson.dumps(value)))
    assert time.process_time() - began < 2
    assert len(told["_attachments"]) == 1


@pytest.mark.parametrize("text", [b"", b"[]", b'{"_id":1}', b'{"_attachments":1,"_rev":2}'])
def test_what_is_no_body_is_refused(text):
    with pytest.raises(InvalidDocumentError):
        body_from_peer(text)


bodies = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.just(BLOB),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b/", "c~"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("xyz"), bodies, max_size=3))
def test_what_is_listed_for_an_older_peer_comes_back_as_it_was(body):
    assert decode_body(body_from_peer(with_stubs(orjson.dumps(body)))) == body
