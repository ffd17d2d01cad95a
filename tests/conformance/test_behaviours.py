"""Every line of what is expected has a test, or a reason why not, and the documents say which."""

from itertools import groupby

import pytest
from behaviours import DOCUMENT, Line, Mark, find_marks, problems, read_lines, render

# How many lines each section has, so that none is lost.
NUMBERS = {
    "B": 13,
    "W": 8,
    "L": 19,
    "T": 9,
    "I": 6,
    "R": 20,
    "P": 22,
    "U": 14,
    "C": 15,
    "D": 7,
    "A": 9,
    "K": 8,
    "S": 9,
    "V": 11,
    "G": 8,
    "X": 6,
    "O": 10,
}


@pytest.fixture(scope="module")
def marks():
    return find_marks()


def test_the_lines_are_complete_and_in_order():
    sections, lines = read_lines()
    numbers = [number for number, _ in groupby(line.number for line in lines)]
    assert numbers == [
        (letter, n) for letter, count in NUMBERS.items() for n in range(1, count + 1)
    ]
    assert sections.keys() == NUMBERS.keys()


def test_every_line_has_a_test_or_a_reason(marks):
    _, lines = read_lines()
    assert problems(lines, marks) == []


def test_every_mark_is_at_a_test(marks):
    for mark in marks:
        assert mark.test.startswith("test_") or not mark.test.islower(), mark


def test_the_page_is_written_from_the_lines_and_the_marks(marks):
    page = render(*read_lines(), marks)
    assert DOCUMENT.read_text() == page, "run `python tests/conformance/behaviours.py`"


@pytest.mark.parametrize(
    ("line", "marks", "complaint"),
    [
        (Line("P1", "…"), [], "neither a test nor a reason"),
        (Line("P1", "…"), [Mark("P1", "t.py", "test"), Mark("P2", "t.py", "test")], "no line"),
        (
            Line("P1", "…", inapplicable="…"),
            [Mark("P1", "t.py", "test")],
            "has a test, and a reason",
        ),
        (Line("P1", "…", not_yet="…"), [Mark("P1", "t.py", "test")], "has a test, and a reason"),
        (Line("P1", "…", inapplicable="…", not_yet="…"), [], "two reasons"),
    ],
)
def test_what_is_wrong_is_told(line, marks, complaint):
    (told,) = problems([line], marks)
    assert complaint in told


def test_marks_are_found_wherever_they_stand(tmp_path):
    directory = tmp_path / "tests"
    directory.mkdir()
    (directory / "test_it.py").write_text(
        "import pytest\n"
        'pytestmark = pytest.mark.behaviour("A1")\n'
        "@pytest.mark.behaviour('A2', 'A3')\n"
        "async def test_one(): ...\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.behaviour('A4'))])\n"
        "def test_two(x): ...\n"
    )
    assert find_marks(directory) == [
        Mark("A1", "tests/test_it.py", ""),
        Mark("A2", "tests/test_it.py", "test_one"),
        Mark("A3", "tests/test_it.py", "test_one"),
        Mark("A4", "tests/test_it.py", "test_two"),
    ]
