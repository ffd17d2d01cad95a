"""The frames and conversations on the page about the wire protocol are real ones."""

import re
from pathlib import Path

import pytest
from pages import blocks_of
from wire_examples import CONVERSATIONS, Reader, bytes_of, open_peers

PAGE = Path(__file__).parents[2] / "docs/topics/wire-protocol.md"
BLOCKS = list(blocks_of(PAGE))
SHOWN = {
    block.note.removeprefix("conversation: "): block.text
    for block in BLOCKS
    if block.note.startswith("conversation: ")
}


def test_the_frames_say_what_stands_below_them() -> None:
    reader = Reader()
    texts = [block.text for block in BLOCKS if block.note in ("frame", "reads")]
    assert len(texts) >= 8
    for frame, reads in zip(texts[::2], texts[1::2], strict=True):
        assert reader.read(bytes_of(frame)) == reads


def test_every_conversation_is_shown() -> None:
    assert SHOWN.keys() == CONVERSATIONS.keys()


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_peers_talk_as_shown(name: str, tmp_path: Path) -> None:
    async with open_peers(tmp_path) as peers:
        said = await CONVERSATIONS[name](peers)
    assert re.fullmatch(pattern(SHOWN[name]), said), said


def test_a_message_more_than_shown_is_noticed() -> None:
    assert re.fullmatch(pattern("> a x=…\n< reply\n"), "> a x=1\n< reply\n")
    assert not re.fullmatch(pattern("> a x=…\n< reply\n"), "> a x=1\n> b\n< reply\n")
    assert re.fullmatch(pattern("…\n< reply\n"), "> a x=1\n> b\n< reply\n")


def pattern(shown: str) -> str:
    """What is shown: `…` stands for anything in its line, or on a line of its own for any lines."""
    lines = shown.splitlines()
    return "".join(
        r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in lines
    )
