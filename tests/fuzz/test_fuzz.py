"""A short run of what `nox -s fuzz` does at length: the kept corpus, and what becomes of it."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from pathlib import Path

import corpus
import live
import mutations
import pytest
import targets

MUTANTS = 1_000
# Slower than this is a hang; the machine may be busy with other things.
INPUT_S_MAX = 5.0
# What a target may have kept after a thousand inputs: caches of the interpreter.
KEPT_BYTES_MAX = 512 * 1024
TORMENT_S = 6.0


def feed(target: targets.Target, inputs: list[bytes]) -> None:
    """Give a target inputs, each of which must be dealt with in time."""
    for data in inputs:
        started = time.perf_counter()
        target(data)
        assert time.perf_counter() - started < INPUT_S_MAX, data


@pytest.mark.parametrize("name", targets.TARGETS)
def test_whatever_is_read_nothing_unexpected_is_raised_and_nothing_kept(name: str) -> None:
    target, chance = targets.TARGETS[name], random.Random(0)
    kept = corpus.kept(name)
    assert kept, "tests/fuzz/corpus.py makes the corpus"
    feed(target, kept)
    mutants = [
        mutations.spoiled(chance, chance.choice(kept))[: targets.INPUT_BYTES_MAX]
        for _ in range(MUTANTS)
    ]
    feed(target, mutants[: MUTANTS // 2])
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        feed(target, mutants[MUTANTS // 2 :])
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < KEPT_BYTES_MAX


def test_frames_are_cut_as_they_were_joined() -> None:
    parts = [b"", b"a", bytes(300), b"b"]
    assert targets.pieces(targets.joined(parts)) == parts


async def test_a_listener_that_does_not_come_up_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "shop.p2p").write_text("not a directory")
    with pytest.raises(RuntimeError, match=r"ended before it listened:\s+\S"):
        async with live.open_listener(tmp_path):
            pytest.fail("it listens")


async def test_a_listener_under_fire_serves_an_honest_peer(tmp_path: Path) -> None:
    score = await live.torment(tmp_path, TORMENT_S, seed=0)
    live.check(score)
