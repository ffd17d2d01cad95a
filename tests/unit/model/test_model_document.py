from datetime import UTC, datetime

import pytest

from trio_p2p.ids import DocumentID, Sequence, parse_source_id
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import EMPTY_BODY, Document, Revision, Stored
from trio_p2p.model.version import Order, TreeRevisionID, Version, VersionVector

ALICE = parse_source_id("AliceAliceAliceAliceAA")
BOB = parse_source_id("BobBobBobBobBobBobBobA")
T1, T2, T2B = (TreeRevisionID.parse(text) for text in ("1-aa", "2-1111", "2-2222"))
BODY = encode_body({"name": "Alice"})


def revision(text: str, *trees: TreeRevisionID) -> Revision:
    text = text.replace("Alice", "AliceAliceAliceAliceAA").replace("Bob", "BobBobBobBobBobBobBobA")
    return Revision(VersionVector.parse(text), BODY, trees=trees)


def legacy(*trees: TreeRevisionID) -> Revision:
    return Revision.from_tree(trees, BODY, deleted=False)


def document(revision: Revision, name: str = "a", sequence: int = 1) -> Document:
    return Document(DocumentID(name), Stored(revision, Sequence(sequence)), None)


def test_a_revision_is_named_by_its_current_version():
    made = revision("9@Alice; 4@Bob")
    assert made.id == made.version == Version(9, ALICE)
    assert not made.is_legacy


def test_a_revision_that_was_never_edited_since_is_named_by_its_tree_revision_id():
    old = legacy(T2, T1)
    assert old.is_legacy
    assert old.id == T2
    assert old.version == T2.as_version()


def test_an_edited_revision_keeps_its_tree_revision_ids_but_not_their_version():
    edited = legacy(T2, T1).edited(Version(2**60, ALICE), EMPTY_BODY, deleted=True)
    assert (edited.id, edited.trees) == (Version(2**60, ALICE), (T2, T1))
    assert list(edited.vector) == [Version(2**60, ALICE)]
    assert edited.deleted
    assert not edited.is_legacy


@pytest.mark.parametrize(
    ("revision_id", "held"),
    [
        (Version(9, ALICE), True),
        (Version(3, ALICE), True),
        (Version(10, ALICE), False),
        (Version(4, BOB), True),
        (Version(5, BOB), False),
        (T1, True),
        (T2, False),
    ],
)
def test_a_revision_has_what_it_was_made_on(revision_id, held):
    assert revision("9@Alice; 4@Bob", T1).has(revision_id) is held


@pytest.mark.behaviour("V11c")
def test_a_revision_has_the_tree_revision_id_that_a_version_stands_for():
    vector = VersionVector(Version(2**60, ALICE), (), (T2.as_version(),))
    assert Revision(vector).has(T2)
    assert not Revision(vector).has(T2B)


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        (revision("9@Alice"), revision("9@Alice; 4@Bob"), Order.SAME),
        (revision("9@Alice; 4@Bob"), revision("4@Bob"), Order.NEWER),
        (revision("3@Alice"), revision("9@Alice; 4@Bob"), Order.OLDER),
        (revision("9@Alice"), revision("4@Bob"), Order.CONFLICTING),
        (legacy(T2, T1), legacy(T2), Order.SAME),
        (legacy(T2, T1), legacy(T1), Order.NEWER),
        (legacy(T1), legacy(T2, T1), Order.OLDER),
        (legacy(T2, T1), legacy(T2B, T1), Order.CONFLICTING),
        (revision("9@Alice", T2, T1), legacy(T2, T1), Order.NEWER),
        (legacy(T1), revision("9@Alice", T2, T1), Order.OLDER),
        (revision("9@Alice", T2, T1), legacy(T2B, T1), Order.CONFLICTING),
        (revision("9@Alice"), legacy(T1), Order.CONFLICTING),
    ],
)
def test_revisions_compare_by_versions_and_tree_revision_ids(first, second, order):
    assert first.compare(second) is order


def test_a_document_shows_its_revision():
    shown = document(revision("9@Alice; 4@Bob"))
    assert shown["name"] == "Alice"
    assert shown.body == {"name": "Alice"}
    assert shown.version == Version(9, ALICE)
    assert shown.vector == shown.revision.vector
    assert not shown.deleted
    assert repr(shown) == f"<Document 'a' 9@AliceAliceAliceAliceAA {len(BODY)} bytes>"


def test_a_body_is_fresh_each_time():
    shown = document(revision("9@Alice"))
    shown.body["name"] = "Bob"
    assert shown["name"] == "Alice"


def test_a_tombstone_has_an_empty_body():
    gone = document(revision("4@Bob").edited(Version(9, ALICE), EMPTY_BODY, deleted=True))
    assert gone.deleted
    assert gone.body == {}
    assert repr(gone).endswith("deleted>")


def test_documents_are_equal_when_they_show_one_revision_whatever_their_sequences():
    one, same = document(revision("9@Alice")), document(revision("9@Alice"), sequence=2)
    assert one == same
    assert hash(one) == hash(same)
    assert one != document(revision("9@Alice"), "b")
    assert one != document(revision("8@Alice"))
    assert one != "a"


def test_the_timestamp_is_the_time_of_the_version():
    time = 1_700_000_000 * 10**9 + 123_456_789
    shown = document(Revision(VersionVector(Version(time, ALICE))))
    assert shown.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
