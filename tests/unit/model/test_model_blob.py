"""How bodies name blobs."""

from __future__ import annotations

import hashlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.model import blob
from trio_p2p.model.codec import encode_body

DIGEST = "sha1-QneWo5IYIQ0ZrbCG0hXPGC6jy7E="
SHA1 = hashlib.sha1(b"This is a blob to store in the store!").digest()


def naming(sha1, **others):
    return {"@type": "blob", "digest": blob.format_digest(sha1), "length": 1, **others}


def test_a_digest_is_written_as_couchbase_lite_writes_it():
    assert blob.format_digest(SHA1) == DIGEST
    assert blob.parse_digest(DIGEST) == SHA1


@given(st.binary(min_size=20, max_size=20))
def test_a_digest_reads_back(sha1):
    assert blob.parse_digest(blob.format_digest(sha1)) == sha1


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        "sha1-",
        DIGEST[:-1],
        DIGEST + "=",
        DIGEST.replace("sha1", "SHA1"),
        DIGEST.replace("sha1", "md5-"),
        DIGEST.replace("=", "A"),  # 21 bytes
        "sha1-QneWo5IYIQ0ZrbCG0hXPGC6jy7F=",  # bits that stand for nothing
        "sha1-../../../../../../etc/pas",
        DIGEST.replace("Q", "é"),
        DIGEST.replace("Q", " "),
    ],
)
def test_what_is_no_digest_is_none(text):
    assert blob.parse_digest(text) is None


@given(st.text())
def test_only_what_would_be_written_is_read(text):
    sha1 = blob.parse_digest(text)
    assert sha1 is None or blob.format_digest(sha1) == text


values = st.recursive(
    st.none() | st.integers(-9, 9) | st.just(DIGEST) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "digest"]), inner, max_size=3)
        | st.builds(lambda n, rest: naming(bytes([n] * 20), **rest), st.integers(0, 3), st.just({}))
    ),
    max_leaves=10,
)


def expected_digests(value, root=True):
    """An independent reading: walk it and collect."""
    found = set()
    if isinstance(value, dict):
        if not root and value.get("@type") == "blob":
            found.add(blob.parse_digest(value["digest"]))
        for item in value.values():
            found |= expected_digests(item, root=False)
    if isinstance(value, list):
        for item in value:
            found |= expected_digests(item, root=False)
    return found


@pytest.mark.behaviour("A8")
@given(st.dictionaries(st.sampled_from("xyz"), values, max_size=3))
def test_the_digests_in_a_body_are_found_wherever_they_stand(body):
    encoded = encode_body(body)
    assert blob.digests(encoded) == expected_digests(body)
    assert blob.may_name_blobs(encoded) or not expected_digests(body)
    made = []

    def make(properties):
        made.append(blob.parse_digest(properties["digest"]))
        return properties

    body = cbor2.loads(encoded)
    assert blob.with_blobs(body, make) == body
    assert set(made) == expected_digests(body)


def test_a_body_that_is_like_a_blob_itself_names_none():
    assert blob.digests(encode_body(naming(SHA1))) == frozenset()
