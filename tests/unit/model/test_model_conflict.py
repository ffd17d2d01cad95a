from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.ids import DocumentID, Sequence, SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import (
    Arrival,
    Conflict,
    ProposalStatus,
    carry_out,
    default_conflict_resolver,
    judge_arrival,
    judge_proposal,
    keep,
    merge_revisions,
    merges_merges,
    revives,
    settle_alone,
    supersede,
)
from trio_p2p.model.document import EMPTY_BODY, Document, Revision, Stored
from trio_p2p.model.version import Order, TreeRevisionID, Version, VersionVector, merge

SOURCES = [SourceID(bytes([n]) * 16) for n in (1, 2, 3, 4)]
A, B, C, ME = SOURCES
T1, T2, T2B = (TreeRevisionID.parse(text) for text in ("1-aa", "2-1111", "2-2222"))
LATER = Version(2**62, ME)


def stamp() -> Version:
    return LATER


def unwanted_stamp() -> Version:
    raise AssertionError("a new version was not needed")


def made(current: Version, *previous: Version, deleted: bool = False) -> Revision:
    body = EMPTY_BODY if deleted else encode_body({"made": str(current)})
    return Revision(VersionVector(current, (), previous), body, deleted)


def legacy(*trees: TreeRevisionID, deleted: bool = False) -> Revision:
    return Revision.from_tree(trees, encode_body({"tree": str(trees[0])}), deleted=deleted)


def edit_of(revision: Revision, version: Version, *, deleted: bool = False) -> Revision:
    body = EMPTY_BODY if deleted else encode_body({"made": str(version)})
    return revision.edited(version, body, deleted=deleted)


def document(revision: Revision) -> Document | None:
    stored = Stored(revision, Sequence(1))
    return None if revision.deleted else Document(DocumentID("a"), stored, None)


@st.composite
def revisions(draw):
    """Revisions as they are made here, whose current version is the greatest, and legacy ones."""
    deleted = draw(st.booleans())
    if draw(st.integers(0, 4)) == 0:
        return legacy(draw(st.sampled_from([T2, T2B])), T1, deleted=deleted)
    times = st.integers(2**50, 2**50 + 9)
    authors = draw(st.lists(st.sampled_from(SOURCES), min_size=1, unique=True))
    versions = sorted((Version(draw(times), author) for author in authors), reverse=True)
    merges = draw(st.booleans()) and len(versions) >= 3
    merged, previous = (versions[1:3], versions[3:]) if merges else ((), versions[1:])
    vector = VersionVector(versions[0], tuple(merged), tuple(previous))
    trees = draw(st.sampled_from([(), (T1,), (T2, T1)]))
    body = EMPTY_BODY if deleted else encode_body({"made": str(versions[0])})
    return Revision(vector, body, deleted, trees)


@st.composite
def conflicts(draw):
    first, second = draw(revisions()), draw(revisions())
    assume(first.compare(second) is Order.CONFLICTING)
    return first, second


# --- Verdicts -------------------------------------------------------------------------------------

LIVE = made(Version(5, A), Version(3, B))
GONE = made(Version(5, A), Version(3, B), deleted=True)


@pytest.mark.behaviour("V11a", "S5")
@pytest.mark.parametrize(
    ("current", "proposed", "parent", "status"),
    [
        (None, Version(1, B), None, ProposalStatus.WANTED),
        (None, Version(1, B), Version(5, A), ProposalStatus.WANTED),
        (LIVE, Version(5, A), None, ProposalStatus.HELD),
        (LIVE, Version(3, B), Version(5, A), ProposalStatus.HELD),
        (LIVE, Version(6, B), Version(5, A), ProposalStatus.WANTED),
        (LIVE, Version(6, B), Version(3, B), ProposalStatus.CONFLICT),
        (LIVE, Version(6, B), None, ProposalStatus.CONFLICT),
        (GONE, Version(6, C), None, ProposalStatus.WANTED),
        (GONE, Version(4, C), None, ProposalStatus.CONFLICT),
        (GONE, Version(6, C), Version(3, B), ProposalStatus.CONFLICT),
        (GONE, T2, None, ProposalStatus.CONFLICT),
        (legacy(T2, T1), T1, None, ProposalStatus.HELD),
        (legacy(T2, T1), Version(6, B), T2, ProposalStatus.WANTED),
        (legacy(T2, T1), Version(6, B), T2B, ProposalStatus.CONFLICT),
    ],
)
def test_a_proposal_is_wanted_held_or_a_conflict(current, proposed, parent, status):
    assert judge_proposal(current, proposed, parent) is status


def test_the_verdicts_on_a_proposal_are_the_numbers_on_the_wire():
    assert [int(status) for status in ProposalStatus] == [0, 304, 409]


@pytest.mark.parametrize(
    ("current", "proposed", "parent", "expected"),
    [
        (GONE, Version(6, C), None, True),
        (GONE, Version(5, B), None, True),
        (GONE, Version(4, C), None, False),
        (GONE, Version(6, C), Version(5, A), False),
        (GONE, T2, None, False),
        (LIVE, Version(6, C), None, False),
    ],
)
def test_only_a_later_version_without_a_parent_revives_a_tombstone(
    current, proposed, parent, expected
):
    assert revives(current, proposed, parent) is expected


@pytest.mark.parametrize(
    ("current", "arrived", "verdict"),
    [
        (None, LIVE, Arrival.STORE),
        (LIVE, edit_of(LIVE, Version(6, B)), Arrival.STORE),
        (LIVE, LIVE, Arrival.HELD),
        (edit_of(LIVE, Version(6, B)), LIVE, Arrival.HELD),
        (LIVE, made(Version(6, B)), Arrival.CONFLICT),
        (legacy(T2, T1), legacy(T2B, T1), Arrival.CONFLICT),
        (legacy(T1), legacy(T2, T1), Arrival.STORE),
    ],
)
def test_an_arrival_is_stored_held_or_a_conflict(current, arrived, verdict):
    assert judge_arrival(current, arrived) is verdict


# --- Keeping one side -----------------------------------------------------------------------------


def test_a_winner_of_the_greatest_version_is_joined_and_keeps_its_version():
    winner, loser = made(Version(6, A), Version(1, C)), made(Version(5, B), Version(2, C))
    kept = keep(winner, loser, unwanted_stamp)
    assert kept.vector == VersionVector(Version(6, A), (), (Version(5, B), Version(2, C)))
    assert kept.body == winner.body


def test_an_older_winner_becomes_a_merge_with_a_new_version():
    winner, loser = made(Version(5, B), deleted=True), made(Version(6, A))
    kept = keep(winner, loser, stamp)
    assert kept.vector == VersionVector(LATER, (Version(6, A), Version(5, B)))
    assert (kept.body, kept.deleted) == (EMPTY_BODY, True)


@pytest.mark.behaviour("V9")
def test_a_legacy_winner_takes_a_new_version_and_both_keep_their_trees():
    kept = keep(legacy(T2B, T1), legacy(T2, T1), stamp)
    assert kept.vector == VersionVector(LATER)
    assert kept.trees == (T2B, T1, T2)
    assert kept.body == legacy(T2B, T1).body
    assert not kept.is_legacy


@pytest.mark.behaviour("V10")
def test_a_legacy_loser_leaves_the_vector_as_it_is():
    winner = made(Version(2**60, A), Version(3, B))
    kept = keep(winner, legacy(T2, T1), unwanted_stamp)
    assert kept.vector == winner.vector
    assert kept.trees == (T2, T1)


def test_no_more_trees_are_kept_than_allowed():
    many = tuple(TreeRevisionID(n, b"\1") for n in range(limits.TREE_REVISIONS_MAX, 0, -1))
    kept = keep(legacy(*many), legacy(T2, T1), stamp)
    assert kept.trees == many


@given(conflicts())
def test_what_is_kept_includes_both_sides_and_has_the_winners_content(sides):
    winner, loser = sides
    kept = keep(winner, loser, stamp)
    assert kept.has(winner.id)
    assert kept.has(loser.id)
    assert (kept.body, kept.deleted) == (winner.body, winner.deleted)
    assert kept.compare(loser) is Order.NEWER
    assert kept.compare(winner) in (Order.SAME, Order.NEWER)


@given(conflicts())
def test_the_version_of_what_is_kept_is_the_greatest_in_its_vector(sides):
    kept = keep(*sides, stamp)
    assert kept.version == kept.vector.greatest()
    assert VersionVector.parse(str(kept.vector)) == kept.vector


@given(conflicts())
def test_a_merge_includes_both_sides_whatever_their_order(sides):
    first, second = sides
    body = encode_body({"merged": True})
    merged = merge_revisions(first, second, body, False, LATER)
    assert merged.version == merged.vector.greatest() == LATER
    assert merged.has(first.id)
    assert merged.has(second.id)
    assert (merged.body, merged.deleted) == (body, False)
    turned = merge_revisions(second, first, body, False, LATER)
    assert (turned.vector, set(turned.trees)) == (merged.vector, set(merged.trees))


# --- Conflicts that nobody is asked about ---------------------------------------------------------


@pytest.mark.behaviour("C14a")
def test_two_deletions_are_one_deletion():
    local, remote = made(Version(5, A), deleted=True), made(Version(6, B), deleted=True)
    settled = settle_alone(local, remote, unwanted_stamp)
    assert settled.vector == VersionVector(Version(6, B), (), (Version(5, A),))
    assert settled.deleted


def test_of_two_merges_of_the_same_versions_the_greater_version_wins():
    first, second = VersionVector(Version(5, A)), VersionVector(Version(6, B))
    local = Revision(merge(first, second, Version(8, C)), encode_body({"by": "c"}))
    remote = Revision(merge(second, first, Version(9, ME)), encode_body({"by": "me"}))
    settled = settle_alone(local, remote, unwanted_stamp)
    assert settled.version == Version(9, ME)
    assert settled.body == remote.body
    assert settled.has(local.id)


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        (made(Version(5, A)), made(Version(6, B))),
        (made(Version(5, A), deleted=True), made(Version(6, B))),
        (made(Version(5, A)), made(Version(6, B), deleted=True)),
        (legacy(T2), legacy(T2B)),
    ],
)
def test_other_conflicts_are_put_to_the_resolver(local, remote):
    assert settle_alone(local, remote, unwanted_stamp) is None


@pytest.mark.behaviour("C14a")
@given(conflicts())
def test_both_peers_settle_a_conflict_alike(sides):
    first, second = sides
    one, other = settle_alone(first, second, stamp), settle_alone(second, first, stamp)
    assert one == other
    if one is not None:
        assert one.has(first.id)
        assert one.has(second.id)


@given(conflicts())
def test_two_deletions_always_settle(sides):
    first, second = (replace(side, body=EMPTY_BODY, deleted=True) for side in sides)
    settled = settle_alone(first, second, stamp)
    assert settled.deleted
    assert settled.version == settled.vector.greatest()


# --- The default resolver -------------------------------------------------------------------------


@pytest.mark.behaviour("C12", "C14a")
@pytest.mark.parametrize(
    ("local", "remote", "winner"),
    [
        (made(Version(5, A)), made(Version(6, B)), "remote"),
        (made(Version(6, A)), made(Version(5, B)), "local"),
        (made(Version(5, A)), made(Version(5, B)), "remote"),
        (made(Version(5, B)), made(Version(5, A)), "local"),
        (made(Version(5, A), deleted=True), made(Version(6, B)), "nobody"),
        (made(Version(6, A)), made(Version(5, B), deleted=True), "nobody"),
    ],
)
def test_by_default_a_deletion_wins_then_the_later_then_the_greater_author(local, remote, winner):
    conflict = Conflict(DocumentID("a"), document(local), document(remote))
    expected = {"local": conflict.local, "remote": conflict.remote, "nobody": None}
    assert default_conflict_resolver(conflict) is expected[winner]


# --- What a newer revision takes the place of ----------------------------------------------------


def edited(sources: list[SourceID], times: list[int]) -> Revision:
    """A revision whose version is the greatest of its vector, as all that are made here."""
    versions = sorted(map(Version, times, sources), reverse=True)
    return Revision(VersionVector(versions[0], (), tuple(versions[1:])))


@given(
    st.lists(st.integers(1, 50), min_size=4, max_size=4, unique=True),
    st.lists(st.integers(51, 99), min_size=2, max_size=2, unique=True),
)
def test_what_was_decided_here_is_still_included_in_a_newer_revision(old, new):
    """Whoever made it may know only the side of a conflict that was kept."""
    current = edited(SOURCES, old)
    newer = Revision(VersionVector(Version(max(new), SOURCES[0]), (), (current.version,)))
    if current.version.source == SOURCES[0]:
        newer = Revision(VersionVector(Version(max(new), SOURCES[0])))
    stored = supersede(current, newer)
    assert stored.version == newer.version == max(stored.vector)
    assert all(map(stored.vector.has, (*current.vector, *newer.vector)))
    assert (stored.body, stored.deleted) == (newer.body, newer.deleted)


def test_a_newer_revision_that_includes_everything_is_stored_as_it_is():
    current = edited(SOURCES[:2], [1, 2])
    newer = Revision(current.vector.edited(Version(9, SOURCES[2])))
    assert supersede(current, newer) is newer
    assert supersede(None, newer) is newer


@pytest.mark.parametrize("seen", [True, False])
def test_to_take_the_place_of_a_revision_each_vector_is_gone_through_a_few_times(seen, monkeypatch):
    """However many authors there are: this is done in the transaction of a whole batch."""
    passes = 0
    original = VersionVector.__iter__

    def count(vector):
        nonlocal passes
        passes += 1
        return original(vector)

    authors = [SourceID(n.to_bytes(16, "big")) for n in range(1, 200)]
    current = edited(authors, list(range(1, 200)))
    later = Version(999, ME)
    newer = Revision(current.vector.edited(later) if seen else VersionVector(later))
    monkeypatch.setattr(VersionVector, "__iter__", count)
    stored = supersede(current, newer)
    assert passes < 10
    assert (stored is newer) is seen
    assert stored.vector == current.vector.edited(later)


def test_a_newer_revision_of_other_rules_is_stored_as_it_is():
    """Its current version is not the greatest: joined, ours would not be either."""
    current = edited(SOURCES[:2], [5, 9])
    newer = Revision(VersionVector(Version(7, SOURCES[2]), (), (current.version,)))
    assert supersede(current, newer) is newer


# --- What a resolver decided ----------------------------------------------------------------------


def test_the_side_that_says_what_was_decided_is_kept():
    local, remote = made(Version(3, A)), made(Version(5, B))
    kept = carry_out(local, remote, remote.body, False, unwanted_stamp)
    assert (kept.version, kept.body) == (remote.version, remote.body)
    assert kept.has(local.version)


def test_of_two_sides_that_say_what_was_decided_the_greater_version_is_kept():
    local, remote = made(Version(3, A)), replace(made(Version(5, B)), body=made(Version(3, A)).body)
    for first, second in ((local, remote), (remote, local)):
        assert carry_out(first, second, local.body, False, unwanted_stamp).version == Version(5, B)


def test_another_body_makes_a_revision_that_includes_both():
    local, remote = made(Version(3, A)), made(Version(5, B))
    merged = carry_out(local, remote, encode_body({"x": 1}), False, stamp)
    assert (merged.version, merged.body) == (LATER, encode_body({"x": 1}))
    assert set(merged.vector.merged) == {local.version, remote.version}


def test_a_deletion_that_was_decided_on_is_told_from_an_empty_body():
    local, remote = replace(made(Version(3, A)), body=EMPTY_BODY), made(Version(5, B))
    deleted = carry_out(local, remote, EMPTY_BODY, True, stamp)
    assert (deleted.version, deleted.deleted) == (LATER, True)


def test_a_merge_of_merges_is_one_of_which_both_sides_are_merges():
    one, other = made(Version(3, A)), made(Version(5, B))
    merged = merge_revisions(one, other, EMPTY_BODY, False, Version(7, C))
    assert merges_merges(merged, merged)
    assert not merges_merges(merged, edit_of(merged, Version(9, C)))
    assert not merges_merges(one, merged)
