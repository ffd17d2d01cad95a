"""A process that writes is killed at any moment, again and again on one directory.

What must hold whenever the database is opened again: all that was acknowledged is there; of what
was under way each operation is there whole or not at all; the tables agree with each other;
sequences and versions go on. `TRIO_P2P_CRASH_ROUNDS` tells how often it is killed,
`TRIO_P2P_CRASH_SEED` what the writers do; where exactly they are killed no seed can tell.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import time
from collections import defaultdict
from random import Random

import crash_writer
import pytest

from trio_p2p.store.database import open_database
from trio_p2p.store.environment import DATA_FILE
from trio_p2p.store.pages import check_pages
from trio_p2p.testing.forking import ForkServer
from trio_p2p.testing.integrity import check_store

ROUNDS = int(os.environ.get("TRIO_P2P_CRASH_ROUNDS", "200"))
# A child that says nothing for so long hangs.
STALL_S = 60


@pytest.fixture
def server():
    with ForkServer() as server:
        yield server


@pytest.fixture
def random():
    seed = os.environ.get("TRIO_P2P_CRASH_SEED") or secrets.token_hex(8)
    print(f"TRIO_P2P_CRASH_SEED={seed}")
    return Random(seed)


def owner(name):
    """The task that a part of the state belongs to; None for what is always there."""
    if name == "@_default":
        return None
    if "#" in name:
        return int(name.partition("#")[2])
    if name.startswith("@own"):
        return int(name.removeprefix("@own"))
    return int(name.partition("/t")[2].partition("-")[0])


class Told:
    """What must be in the database, as far as the children told."""

    def __init__(self):
        self.parts = defaultdict(dict)  # By task.
        self.under_way = {}  # By task: what its operation changes.
        self.stamps = {}  # By document: sequence and time, as last acknowledged.
        self.last = defaultdict(int)  # By collection: the greatest sequence.
        self.time = 0  # The greatest there was when the present child opened the database.
        self.fresh = defaultdict(list)  # By collection: the stamps that this child acknowledged.
        self.openings = self.acknowledged = self.interrupted = self.happened = 0

    def take(self, what, *details):
        getattr(self, what)(*details)

    def begins(self, task, effects):
        assert task not in self.under_way
        self.under_way[task] = effects

    def done(self, task, stamps):
        self.acknowledged += 1
        self.apply(task, self.under_way.pop(task))
        for name, stamp in stamps.items():
            # Another task may have been acknowledged a later update of the same document.
            self.stamps[name] = max(self.stamps.get(name, stamp), stamp)
            self.fresh[name.partition("/")[0]].append(tuple(stamp))

    def apply(self, task, effects):
        part = self.parts[task]
        for name, value in effects.items():
            part.pop(name, None)
            if value is None:
                self.stamps.pop(name, None)
            else:
                part[name] = value

    def found(self, told):
        """A child opened the database: what it found must be what was told, whole."""
        state, stamps, last = told
        self.openings += 1
        self.check_order()
        parts = defaultdict(dict)
        for name, value in state.items():
            parts[owner(name)][name] = value
        for task in range(crash_writer.TASKS):
            self.check_part(task, parts[task])
        for name, stamp in self.stamps.items():
            assert stamps[name] >= stamp, name
        for collection, sequence in last.items():
            assert sequence >= self.last[collection], collection
            self.last[collection] = sequence
        self.time = max([self.time, *(time for _, time in stamps.values())])
        self.stamps = stamps
        self.under_way = {}

    def check_part(self, task, found):
        effects = self.under_way.get(task)
        if effects is None:
            assert found == self.parts[task]
            return
        self.interrupted += 1
        if found != self.parts[task]:
            self.happened += 1
            self.apply(task, effects)
            for name in effects:
                self.stamps.pop(name, None)
            assert found == self.parts[task], effects

    def check_order(self):
        """Sequences and times that were acknowledged go on after all there were, in one order."""
        times = []
        for collection, stamps in self.fresh.items():
            by_sequence = sorted(stamps)
            assert len({sequence for sequence, _ in stamps}) == len(stamps), stamps
            assert sorted(stamps, key=lambda stamp: stamp[1]) == by_sequence
            assert by_sequence[0][0] > self.last[collection], (collection, by_sequence)
            self.last[collection] = by_sequence[-1][0]
            times += [time for _, time in stamps]
        assert len(set(times)) == len(times)
        if times:
            assert min(times) > self.time
            self.time = max(times)
        self.fresh.clear()


def listen(child, told, lines_max, seconds_max):
    """Take what a child tells, until it told so much, or for so long, or it ended."""
    started, rest = time.monotonic(), b""
    while lines_max > 0:
        left = seconds_max - (time.monotonic() - started)
        readable, _, _ = select.select([child.pipe], [], [], max(left, 0))
        if not readable:
            return rest
        received = os.read(child.pipe.fileno(), 65536)
        if not received:
            return rest
        *lines, rest = (rest + received).split(b"\n")
        lines_max -= len(lines)
        for line in lines:
            told.take(*json.loads(line))
    return rest


def play_round(server, path, told, random):
    """Let a child open the database and write, and kill it. Returns its exit status."""
    # Some are told to end by themselves, and most of those are killed on their way out.
    operations = random.choice([None, None, None, 0, 1, 8])
    child = server.start(
        crash_writer.write,
        str(path),
        random.getrandbits(64),
        random.choice([True, False]),
        random.randrange(3600 * 10**9),
        operations,
    )
    with child.pipe:
        if random.randrange(2):
            rest = listen(child, told, random.randrange(100), STALL_S)
            # And then at any moment of what comes next.
            readable_never = [[], [], [], random.expovariate(1000)]
            select.select(*readable_never)
        else:
            rest = listen(child, told, 10**9, random.uniform(0, 0.12))
        status = child.kill()
        # What it told before it died counts; a line that it did not end was not told.
        *lines, _ = (rest + child.pipe.read()).split(b"\n")
    for line in lines:
        told.take(*json.loads(line))
    assert status in ((-signal.SIGKILL,) if operations is None else (-signal.SIGKILL, 0)), status
    return status


async def test_what_was_acknowledged_survives_kills(tmp_path, server, random):
    path, told = tmp_path / "db", Told()
    for _ in range(ROUNDS):
        play_round(server, path, told, random)
        # As it lies on the disk, seen by eyes other than LMDB's.
        if (path / DATA_FILE).exists() and (path / DATA_FILE).stat().st_size:
            check_pages(path / DATA_FILE)
    async with open_database(path) as db:
        check_store(db.engine)
        told.found(json.loads(json.dumps(await crash_writer.tell_state(db))))
        await db.default_collection.put("after", {})
    print({name: value for name, value in vars(told).items() if isinstance(value, int)})
    assert told.openings > ROUNDS / 4
    assert told.acknowledged > ROUNDS
    assert told.interrupted > ROUNDS / 4
