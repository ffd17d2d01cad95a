"""The resolvers to choose from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.ids import DocumentID, Sequence, SourceID
from trio_p2p.model.blob import format_digest
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import Conflict, default_conflict_resolver
from trio_p2p.model.document import Document, Revision, Stored
from trio_p2p.model.resolvers import local_wins, merge_fields, remote_wins
from trio_p2p.model.version import Version, VersionVector

A, B = SourceID(b"a" * 16), SourceID(b"b" * 16)
EARLIER, LATER = Version(3, A), Version(5, B)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.sampled_from("xy"),
    lambda items: (
        st.lists(items, max_size=2) | st.dictionaries(st.sampled_from("pq"), items, max_size=2)
    ),
    max_leaves=3,
)
bodies = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


class Collection:
    def make_blob(self, properties):
        return Blob(properties)


class Blob:
    def __init__(self, properties):
        self.properties = properties

    def blob_properties(self):
        return dict(self.properties)


def document(version, body):
    if body is None:
        return None
    revision = Revision(VersionVector(version), encode_body(body))
    return Document(DocumentID("a"), Stored(revision, Sequence(1)), Collection())


def conflict(earlier, later, base=None, *, swapped=False):
    sides = document(EARLIER, earlier), document(LATER, later)
    return Conflict(DocumentID("a"), *(sides[::-1] if swapped else sides), document(EARLIER, base))


def body_of(resolution):
    return resolution.body if isinstance(resolution, Document) else resolution


def exactly(body):
    """A body as it is written, but for the order of its fields: tells True from 1."""
    return {field: encode_body({field: value}) for field, value in body.items()}


def merged(earlier, later, base):
    return body_of(merge_fields(conflict(earlier, later, base)))


@pytest.mark.parametrize(("local", "remote"), [({"x": 1}, {"x": 2}), (None, {}), ({}, None)])
def test_one_side_always_wins(local, remote):
    found = conflict(local, remote)
    assert local_wins(found) is found.local
    assert remote_wins(found) is found.remote


@pytest.mark.parametrize(
    ("base", "earlier", "later", "expected"),
    [
        # Each side changed another field.
        ({"x": 1, "y": 1}, {"x": 2, "y": 1}, {"x": 1, "y": 2}, {"x": 2, "y": 2}),
        # Both changed one, in the same way or not.
        ({"x": 1}, {"x": 2}, {"x": 2}, {"x": 2}),
        ({"x": 1}, {"x": 2}, {"x": 3}, {"x": 3}),
        # One side or both added fields.
        ({}, {"x": 1}, {"y": 1}, {"x": 1, "y": 1}),
        ({}, {"x": 1}, {"x": 2}, {"x": 2}),
        # A field that was removed is removed, unless it was changed later.
        ({"x": 1, "y": 1}, {"y": 1}, {"x": 1, "y": 2}, {"y": 2}),
        ({"x": 1, "y": 1}, {"x": 1, "y": 2}, {"y": 1}, {"y": 2}),
        ({"x": 1}, {}, {"x": 2}, {"x": 2}),
        ({"x": 1}, {"x": 2}, {}, {}),
        # Lists and mappings are values like others.
        ({"x": [1], "y": 1}, {"x": [1, 2], "y": 1}, {"x": [1], "y": 2}, {"x": [1, 2], "y": 2}),
        ({"x": {"p": 1}}, {"x": {"p": 2}}, {"x": {"p": 1, "q": 1}}, {"x": {"p": 1, "q": 1}}),
        ({"x": {"p": 1, "q": 2}}, {"x": {"p": 3}}, {"x": {"q": 2, "p": 1}}, {"x": {"p": 3}}),
        # What is equal in Python only is a change.
        ({"x": 1}, {"x": 2}, {"x": True}, {"x": True}),
        ({"x": 0}, {"x": False}, {"x": 0}, {"x": False}),
        ({"x": None}, {"x": None}, {}, {}),
    ],
)
def test_fields_are_merged_as_they_were_changed(base, earlier, later, expected):
    assert exactly(merged(earlier, later, base)) == exactly(expected)


def test_without_what_both_started_from_the_later_side_wins_as_a_whole():
    found = conflict({"x": 1, "y": 1}, {"x": 2})
    assert merge_fields(found) is found.remote


@pytest.mark.parametrize(("earlier", "later"), [(None, {"x": 2}), ({"x": 2}, None)])
def test_a_deletion_of_the_document_wins(earlier, later):
    found = conflict(earlier, later, {"x": 1})
    assert merge_fields(found) is default_conflict_resolver(found) is None


@pytest.mark.parametrize(
    ("earlier", "later", "side"),
    [({"x": 2}, {"x": 1}, "local"), ({"x": 1}, {"x": 2}, "remote"), ({"x": 2}, {"x": 2}, "remote")],
)
def test_a_side_that_is_what_came_of_the_merge_is_kept(earlier, later, side):
    found = conflict(earlier, later, {"x": 1})
    assert merge_fields(found) is getattr(found, side)


def test_blobs_are_told_apart_by_what_names_them():
    one, other = (
        {"@type": "blob", "digest": format_digest(letter * 20), "length": 1}
        for letter in (b"1", b"2")
    )
    found = merge_fields(conflict({"p": other, "x": 1}, {"p": one, "x": 2}, {"p": one, "x": 1}))
    assert found["p"].properties == other
    assert found["x"] == 2


@given(bodies, bodies, bodies | st.none())
def test_both_peers_merge_alike(earlier, later, base):
    results = [
        encode_body(body_of(merge_fields(conflict(earlier, later, base, swapped=swapped))))
        for swapped in (False, True)
    ]
    assert results[0] == results[1]


@given(bodies, bodies, bodies)
def test_a_field_is_never_made_up(earlier, later, base):
    for field, value in merged(earlier, later, base).items():
        assert any(
            field in side and encode_body({"": side[field]}) == encode_body({"": value})
            for side in (earlier, later)
        )


@given(bodies, bodies)
def test_changes_of_one_side_alone_are_taken_whole(base, changed):
    for sides in ((changed, base), (base, changed)):
        found = merge_fields(conflict(*sides, base))
        assert isinstance(found, Document)
        assert found.body == changed
