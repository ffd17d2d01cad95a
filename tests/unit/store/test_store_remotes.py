from __future__ import annotations

from trio_p2p.ids import SourceID
from trio_p2p.model.version import TreeRevisionID, Version
from trio_p2p.store import remotes

VERSION = Version(5 << 40, SourceID(b"a" * 16))
TREE = TreeRevisionID(2, b"\x01" * 20)


async def test_a_peer_keeps_the_number_it_was_given(engine):
    with engine.read() as txn:
        assert remotes.find(txn, "ann") is None
    ann = await engine.write(lambda txn: remotes.number(txn, "ann"))
    long = await engine.write(lambda txn: remotes.number(txn, "x" * 1000))
    assert ann != long
    assert await engine.write(lambda txn: remotes.number(txn, "ann")) == ann
    with engine.read() as txn:
        assert (remotes.find(txn, "ann"), remotes.find(txn, "x" * 1000)) == (ann, long)


async def test_numbers_given_in_one_transaction_differ(engine):
    given = await engine.write(lambda txn: [remotes.number(txn, key) for key in "abca"])
    assert given == [1, 2, 3, 1]


async def test_what_a_peer_has_is_known_by_peer_and_collection_and_document(engine):
    def job(txn):
        remotes.set_known(txn, 1, 1, "a", VERSION)
        remotes.set_known(txn, 1, 1, "a", TREE)
        remotes.set_known(txn, 1, 2, "a", VERSION)

    await engine.write(job)
    with engine.read() as txn:
        assert remotes.known(txn, 1, 1, "a") == TREE
        assert remotes.known(txn, 1, 2, "a") == VERSION
        assert remotes.known(txn, 2, 1, "a") is None
        assert remotes.known(txn, 1, 1, "b") is None


async def test_the_peer_last_met_at_a_target_is_remembered(engine):
    url = "wss://till.example/" + "x" * 600
    await engine.write(lambda txn: remotes.set_peer_at(txn, url, "ann"))
    await engine.write(lambda txn: remotes.set_peer_at(txn, url, "bé"))
    with engine.read() as txn:
        assert remotes.peer_at(txn, url) == "bé"
        assert remotes.peer_at(txn, "wss://other.example/") is None
