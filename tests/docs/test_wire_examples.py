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
    pattern = ".*".join(map(re.escape, SHOWN[name].rstrip("\n").split("…")))
    assert re.fullmatch(pattern, said.rstrip("\n"), re.DOTALL), said
