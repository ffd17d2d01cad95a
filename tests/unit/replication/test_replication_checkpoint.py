"""Checkpoints: their JSON, what two copies agree on, their names, and the peer's sequences."""

import itertools
import time
from unittest import mock
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
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


def test_of_very_many_ranges_the_last_ones_are_left_out(monkeypatch):
    monkeypatch.setattr(limits, "CHECKPOINT_RANGES_MAX", 2)
    done = SequenceSet([(0, 3), (5, 8), (10, 11), (20, 30)])
    written = Checkpoint.from_json(Checkpoint(done, "7").to_json(0))
    assert written == Checkpoint(SequenceSet([(0, 3), (5, 8)]), "7")


def test_ranges_in_an_order_that_makes_them_costly_keep_nobody_waiting():
    """Each is put before all others: what a megabyte lists of them would take many seconds."""
    pairs = [number for start in range(10**5, 0, -1) for number in (2 * start, 1)]
    began = time.process_time()
    read = Checkpoint.from_json(orjson.dumps({"localCompleted": pairs, "remote": 7}))
    assert time.process_time() - began < 2
    assert len(read.local.ranges()) == 1 + limits.CHECKPOINT_RANGES_MAX
    assert read.remote == "7"


def test_a_checkpoint_larger_than_any_of_ours_counts_as_nothing_done():
    body = orjson.dumps({"local": 7, "remote": 7})
    room = limits.CHECKPOINT_BYTES_MAX - len(body)
    assert Checkpoint.from_json(body + b" " * room) == Checkpoint.from_json(body) != NOTHING
    assert Checkpoint.from_json(body + b" " * (room + 1)) == NOTHING


def test_a_checkpoint_of_as_many_ranges_as_may_be_is_taken_by_a_listener():
    start = 2**63 - 4 * limits.CHECKPOINT_RANGES_MAX
    ranges = [(start + 2 * n, start + 2 * n + 1) for n in range(2 * limits.CHECKPOINT_RANGES_MAX)]
    body = Checkpoint(SequenceSet([(0, 2**62), *ranges]), "7").to_json(2**33)
    assert len(body) < limits.CHECKPOINT_BYTES_MAX


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
    """Every offer that ever was, in order; what is done from the first one on is reached."""

    def __init__(self):
        self.offers: list[list] = []
        self.reached = None

    def begin(self, sequence):
        if [sequence, False] not in self.offers:
            self.offers.append([sequence, False])

    def complete(self, sequence):
        if [sequence, False] in self.offers:
            self.offers[self.offers.index([sequence, False])][1] = True
        done = list(itertools.takewhile(lambda offer: offer[1], self.offers))
        del self.offers[: len(done)]
        # What is offered once more does not take back what was reached since.
        if done and int(done[-1][0]) >= int(self.reached or 0):
            self.reached = done[-1][0]


steps = st.tuples(st.sampled_from(["begin", "complete"]), st.sampled_from("123456"))


@pytest.mark.behaviour("U13", "G6")
@given(st.lists(steps, max_size=60))
def test_sequences_are_reached_once_all_before_them_are_done(steps):
    sequences, naive = RemoteSequences(None), NaiveSequences()
    for name, sequence in steps:
        getattr(sequences, name)(sequence)
        getattr(naive, name)(sequence)
        assert sequences.reached == naive.reached


@given(st.lists(st.sampled_from(["begin", *"123456"]), max_size=60))
def test_with_too_many_gaps_what_is_behind_the_last_one_does_not_count(steps):
    """What is reached is at most what would be reached without a limit."""
    with mock.patch.object(limits, "SEQUENCE_GAPS_MAX", 2):
        sequences, naive, offered = RemoteSequences(None), NaiveSequences(), itertools.count(1)
        for step in steps:
            for told in (sequences, naive):
                if step != "begin":
                    told.complete(step)
            if step == "begin":
                sequence = str(next(offered))
                sequences.begin(sequence)
                naive.begin(sequence)
            assert int(sequences.reached or 0) <= int(naive.reached or 0)


def test_gaps_that_close_after_there_were_too_many_let_what_is_before_count(monkeypatch):
    monkeypatch.setattr(limits, "SEQUENCE_GAPS_MAX", 2)
    sequences = RemoteSequences(None)
    for sequence in "1234":
        sequences.begin(sequence)
    for sequence in "3421":
        sequences.complete(sequence)
    assert sequences.reached == "2"


def test_sequences_that_are_no_numbers_are_taken_in_the_order_of_their_offers():
    sequences = RemoteSequences('"7:3"')
    for sequence in ('"9:1"', '"8:2"'):
        sequences.begin(sequence)
    sequences.complete('"8:2"')
    assert sequences.reached == '"7:3"'
    sequences.complete('"9:1"')
    assert sequences.reached == '"8:2"'


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


def test_what_is_offered_ahead_of_its_turn_holds_back_and_does_not_count_itself():
    sequences = RemoteSequences("4")
    sequences.begin("9", in_order=False)
    sequences.begin("5")
    sequences.complete("5")
    assert sequences.reached == "4"
    sequences.complete("9")
    assert sequences.reached == "5"
    sequences.begin("9", in_order=False)
    sequences.complete("9")
    assert sequences.reached == "5"


@pytest.mark.parametrize("reached", ["4", '"4"', None])
def test_what_the_feed_has_passed_is_no_gap_when_it_is_offered_again(reached):
    sequences = RemoteSequences(reached)
    for sequence in ("5", "6"):
        sequences.begin(sequence)
    sequences.begin("3", in_order=False)
    sequences.complete("5")
    sequences.complete("6")
    assert sequences.reached == "6"


@given(st.lists(st.tuples(st.sampled_from("fmc"), st.integers(1, 9)), max_size=60))
def test_nothing_is_reached_that_is_open_however_its_offers_fall_together(steps):
    """A feed offers one sequence after the other; of those that are there any may be fetched."""
    sequences = RemoteSequences(None)
    opened: set[int] = set()
    offered = 0
    for what, number in steps:
        if what == "m":
            offered += 1
            sequences.begin(str(offered))
            opened.add(offered)
        elif what == "f":
            sequences.begin(str(number), in_order=False)
            if number > offered:
                opened.add(number)
        else:
            sequences.complete(str(number))
            opened.discard(number)
        reached = int(sequences.reached or 0)
        assert reached <= offered
        assert all(sequence > reached for sequence in opened)


def test_completing_what_was_not_offered_changes_nothing():
    sequences = RemoteSequences("4")
    sequences.complete("9")
    assert sequences.reached == "4"
