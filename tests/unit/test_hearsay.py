"""What peers say to people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.hearsay import repeatable


@pytest.mark.parametrize("text", ["", "no such database", "Kein Müsli für Zoë 🍎", "a 'b' \"c\\"])
def test_what_a_peer_says_is_repeated(text):
    assert repeatable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b]0;owned\x07",
        "no\nINFO: all is well",
        "a\rb",
        "a\x00b",
        "right\N{RIGHT-TO-LEFT OVERRIDE}left",
        "\x9b31m",
        "\u2028",
    ],
)
def test_commands_for_terminals_and_lines_of_its_own_are_not(text):
    told = repeatable(text)
    assert told.isprintable()
    assert len(told) == len(text)


@given(st.text())
def test_whatever_it_says_becomes_a_short_line(text):
    told = repeatable(text * 100)
    assert told.isprintable()
    assert len(told) <= limits.HEARSAY_CHARACTERS_MAX
