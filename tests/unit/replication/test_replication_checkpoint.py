"""Checkpoints: their JSON, what two copies agree on, their names, and the peer's sequences."""

from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.model.sequence_set import SequenceSet
from trio_p2p.replication.checkpoint import Checkpoint, RemoteSequences, checkpoint_id

NOTHING = Checkpoint()
OURS = UUID(int=1)

sequence_sets = st.lists(st.integers(0, 60)).map(lambda done: SequenceSet((n, n + 1) for n in done))
# What a peer may name a sequence by: any JSON, as its text.
plain_values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.text(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
)
remote_values = st.one_of(plain_values, st.lists(plain_values, max_size=3))
remotes = st.none() | remote_values.map(lambda value: orjson.dumps(value).decode())
checkpoints = st.builds(Checkpoint, sequence_sets, remotes)
json_values = st.recursive(
    st.none() | plain_values,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
)


# --- JSON -----------------------------------------------------------------------------------------


@given(checkpoints, st.integers(0, 2**40))
def test_a_checkpoint_is_read_as_it_was_written(checkpoint, time_s):
    assert Checkpoint.from_json(checkpoint.to_json(time_s)) == checkpoint


@pytest.mark.parametrize(
    ("checkpoint", "body"),
    [
        (NOTHING, {"time": 7}),
        (Checkpoint(SequenceSet([(0, 101)])), {"time": 7, "local": 100}),
        (
            Checkpoint(SequenceSet([(0, 3), (5, 8)])),
            {"time": 7, "local": 2, "localCompleted": [0, 3, 5, 3]},
        ),
        (Checkpoint(remote="2"), {"time": 7, "remote": 2}),
        (Checkpoint(remote='"9:7"'), {"time": 7, "remote": "9:7"}),
    ],
)
def test_a_checkpoint_is_written_as_couchbase_lite_writes_it(checkpoint, body):
    assert orjson.loads(checkpoint.to_json(7)) == body


@given(
    json_values
    | st.fixed_dictionaries(
        {}, optional={"local": json_values, "localCompleted": json_values, "remote": json_values}
    )
)
def test_any_json_is_read_as_some_checkpoint(value):
    checkpoint = Checkpoint.from_json(orjson.dumps(value))
    assert Checkpoint.from_json(checkpoint.to_json(0)) == checkpoint


@given(st.binary())
def test_bytes_that_are_no_json_object_count_as_nothing_done(garbage):
    assert Checkpoint.from_json(garbage) == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b'{"local":-1}',
        b'{"local":1.5}',
        b'{"local":true}',
        b'{"local":"7"}',
        b'{"local":9223372036854775808}',
        b'{"localCompleted":[0]}',
        b'{"localCompleted":[0,-1]}',
        b'{"localCompleted":7}',
        b'{"remote":null}',
        b'{"remote":' + b"[" * 400 + b"]" * 400 + b"}",
    ],
)
def test_what_cannot_be_understood_counts_as_nothing_done(body):
    assert Checkpoint.from_json(body) == NOTHING


# --- Agreement ------------------------------------------------------------------------------------


@pytest.mark.behaviour("U10", "U13")
@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (None, None, None),
        ("7", "7", "7"),
        ("7", "10", "7"),
        ("10", "7", "7"),
        ("7", None, None),
        (None, "7", None),
        ('"9:7"', '"9:7"', '"9:7"'),
        ('"9:7"', '"9:8"', None),
        ("7", '"7"', None),
        ("-7", "7", None),
    ],
)
def test_the_earlier_of_the_peers_sequences_counts_or_the_beginning(ours, theirs, agreed):
    assert Checkpoint(remote=ours).agreed(Checkpoint(remote=theirs)).remote == agreed


@pytest.mark.behaviour("U10")
@given(checkpoints, checkpoints)
def test_only_what_both_copies_say_is_done_counts(ours, theirs):
    agreed = ours.agreed(theirs)
    assert theirs.agreed(ours) == agreed
    assert agreed.remote in (ours.remote, theirs.remote, None)
    for sequence in range(62):
        both = sequence in ours.local and sequence in theirs.local
        assert (sequence in agreed.local) == both


@given(checkpoints)
def test_a_checkpoint_agrees_with_its_own_copy(checkpoint):
    assert checkpoint.agreed(checkpoint) == checkpoint


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.behaviour("G4")
def test_whatever_changes_the_meaning_of_a_checkpoint_changes_its_name():
    names = {
        checkpoint_id(OURS, "peer", "notes", None),
        checkpoint_id(UUID(int=2), "peer", "notes", None),
        checkpoint_id(OURS, "other", "notes", None),
        checkpoint_id(OURS, "peer", "shop.notes", None),
        checkpoint_id(OURS, "peer", "notes", []),
        checkpoint_id(OURS, "peer", "notes", ["a"]),
        checkpoint_id(OURS, "peer", "notes", ["a", "b"]),
        checkpoint_id(OURS, "peernotes", "", None),
    }
    assert len(names) == 8
    assert all(name.startswith("cp-") for name in names)


@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_document_ids_does_not_change_the_name(document_ids):
    expected = checkpoint_id(OURS, "peer", "notes", ["a", "b", "c"])
    assert checkpoint_id(OURS, "peer", "notes", document_ids) == expected


# --- The peer's sequences -------------------------------------------------------------------------


class NaiveSequences:
    """Every offer that ever was, in order; `reached` ends the prefix of those that are done."""

    def __init__(self) -> None:
        self.offers: list[list] = []

    def begin(self, sequence):
        if not any(offer[0] == sequence for offer in self.offers[self._done :]):
            self.offers.append([sequence, False])

    def complete(self, sequence):
        for offer in self.offers[self._done :]:
            if offer[0] == sequence:
                offer[1] = True

    @property
    def _done(self):
        flags = [done for _, done in self.offers]
        return flags.index(False) if False in flags else len(flags)

    @property
    def reached(self):
        return self.offers[self._done - 1][0] if self._done else None


steps = st.tuples(st.sampled_from(["begin", "complete"]), st.sampled_from("123456"))


@pytest.mark.behaviour("U13", "G6")
@given(st.lists(steps, max_size=40))
def test_sequences_are_reached_once_all_before_them_are_done(steps):
    sequences, naive = RemoteSequences(None), NaiveSequences()
    for name, sequence in steps:
        getattr(sequences, name)(sequence)
        getattr(naive, name)(sequence)
        assert sequences.reached == naive.reached


def test_a_gap_holds_back_what_is_done_behind_it():
    sequences = RemoteSequences("4")
    for sequence in ("5", "6", "7"):
        sequences.begin(sequence)
    sequences.complete("7")
    sequences.complete("6")
    assert sequences.reached == "4"
    sequences.complete("5")
    assert sequences.reached == "7"


def test_an_offer_that_is_repeated_while_it_is_open_counts_once():
    sequences = RemoteSequences(None)
    for sequence in ("1", "2", "1"):
        sequences.begin(sequence)
    sequences.complete("1")
    sequences.complete("2")
    assert sequences.reached == "2"


def test_completing_what_was_not_offered_changes_nothing():
    sequences = RemoteSequences("4")
    sequences.complete("9")
    assert sequences.reached == "4"
