"""A database, a collection in it, and revisions to store."""

from __future__ import annotations

import pytest

from trio_p2p.ids import SourceID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.testing.databases import open_test_database

NOW = 1_800_000_000 * 10**9
ANN = SourceID(b"a" * 16)
BOB = SourceID(b"b" * 16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shop.p2p"


@pytest.fixture
async def db(path):
    async with open_test_database(path, clock=lambda: NOW) as db:
        yield db


@pytest.fixture
def notes(db):
    return db.default_collection


@pytest.fixture
def engine(db):
    return db.engine


@pytest.fixture
def revision():
    """Makes a revision by another author: its time after the tests' now, and what it includes."""

    def make(time, *previous, source=ANN, body=b"\xa1aa\x01", deleted=False):
        versions = tuple(Version(NOW + before, author) for before, author in previous)
        return Revision(VersionVector(Version(NOW + time, source), (), versions), body, deleted)

    return make
