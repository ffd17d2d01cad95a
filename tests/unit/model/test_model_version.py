from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.ids import SourceID, parse_source_id
from trio_p2p.model.clock import TIME_MAX
from trio_p2p.model.version import (
    TREE_SOURCE,
    Order,
    TreeRevisionID,
    Version,
    VersionVector,
    join,
    merge,
    parse_revision_id,
    relate,
)

NAMES = {
    "me": "MeMeMeMeMeMeMeMeMeMeMA",
    "A": "AliceAliceAliceAliceAA",
    "B": "BobBobBobBobBobBobBobA",
    "C": "CarolCarolCarolCarolCA",
    "D": "DaveDaveDaveDaveDaveDA",
}
SOURCES = {name: parse_source_id(text) for name, text in NAMES.items()}


def spelled(text: str) -> str:
    """The text with short names of authors replaced by source IDs."""
    words = {name: f"@{source}" for name, source in NAMES.items()}
    for name, word in words.items():
        for after in (",", ";", " ", ""):
            if after:
                text = text.replace(f"@{name}{after}", word + after)
            elif text.endswith(f"@{name}"):
                text = text.removesuffix(f"@{name}") + word
    return text


def version(text: str) -> Version:
    return Version.parse(spelled(text))


def vector(text: str) -> VersionVector:
    return VersionVector.parse(spelled(text))


sources = st.sampled_from([*SOURCES.values(), SourceID(b"\xff" * 16)])
any_sources = st.binary(min_size=16, max_size=16).filter(any).map(SourceID)
versions = st.builds(Version, st.integers(1, 2**64 - 1), any_sources)


@st.composite
def vectors(draw):
    """Valid vectors of few authors, not only those that are made here."""
    authors = draw(st.lists(sources, min_size=1, unique=True))
    made = [Version(draw(st.integers(1, 9)), author) for author in authors]
    split = draw(st.integers(1, len(made)))
    merged = made[1:split]
    if merged and made[0].time > 1 and draw(st.booleans()):
        # A merge of one's own revision.
        merged.append(made[0]._replace(time=made[0].time - 1))
    return VersionVector(made[0], tuple(merged), tuple(made[split:]))


# --- Versions -------------------------------------------------------------------------------------


@pytest.mark.behaviour("V3")
@pytest.mark.parametrize(
    ("text", "time"), [("1@A", 1), ("bff@A", 0xBFF), ("176cee53c5680000@A", 0x176CEE53C5680000)]
)
def test_a_version_is_a_hexadecimal_time_and_an_author(text, time):
    assert version(text) == Version(time, SOURCES["A"])
    assert str(version(text)) == spelled(text)


@pytest.mark.behaviour("V3")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "1",
        "1@",
        "1-@",
        "@11",
        "0@A",
        "1@0",
        "1@*",
        "1@**",
        "z@A",
        "BFF@A",
        "-1@A",
        "+1@A",
        "0x1@A",
        "1_0@A",
        "12345678123456789@A",
        "1@AliceAliceAliceAliceA",
        "1@AliceAliceAliceAliceAAA",
        "1@Alice!AliceAliceAliceA",
        "1@AAAAAAAAAAAAAAAAAAAAAA",
        " 1@A",
        "1 @A",
        "1@ A",
        "1@A ",
        "1@A\n",
        "1@A@A",
    ],
)
def test_other_spellings_of_a_version_are_refused(text):
    with pytest.raises(ValueError, match=r"version|source"):
        version(text)


@given(versions)
def test_versions_round_trip_through_text_and_bytes(made):
    assert Version.parse(str(made)) == made
    assert Version.from_bytes(made.to_bytes()) == made
    assert len(made.to_bytes()) == 24


@given(versions, versions)
def test_versions_sort_by_time_then_author_like_their_bytes(first, second):
    assert (first < second) == (first.to_bytes() < second.to_bytes())


@pytest.mark.parametrize("length", [0, 23, 25])
def test_a_version_has_24_bytes(length):
    with pytest.raises(ValueError, match="24 bytes"):
        Version.from_bytes(bytes(length))


# --- Tree revision IDs ----------------------------------------------------------------------------


@pytest.mark.behaviour("V3")
@pytest.mark.parametrize(
    "text",
    ["1-aa", "97-beef", "1234-d4596393df73462bbda0b9f8982c66a2", "2-" + "0f" * 20, "8388607-00"],
)
def test_a_tree_revision_id_is_a_generation_and_a_digest(text):
    parsed = parse_revision_id(text)
    assert isinstance(parsed, TreeRevisionID)
    assert str(parsed) == text


@pytest.mark.behaviour("V3")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-",
        "-",
        "-aa",
        "1-a",
        "1-aA",
        "1-AA",
        "0-11",
        "01-11",
        "-1-11",
        "1--aa",
        " 1-aa",
        "1-aa ",
        "1 -aa",
        "1-aa\n",
        "4294967296-aa",
        "99999999999-aa",
        "1-" + "00" * 33,
        "1-zz",
    ],
)
def test_other_spellings_of_a_tree_revision_id_are_refused(text):
    with pytest.raises(ValueError, match="tree revision"):
        parse_revision_id(text)


@pytest.mark.behaviour("V6")
@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2-1111", 0x211_1100_0000),
        ("1-345d1331e65b0a", 0x134_5D13_31E6),
        ("188-0102030405060708", 0xBC_01_02_03_04_05),
        ("1-00", 0x100_0000_0000),
        ("12345-e0c8012361e94df6a1e1c2977169480e", 0x3039_E0C8_0123_61),
    ],
)
def test_a_version_stands_for_a_tree_revision_id(text, time):
    stands = TreeRevisionID.parse(text).as_version()
    assert stands == Version(time, TREE_SOURCE)
    assert str(stands) == f"{time:x}@Revision+Tree+Encoding"


def test_the_greatest_generation_still_is_a_valid_time():
    greatest = TreeRevisionID.parse(f"8388607-{'ff' * 20}").as_version()
    assert greatest.time <= TIME_MAX
    assert Version.from_bytes(greatest.to_bytes()) == greatest
    with pytest.raises(ValueError, match="tree revision"):
        TreeRevisionID.parse("8388608-00")


def test_revision_ids_of_both_kinds_are_told_apart():
    assert parse_revision_id(spelled("1@A")) == Version(1, SOURCES["A"])
    assert parse_revision_id("1-aa") == TreeRevisionID(1, b"\xaa")


# --- Vectors as text and bytes --------------------------------------------------------------------


@pytest.mark.behaviour("V4")
@pytest.mark.parametrize(
    ("read", "written"),
    [
        ("7@me", "7@me"),
        ("7@me;", "7@me"),
        ("7@me; ", "7@me"),
        ("7@me;5@A,3@B", "7@me; 5@A, 3@B"),
        ("7@me; 5@A, 3@B", "7@me; 5@A, 3@B"),
        ("7@me,5@A,3@B;1@C", "7@me, 5@A, 3@B; 1@C"),
        ("7@me, 5@A, 3@B", "7@me, 5@A, 3@B;"),
        ("7@me, 5@A, 3@B;", "7@me, 5@A, 3@B;"),
        ("7@me, 6@me, 4@A; 2@C", "7@me, 6@me, 4@A; 2@C"),
    ],
)
def test_vectors_are_read_with_or_without_spaces_and_written_with(read, written):
    assert str(vector(read)) == spelled(written)


@pytest.mark.behaviour("V4")
def test_the_parts_of_a_vector_are_current_merged_and_previous():
    parsed = vector("7@me, 5@A, 3@B; 1@C")
    assert parsed.current == version("7@me")
    assert parsed.merged == (version("5@A"), version("3@B"))
    assert parsed.previous == (version("1@C"),)
    assert vector("7@me, 5@A").merged == (version("5@A"),)
    assert len(parsed) == len(list(parsed)) == 4


@pytest.mark.behaviour("V4")
@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        ",",
        "7@me,",
        "7@me,;",
        "; 5@A",
        "7@me; 5@A,",
        "7@me; 5@A; 3@B",
        "7@me\t; 5@A",
        "7@me; 6@me",
        "7@me; 5@A, 4@A",
        "7@me, 5@A; 4@A",
        "7@me, 5@A, 4@A;",
        "7@me, 6@me, 5@me;",
        "7@me, 7@me;",
        "6@me, 7@me;",
        "7@me; 2-aa",
    ],
)
def test_other_spellings_of_a_vector_are_refused(text):
    with pytest.raises(ValueError, match=r"version|author|source ID"):
        vector(text)


def test_a_vector_of_too_many_authors_is_refused():
    many = [str(Version(1, SourceID(n.to_bytes(16, "big")))) for n in range(1, 1_002)]
    assert len(list(VersionVector.parse(", ".join(many[1:])))) == limits.VECTOR_VERSIONS_MAX
    with pytest.raises(ValueError, match="too many"):
        VersionVector.parse(", ".join(many))


@given(vectors())
def test_vectors_round_trip_through_text_and_bytes(made):
    assert VersionVector.parse(str(made)) == made
    assert VersionVector.from_bytes(made.to_bytes()) == made


@pytest.mark.parametrize("raw", [b"", b"\0\0", b"\0\0" + b"x" * 23, b"\0\1" + b"x" * 24])
def test_damaged_bytes_of_a_vector_are_refused(raw):
    with pytest.raises(ValueError, match="damaged"):
        VersionVector.from_bytes(raw)


@given(st.text("0123456789abcdef@;, -ABC", max_size=60))
def test_any_text_is_a_vector_or_a_value_error(text):
    with suppress(ValueError):
        VersionVector.parse(text)


# --- Comparing ------------------------------------------------------------------------------------


@pytest.mark.behaviour("V5a", "V7")
@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        ("7@me", "7@me", Order.SAME),
        ("7@me; 3@B", "7@me; 5@A", Order.SAME),
        ("7@me; 5@A", "5@A", Order.NEWER),
        ("7@me; 5@A", "4@A; 3@B", Order.NEWER),
        ("6@me; 5@A", "7@me", Order.OLDER),
        ("7@me, 5@A, 4@B;", "4@B", Order.NEWER),
        ("7@me", "5@A", Order.CONFLICTING),
        ("7@me; 5@A", "6@A; 5@me", Order.CONFLICTING),
        # Each includes the other's current version: neither is taken for the newer one.
        ("7@me; 9@A", "8@A; 7@me", Order.CONFLICTING),
    ],
)
def test_vectors_compare_by_their_current_versions(first, second, order):
    opposite = {Order.NEWER: Order.OLDER, Order.OLDER: Order.NEWER}
    assert vector(first).compare(vector(second)) is order
    assert vector(second).compare(vector(first)) is opposite.get(order, order)


@pytest.mark.behaviour("V7")
@pytest.mark.parametrize(
    ("includes", "included", "order"),
    [
        (True, False, Order.NEWER),
        (False, True, Order.OLDER),
        (False, False, Order.CONFLICTING),
        (True, True, Order.CONFLICTING),
    ],
)
def test_the_order_follows_from_who_includes_whom(includes, included, order):
    assert relate(same=False, includes=includes, included=included) is order
    assert relate(same=True, includes=includes, included=included) is Order.SAME


def test_a_vector_has_every_version_up_to_the_latest_of_each_author():
    made = vector("7@me, 6@me, 4@A; 2@C")
    assert made.time_of(SOURCES["me"]) == 7
    assert made.time_of(SOURCES["D"]) == 0
    assert made.has(version("3@A"))
    assert made.has(version("7@me"))
    assert not made.has(version("5@A"))
    assert not made.has(version("1@D"))


@given(vectors(), vectors())
def test_a_vector_includes_another_if_it_has_all_its_versions(first, second):
    assert first.includes(second) == all(map(first.has, second))
    assert first.includes(first)
    assert join(first, second).includes(second)


# --- Edits, merges and joins ----------------------------------------------------------------------


@pytest.mark.behaviour("V5b")
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("5@A", "7@me", "7@me; 5@A"),
        ("6@me", "7@me", "7@me"),
        ("6@A; 5@me, 3@B", "7@me", "7@me; 6@A, 3@B"),
        ("7@me, 6@me, 4@A; 2@C, 1@D", "8@me", "8@me; 4@A, 2@C, 1@D"),
        ("7@me, 6@me, 4@A; 2@C, 1@D", "8@B", "8@B; 7@me, 4@A, 2@C, 1@D"),
    ],
)
def test_an_edit_puts_its_version_first_and_names_each_author_once(old, new, expected):
    assert str(vector(old).edited(version(new))) == spelled(expected)


@pytest.mark.behaviour("V5b", "V7")
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("6@me; 2@A, 1@D, 2@C", "4@A; 1@D, 2@C", "7@me, 6@me, 4@A; 2@C, 1@D"),
        ("4@A; 1@D, 2@C", "6@me; 2@A, 1@D, 2@C", "7@me, 6@me, 4@A; 2@C, 1@D"),
        ("2@B", "1@A", "7@me, 2@B, 1@A;"),
        # The second knows a later version of the first's author: the merge part goes.
        ("2@B", "1@A; 3@B", "7@me; 3@B, 1@A"),
        ("2@B", "3@B", "7@me; 3@B"),
    ],
)
def test_a_merge_names_the_two_that_it_merged_and_the_latest_of_all_others(first, second, expected):
    assert str(merge(vector(first), vector(second), version("7@me"))) == spelled(expected)


@pytest.mark.behaviour("V5b")
@pytest.mark.parametrize(
    ("winner", "loser", "expected"),
    [
        ("6@me; 2@A, 1@D, 2@C", "4@A; 1@D, 2@C", "6@me; 4@A, 2@C, 1@D"),
        ("6@me", "4@A", "6@me; 4@A"),
        ("6@me, 3@A, 2@B;", "4@C; 3@A", "6@me, 3@A, 2@B; 4@C"),
        ("6@me, 3@A, 2@B;", "4@A; 1@B", "6@me; 4@A, 2@B"),
        ("6@me, 5@me, 2@B;", "4@C; 2@me", "6@me, 5@me, 2@B; 4@C"),
    ],
)
def test_a_join_keeps_the_winners_version_and_includes_what_the_loser_did(winner, loser, expected):
    assert str(join(vector(winner), vector(loser))) == spelled(expected)


@pytest.mark.behaviour("V5c")
@pytest.mark.parametrize("room", [3, 4, 5, 100])
def test_a_vector_is_pruned_to_what_peers_accept_the_oldest_first(room, monkeypatch):
    monkeypatch.setattr(limits, "VECTOR_VERSIONS_MAX", room)
    first, second = vector("6@A; 5@B, 3@C"), vector("7@D; 4@C, 1@me")

    def expected(*versions):
        return [version(text) for text in versions][:room]

    assert list(first.edited(version("9@D"))) == expected("9@D", "6@A", "5@B", "3@C")
    merged = merge(first, second, version("9@me"))
    assert list(merged) == expected("9@me", "7@D", "6@A", "5@B", "4@C")
    joined = join(second, first)
    assert list(joined) == expected("7@D", "6@A", "5@B", "4@C", "1@me")
    for made in (merged, joined):
        assert VersionVector.parse(str(made)) == made


def test_a_version_that_was_merged_is_not_pruned_however_old(monkeypatch):
    monkeypatch.setattr(limits, "VECTOR_VERSIONS_MAX", 3)
    assert str(join(vector("9@me; 8@A, 7@B"), vector("1@C"))) == spelled("9@me; 8@A, 1@C")
    assert str(join(vector("9@me; 8@A, 3@C"), vector("1@C"))) == spelled("9@me; 8@A, 3@C")
    # A vector made elsewhere, whose current version is not the greatest.
    assert str(vector("2@C; 8@A, 7@B").edited(version("9@me"))) == spelled("9@me; 2@C, 8@A")


@pytest.mark.parametrize("late", ["6@me", "4@A"])
def test_a_version_that_is_not_later_than_all_is_a_mistake(late):
    with pytest.raises(AssertionError):
        vector("6@me; 4@A").edited(version(late))
    with pytest.raises(AssertionError):
        merge(vector("4@A"), vector("6@me"), version(late))


@given(vectors(), vectors())
def test_edits_merges_and_joins_are_valid_and_include_all_they_were_made_from(first, second):
    later = version("ff@me")
    merged = merge(first, second, later)
    assert merged == merge(second, first, later)
    joined = join(first, second)
    for made in (merged, joined):
        assert VersionVector.parse(str(made)) == made
        assert all(made.has(old) for old in (*first, *second))
    edited = first.edited(later)
    assert VersionVector.parse(str(edited)) == edited
    assert all(edited.has(old) for old in first)
    assert edited.greatest() == merged.greatest() == later
    assert joined.greatest() == max(first.greatest(), second.greatest())
