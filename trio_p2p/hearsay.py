"""What peers say to people, as it may be repeated: in errors, logs and on terminals.

A peer that means harm puts commands for a terminal into it, lines that look as if a log held them,
or a novel that is kept with each of ten thousand events.
"""

from __future__ import annotations

from trio_p2p import limits

_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def repeatable(text: str, characters_max: int = limits.HEARSAY_CHARACTERS_MAX) -> str:
    """The beginning of a text, in one line: what cannot be printed is replaced."""
    cut = text[:characters_max]
    if cut.isprintable():
        return cut
    return "".join([each if each.isprintable() else _UNPRINTABLE for each in cut])
