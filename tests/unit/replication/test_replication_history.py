"""How the Couchbase profile writes which versions a revision includes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import RemoteProtocolError
from trio_p2p.ids import SourceID, parse_source_id
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import TREE_SOURCE, TreeRevisionID, Version, VersionVector
from trio_p2p.replication.profiles.history import (
    history_of,
    read_revision,
    revision_id,
)

A, B, C, D = (
    Version(time, parse_source_id(source))
    for time, source in [
        (0xBFF, "AliceAliceAliceAliceAA"),
        (0xA, "BobBobBobBobBobBobBobA"),
        (0x9, "CarolCarolCarolCarolCA"),
        (0x8, "DaveDaveDaveDaveDaveDA"),
    ]
)
T3, T2, T1 = (TreeRevisionID.parse(text) for text in ("3-cccc", "2-abcd", "1-1234"))

sources = st.binary(min_size=16, max_size=16).filter(lambda raw: any(raw) and raw != TREE_SOURCE)
versions = st.builds(Version, st.integers(1, 2**64 - 1), sources.map(SourceID))
tree_ids = st.builds(TreeRevisionID, st.integers(1, 2**23 - 1), st.binary(min_size=1, max_size=32))


@st.composite
def revisions(draw):
    """Plain ones, merges with and without earlier versions, with and without tree tails, legacy."""
    trees = tuple(draw(st.lists(tree_ids, max_size=4)))
    deleted = draw(st.booleans())
    if trees and draw(st.booleans()):
        return Revision.from_tree(trees, EMPTY_BODY, deleted=deleted)
    made = draw(st.lists(versions, min_size=1, max_size=6, unique_by=lambda v: v.source))
    split = draw(st.integers(1, len(made)))
    vector = VersionVector(made[0], tuple(made[1:split]), tuple(made[split:]))
    return Revision(vector, EMPTY_BODY, deleted, trees)


def read(current, history):
    return read_revision(str(current), history, EMPTY_BODY, deleted=False)


def spelled(text):
    """The text with A, B, C and D replaced by versions."""
    names = {"A": A, "B": B, "C": C, "D": D}
    return "".join(str(names.get(character, character)) for character in text)


@pytest.mark.behaviour("S7", "V11b", "C14b")
@given(revisions())
def test_a_revision_is_put_together_as_it_was(revision):
    text = history_of(revision)
    assert read_revision(str(revision.id), text, EMPTY_BODY, deleted=revision.deleted) == revision


EXAMPLES = [
    (Revision(VersionVector(A)), ""),
    (Revision(VersionVector(A, (), (B, C))), "B, C"),
    (Revision(VersionVector(A, (B, C), (D,))), "B, C; D"),
    (Revision(VersionVector(A, (B, C))), "B, C;"),
    (Revision(VersionVector(A, (), (B, C)), trees=(T2, T1)), "B, C, 2-abcd, 1-1234"),
    (Revision(VersionVector(A, (B, C), (D,)), trees=(T1,)), "B, C; D, 1-1234"),
    (Revision(VersionVector(A, (B, C)), trees=(T1,)), "B, C; 1-1234"),
    (Revision(VersionVector(A), trees=(T2, T1)), "2-abcd, 1-1234"),
    (Revision.from_tree((T3, T2, T1), EMPTY_BODY, deleted=False), "2-abcd, 1-1234"),
    (Revision.from_tree((T3,), EMPTY_BODY, deleted=False), ""),
]


@pytest.mark.parametrize(("revision", "history"), EXAMPLES)
def test_a_history_is_written_as_couchbase_lite_writes_it(revision, history):
    assert history_of(revision) == spelled(history)


@pytest.mark.parametrize(("revision", "history"), EXAMPLES)
def test_spaces_in_a_history_may_be_left_out(revision, history):
    assert read(revision.id, spelled(history).replace(" ", "")) == revision


def test_more_tree_revisions_than_are_kept_are_cut_off():
    trees = tuple(TreeRevisionID(n, b"\xaa") for n in range(limits.TREE_REVISIONS_MAX + 5, 0, -1))
    assert read(A, ", ".join(map(str, trees))).trees == trees[: limits.TREE_REVISIONS_MAX]


@pytest.mark.parametrize(
    ("current", "history"),
    [
        ("", ""),
        ("*", ""),
        ("7@*", ""),
        ("0@AliceAliceAliceAliceAA", ""),
        ("BFF@AliceAliceAliceAliceAA", ""),
        ("bff@AliceAliceAliceAliceAB", ""),
        ("1-a", ""),
        ("1-aA", ""),
        ("0-11", ""),
        ("A", "A"),
        ("A", "B, B"),
        ("A", ";"),
        ("A", ", B"),
        ("A", "B; C; D"),
        ("A", "1-1234, B"),
        ("A", "2-abcd; 1-1234"),
        ("A", "nonsense"),
        ("3-cccc", "B"),
        ("3-cccc", "B, 2-abcd"),
        ("3-cccc", "2-xyz"),
        ("10000000000@Revision+Tree+Encoding", ""),
        ("10000000000@Revision+Tree+Encoding", "2-abcd"),
    ],
)
def test_a_malformed_history_is_refused(current, history):
    with pytest.raises(RemoteProtocolError):
        read(spelled(current), spelled(history))


@pytest.mark.parametrize(("revision", "_"), EXAMPLES[:4])
def test_a_whole_vector_may_stand_in_place_of_the_current_version(revision, _):
    assert read(revision.vector, "") == revision


pieces = st.lists(
    st.sampled_from(
        [
            "A",
            "B",
            "C",
            str(T1.as_version()),
            ";",
            ",",
            " ",
            "1-1234",
            "2-abcd",
            "@",
            "7",
            "-",
            "é",
            "\n",
        ]
    )
).map(lambda chosen: spelled("".join(chosen)))


@given(st.text() | pieces, st.text() | pieces)
@example("1-aa", "9" * 5000 + "-aa")
def test_any_text_is_a_history_or_refused(current, history):
    try:
        revision = read(current, history)
    except RemoteProtocolError:
        return
    assert read(revision.id, history_of(revision)) == revision


# --- Revision IDs and current revisions -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", A),
        ("A; B, C", A),
        ("A, B, C; D", A),
        ("A, B;", A),
        ("2-abcd", T2),
        ("2-abcd, 1-1234", T2),
    ],
)
def test_of_a_whole_vector_the_current_version_names_the_revision(text, expected):
    assert revision_id(spelled(text)) == expected


@pytest.mark.parametrize("separator", [", ", "; ", ""])
def test_what_stands_behind_an_id_is_not_read(separator):
    longest = TreeRevisionID(2**23 - 1, b"x" * 32)
    for named in (A, Version(2**64 - 1, A.source), T2, longest):
        if separator:
            assert revision_id(f"{named}{separator}{'x' * 10**6}") == named
        else:
            with pytest.raises(RemoteProtocolError):
                revision_id(f"{named}{'x' * 10**6}")


@given(st.one_of(st.text(), pieces, st.none(), st.integers(), st.lists(st.text())))
def test_anything_names_a_revision_or_is_refused(value):
    try:
        named = revision_id(value)
    except RemoteProtocolError:
        return
    assert revision_id(str(named)) == named
