"""Making and applying deltas: how much they save, and what they cost.

Prints a line of JSON for each case: bytes of the new body and of the delta as JSON, and medians of
making the delta (decoding both bodies included), applying it (encoding the result included) and,
beside them, writing and reading the body in full. Then what goes over the wire, either way, when
one field was edited in each of many documents of 10 KB, with deltas and without; both peers are in
this process, with durable commits.

    python benchmarks/deltas.py [--rounds 50] [--documents 1000]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from trio.testing import memory_stream_pair

import trio_p2p
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


async def put_all(database: trio_p2p.Database, fields: list[Body], changes: Body) -> None:
    """Write all documents, each with the same changes."""
    async with database.default_collection.batch() as batch:
        for number, body in enumerate(fields):
            batch.put(f"d{number:05}", {"n": 0, **body, **changes})


async def sync(
    here: trio_p2p.Database, there: trio_p2p.Database, *, deltas: bool
) -> trio_p2p.ReplicatorResult:
    """Replicate both ways, once."""
    listener = trio_p2p.URLEndpointListener(
        trio_p2p.URLEndpointListenerConfiguration(
            collections=[there.default_collection], disable_tls=True, enable_delta_sync=deltas
        )
    )
    near, far = memory_stream_pair()

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return near

    configuration = trio_p2p.ReplicatorConfiguration(
        target=connect,
        target_id="there",
        collections=[here.default_collection],
        enable_delta_sync=deltas,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.handle, far)
        result = await trio_p2p.replicate(configuration)
    return result


async def measure_wire(directory: Path, documents: int, *, deltas: bool) -> None:
    """Edit one field in each document, here and then there, and sync after each."""
    chance = random.Random(2)
    fields = [{f"f{n:03}": letters(chance, 90) for n in range(100)} for _ in range(documents)]
    async with (
        trio_p2p.open_database(directory / "here", delta_sync=True) as here,
        trio_p2p.open_database(directory / "there", delta_sync=True) as there,
    ):
        await put_all(here, fields, {})
        await sync(here, there, deltas=deltas)
        for direction, database in (("push", here), ("pull", there)):
            await put_all(database, fields, {"n": 1, "f050": direction[0] * 90})
            began = time.perf_counter()
            statistics = (await sync(here, there, deltas=deltas)).statistics
            line = {
                "direction": direction,
                "documents": statistics.documents_pushed + statistics.documents_pulled,
                "deltas": statistics.deltas_sent + statistics.deltas_received,
                "wire_bytes_sent": statistics.wire_bytes_sent,
                "wire_bytes_received": statistics.wire_bytes_received,
                "seconds": round(time.perf_counter() - began, 2),
            }
            print(json.dumps(line))


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--documents", type=int, default=1_000)
    arguments = parser.parse_args()
    rounds = arguments.rounds
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
    for deltas in (True, False):
        with tempfile.TemporaryDirectory() as directory:
            run = partial(measure_wire, Path(directory), arguments.documents, deltas=deltas)
            trio.run(run)


if __name__ == "__main__":
    main()
