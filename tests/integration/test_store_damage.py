"""A data file that a disk, a file system or a program damaged: at any place, in several ways.

Whatever happens to it, users get what they wrote, or an error that says what to do, and their
process lives on. `TRIO_P2P_DAMAGE_FILES` tells how many files are damaged in each way,
`TRIO_P2P_DAMAGE_SEED` how.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from random import Random

import damage_reader
import pytest

from trio_p2p.store.directory import LOCK_FILE
from trio_p2p.store.environment import DATA_FILE
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.forking import ForkServer

FILES = int(os.environ.get("TRIO_P2P_DAMAGE_FILES", "15"))
PAGE = os.sysconf("SC_PAGE_SIZE")
TYPED = {"StoreCorruptError", "StoreError", "StoreFormatError", "StoreFullError"}


@pytest.fixture(scope="module")
def server():
    with ForkServer() as server:
        yield server


@pytest.fixture
def random():
    seed = os.environ.get("TRIO_P2P_DAMAGE_SEED") or secrets.token_hex(8)
    print(f"TRIO_P2P_DAMAGE_SEED={seed}")
    return Random(seed)


def as_text(name, body):
    return json.dumps([name, body])


@pytest.fixture
def written():
    """Everything that ever was in the database: documents with their bodies, or with none."""
    return set()


@pytest.fixture
async def whole(tmp_path, written):
    """The data file of a database with a past."""
    random = Random(5)
    path = tmp_path / "whole"
    async with open_test_database(path, clock=lambda: damage_reader.NOW) as db:
        other = await db.create_collection("shop.other")
        for number in range(20):
            async with db.default_collection.batch() as batch:
                for _ in range(12):
                    size = random.choice([10, 50, 200, 800, 3000, 20_000])
                    name = f"d{random.randrange(120):03}"
                    body = {"n": number, "text": random.choice("xyz") * size}
                    batch.put(name, body)
                    written |= {as_text(name, body), as_text(name, {})}
                batch.delete(name)
                for _ in range(2):
                    batch.purge(f"d{random.randrange(120):03}")
            await other.put(f"o{number}", {"n": number})
            written.add(as_text(f"o{number}", {"n": number}))
    return (path / DATA_FILE).read_bytes()


def flip_bits(raw, random):
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        raw[random.randrange(2 * PAGE, len(raw))] ^= 1 << random.randrange(8)


def flip_bits_where_pages_begin(raw, random):
    for _ in range(random.choice([1, 2, 5])):
        at = random.randrange(2, len(raw) // PAGE) * PAGE + random.randrange(200)
        raw[at] ^= 1 << random.randrange(8)


def change_bytes(raw, random):
    for _ in range(random.choice([1, 4, 16])):
        raw[random.randrange(2 * PAGE, len(raw))] = random.randrange(256)


def write_zeros(raw, random):
    for _ in range(random.choice([1, 1, 3])):
        at = random.randrange(len(raw) // PAGE) * PAGE
        raw[at : at + PAGE] = bytes(PAGE)


def write_garbage(raw, random):
    """Of any length: of sectors, pages or none of those."""
    length = random.choice([16, 512, PAGE, 50_000])
    at = random.randrange(2 * PAGE, len(raw)) // length * length or length
    raw[at : at + length] = random.randbytes(len(raw[at : at + length]))


def exchange_pages(raw, random):
    one, other = (random.randrange(len(raw) // PAGE) * PAGE for _ in range(2))
    raw[one : one + PAGE], raw[other : other + PAGE] = (
        raw[other : other + PAGE],
        raw[one : one + PAGE],
    )


def cut(raw, random):
    del raw[random.randrange(len(raw)) :]


WAYS = [
    flip_bits,
    flip_bits_where_pages_begin,
    change_bytes,
    write_zeros,
    write_garbage,
    exchange_pages,
    cut,
]


def use(server, path):
    """What reading told, what writing told, and how the process ended."""
    child = server.start(damage_reader.use, str(path))
    with child.pipe:
        told = [json.loads(line) for line in child.pipe.read().splitlines()]
    return told, child.wait()


@pytest.fixture
def damaged(tmp_path, whole):
    """Makes a database of a damaged file, and of what is known about the last use of it."""

    def make(way, random, known):
        path = tmp_path / "damaged"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        raw = bytearray(whole)
        if way is not None:
            way(raw, random)
        (path / DATA_FILE).write_bytes(raw)
        (path / LOCK_FILE).write_bytes(known)
        return path

    return make


@pytest.mark.parametrize("way", WAYS)
async def test_damage_after_a_power_cut_is_told_and_nothing_else_is_shown(
    server, damaged, random, way
):
    [expected, written], _ = use(server, damaged(None, random, b""))
    assert written == "written"
    outcomes = []
    for _ in range(FILES):
        # Nothing is known of the last use, as after a power cut.
        told, status = use(server, damaged(way, random, b""))
        assert status == 0, told
        assert len(told) == 2
        assert told[0] == expected or told[0] in TYPED, told[0]
        assert told[1] == "written" or told[1] in TYPED, told[1]
        outcomes.append(told[0] == expected)
    print(f"harmless: {sum(outcomes)} of {FILES}")
    assert not all(outcomes)


@pytest.mark.parametrize("way", WAYS)
async def test_damage_that_nobody_expects_is_told_by_typed_errors(
    server, damaged, written, random, way
):
    """The pages are not walked after a clean close. LMDB may end the process then, but where it
    does not, users see no other errors than ours, and no body that never was written."""
    for _ in range(FILES):
        told, _ = use(server, damaged(way, random, b"closed"))
        for outcome in told:
            if isinstance(outcome, str):
                assert outcome in {*TYPED, "written"}, outcome
            else:
                for documents, *_ in outcome.values():
                    assert {as_text(name, body) for name, *_, body in documents} <= written
