"""Runs in a process of its own: uses a database that may be damaged, and tells what came of it."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path

import trio

from trio_p2p.errors import TrioP2PError
from trio_p2p.testing.databases import open_test_database

NOW = 1_800_000_000 * 10**9


def use(path, pipe):
    """Read everything, then write some, and tell what came of either."""
    for function in (read, write):
        try:
            told = trio.run(function, Path(path))
        except TrioP2PError as exc:
            told = type(exc).__name__
        except BaseException:
            told = traceback.format_exc()
        line = json.dumps(told).encode() + b"\n"
        while line:
            line = line[os.write(pipe, line) :]


async def read(path):
    """What users would see."""
    async with open_test_database(path, clock=lambda: NOW) as db:
        return {collection.full_name: await contents(collection) for collection in db.collections()}


async def contents(collection):
    documents = [
        [d.id, str(d.version), d.sequence, d.deleted, d.body]
        async for d in collection.documents(include_deleted=True)
    ]
    changes = [[*c[:2], str(c.version), c.deleted] async for c in collection.changes(live=False)]
    return [documents, changes, collection.count, collection.last_sequence]


async def write(path):
    async with open_test_database(path, clock=lambda: NOW) as db:
        for number in range(0, 120, 3):
            await db.default_collection.put(f"d{number:03}", {"again": "z" * 50 * number})
            await db.default_collection.purge(f"d{number + 1:03}")
    return "written"
