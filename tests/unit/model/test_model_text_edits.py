import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from trio_p2p import limits
from trio_p2p.errors import DeltaError
from trio_p2p.model.text_edits import Effort, apply_edits, make_edits

# One, two, three and four bytes of UTF-8, some sharing their first byte; and what edits are of.
LETTERS = "ab\0é¢日本\U0001f300\U0001f301 09=+-|\n"
texts = st.text(LETTERS, max_size=40)
HOWL = "To the wolf he said that it was late. The wolf heard nothing"


@st.composite
def edited_texts(draw):
    """A text, and what some edits make of it."""
    old = new = draw(st.text(LETTERS, max_size=400))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(new)))
        end = draw(st.integers(start, min(start + 20, len(new))))
        new = new[:start] + draw(texts) + new[end:]
    return old, new


def plenty() -> Effort:
    return Effort(limits.DELTA_STEPS_MAX)


def made(old: str, new: str) -> str:
    """The edits between two texts, carried out to see that they are right."""
    edits = make_edits(old, new, plenty())
    assert apply_edits(old, edits, plenty()) == new
    return edits


def long_text(seed: int, letters: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters, k=letters))


def punched(text: str, every: int) -> str:
    """A text with one letter put in after so many."""
    return "#".join(text[at : at + every] for at in range(0, len(text), every))


# --- Making ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "edits"),
    [
        (HOWL, "60="),
        (HOWL + " and howled", "60=11+ and howled|"),
        ("Late. " + HOWL, "6+Late. |60="),
        (HOWL[:36] + HOWL[45:], "36=9-15="),
        (HOWL.replace("nothing", "much"), "53=7-4+much|"),
        (HOWL.replace("wolf", "fox"), "7=4-3+fox|31=4-3+fox|14="),
        ("", "60-"),
    ],
)
def test_edits_tell_what_was_kept_left_out_and_put_in(new, edits):
    assert made(HOWL, new) == edits


def test_edits_count_bytes():
    assert made("日本" * 10 + "xyz", "日本" * 10 + "xé日") == "61=2-5+é日|"


@pytest.mark.behaviour("D7")
def test_a_character_is_never_split_although_its_first_bytes_stay():
    assert made("abcdefgh é", "abcdefgh ¢") == "9=2-2+¢|"


def test_letters_between_two_changes_are_written_anew_where_that_is_shorter():
    assert made("-" * 20 + "ab.cd" + "-" * 20, "-" * 20 + "AB.CD" + "-" * 20) == "20=5-5+AB.CD|20="


@given(edited_texts())
def test_edits_lead_from_any_text_to_any_other(texts):
    made(*texts)


@given(edited_texts(), st.integers(0, 200))
def test_edits_are_right_however_little_effort_goes_into_them(texts, steps):
    old, new = texts
    assert apply_edits(old, make_edits(old, new, Effort(steps)), plenty()) == new


@given(edited_texts())
def test_edits_begin_and_end_at_characters(texts):
    """Each operation of its own spans whole characters."""
    old, new = texts
    source = old.encode()
    script = make_edits(old, new, plenty()).encode()
    at = 0
    while script:
        count, kind, rest = re.fullmatch(rb"([0-9]+)([=+-])(.*)", script, re.DOTALL).groups()
        end = int(count)
        if kind == b"+":
            rest[:end].decode()
            script = rest[end + 1 :]
        else:
            source[at : at + end].decode()
            at += end
            script = rest


@pytest.mark.parametrize("letters", [5_000, 50_000, 1_000_000])
def test_a_few_edits_of_a_long_text_take_little_room(letters):
    old = long_text(1, letters)
    new = punched(old, letters // 10)
    assert len(made(old, new)) < 9 * len("100000=1+#|") + 10


def test_a_moved_passage_does_not_mislead():
    first, second, third = (long_text(seed, 20_000) for seed in (1, 2, 3))
    edits = made(first + second + third, first + third + second)
    assert len(edits) < 21_000


def test_long_texts_that_share_nothing_are_replaced():
    old, new = long_text(1, 50_000), long_text(2, 50_000)
    assert made(old, new) == f"50000-50000+{new}|"


def test_a_passage_that_occurs_twice_does_not_mislead():
    """The middle of what differs lies where it stands for the second time."""
    twice, between, last = map(long_text, (1, 2, 3), (8_000, 500, 8_000))
    old = twice + between + twice + last
    new = f"#{twice}{between}#{twice}{last}#"
    assert len(made(old, new)) < 4 * len("100000=1+#|")


def test_a_text_that_repeats_itself_has_no_landmarks():
    old = "one two three four five six seven " * 2_000
    made(old, "zero " + old[:-6] + "eight ")


class CountedEffort(Effort):
    """Notes how much was asked for."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.asked = 0

    def spend(self, steps: int) -> bool:
        enough = super().spend(steps)
        self.asked += steps if enough else 0
        return enough


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (long_text(1, 3_000_000), long_text(2, 3_000_000)),
        (long_text(1, 20_000), long_text(2, 20_000)),
        ("a" * 3_000_000, "b" + "ab" * 1_500_000 + "b"),
        (long_text(1, 3_000_000), punched(long_text(1, 3_000_000), 30)),
        (long_text(1, 3_000_000), punched(long_text(1, 3_000_000), 300)),
    ],
    ids=[
        "nothing in common",
        "nothing of less",
        "all the same",
        "changed all over",
        "changed often",
    ],
)
def test_no_two_texts_take_more_than_the_effort_given(old, new, monkeypatch):
    compared = []

    def noting(first, second):
        compared.append(len(first) * len(second))
        return opcodes(first, second)

    opcodes = Levenshtein.opcodes
    monkeypatch.setattr(Levenshtein, "opcodes", noting)
    effort = CountedEffort(limits.DELTA_STEPS_MAX)
    assert apply_edits(old, make_edits(old, new, effort), plenty()) == new
    assert effort.asked <= limits.DELTA_STEPS_MAX
    assert max(compared, default=0) <= limits.DELTA_CELLS_MAX


# --- Applying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", ["3=1-", "4-3+abc|", "0=0+|2=2=0-", "1=1=1=1=", "2-2+ab|2="])
def test_edits_may_be_written_in_other_ways_than_ours(edits):
    apply_edits("abcd", edits, plenty())


@pytest.mark.parametrize(
    "edits",
    [
        "",
        "3=",
        "5=",
        "5-",
        "4=1-",
        "4",
        "=4",
        "x",
        "4=x",
        "4= ",
        " 4=",
        "-4=",
        "+4=",
        "4=1+a",
        "4=2+a|",
        "4=1+ab|",
        "4=9+a|",
        "4.0=",
        "٤=",
        "4=\ud800",
        "9999999999999999999999=",
        "4=99999999+|",
    ],
)
def test_other_edits_are_refused(edits):
    with pytest.raises(DeltaError):
        apply_edits("abcd", edits, plenty())


@pytest.mark.parametrize("edits", ["1=1-", "1-1=", "2-1+é|", "1=2-", "1-2+a"])
def test_what_is_no_text_afterwards_is_refused(edits):
    with pytest.raises(DeltaError):
        apply_edits("é", edits, plenty())


def test_a_split_that_leaves_a_text_is_none():
    """Other implementations see bytes where we see characters."""
    assert apply_edits("aéb", "1=1-1-1=", plenty()) == "ab"


@given(st.text(), st.text() | st.text("0123456789=+-|é"))
def test_edits_are_carried_out_or_refused(old, edits):
    try:
        new = apply_edits(old, edits, plenty())
    except DeltaError:
        return
    assert len(new.encode()) <= len(old.encode()) + len(edits.encode())


def test_very_many_edits_are_refused():
    with pytest.raises(DeltaError):
        apply_edits("a" * 100, "1=" * 100, Effort(99))
    assert apply_edits("a" * 100, "1=" * 100, Effort(100)) == "a" * 100
