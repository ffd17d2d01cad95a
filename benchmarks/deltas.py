"""Making and applying deltas: how much they save, and what they cost.

Prints a line of JSON for each case: bytes of the new body and of the delta as JSON, and medians of
making the delta (decoding both bodies included), applying it (encoding the result included) and,
beside them, writing and reading the body in full.

    python benchmarks/deltas.py [--rounds 50]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import time
from collections.abc import Callable
from typing import Any

from trio_p2p.model.codec import body_from_json, body_to_json, encode_body
from trio_p2p.model.delta import body_delta, patch_body

Body = dict[str, Any]


def letters(chance: random.Random, count: int) -> str:
    """So many random letters."""
    return "".join(chance.choices(string.ascii_lowercase, k=count))


def prose(chance: random.Random, count: int) -> str:
    """About so many letters in words of a small vocabulary."""
    words = [letters(chance, chance.randint(2, 11)) for _ in range(2_000)]
    return " ".join(chance.choices(words, k=count // 7))


def edited(chance: random.Random, text: str, edits: int) -> str:
    """A text with words put in, taken out and replaced."""
    for _ in range(edits):
        at = chance.randrange(len(text))
        text = text[:at] + letters(chance, chance.randint(0, 9)) + text[at + chance.randint(0, 9) :]
    return text


def cases(chance: random.Random) -> dict[str, tuple[Body, Body]]:
    """Bodies before and after an edit."""
    fields = {f"f{number:03}": letters(chance, 90) for number in range(100)}
    note = prose(chance, 10_000)
    book = prose(chance, 1_000_000)
    numbers = [chance.randrange(1_000_000) for _ in range(1_000)]
    changed = list(numbers)
    for at in chance.sample(range(1_000), 250):
        changed[at] = chance.randrange(1_000_000)
    return {
        "10 KB, one of 100 fields": ({"n": 0, **fields}, {"n": 1, **fields, "f050": "B" * 90}),
        "10 KB of text, 3 edits": ({"text": note}, {"text": edited(chance, note, 3)}),
        "1 MB of text, 5 edits": ({"text": book}, {"text": edited(chance, book, 5)}),
        "1 MB of text, 500 edits": ({"text": book}, {"text": edited(chance, book, 500)}),
        "1 MB of text, another": ({"text": book}, {"text": prose(chance, 1_000_000)}),
        "1,000 integers, 250 changed": ({"a": numbers}, {"a": changed}),
        "1,000 integers, one put in": ({"a": numbers}, {"a": [*numbers[:500], 7, *numbers[500:]]}),
    }


def median_us(rounds: int, work: Callable[[], object]) -> float:
    """The median of so many runs, in microseconds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken) * 1e6, 1)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    for name, bodies in cases(random.Random(1)).items():
        old, new = map(encode_body, bodies)
        whole, delta = body_to_json(new), body_delta(old, new)
        if patch_body(old, delta) != new:
            raise SystemExit(f"{name}: the delta is wrong")
        line = {
            "case": name,
            "body_bytes": len(whole),
            "delta_bytes": len(delta),
            "make_us": median_us(rounds, lambda old=old, new=new: body_delta(old, new)),  # type: ignore[misc]
            "apply_us": median_us(rounds, lambda old=old, delta=delta: patch_body(old, delta)),  # type: ignore[misc]
            "write_whole_us": median_us(rounds, lambda new=new: body_to_json(new)),  # type: ignore[misc]
            "read_whole_us": median_us(rounds, lambda whole=whole: body_from_json(whole)),  # type: ignore[misc]
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
