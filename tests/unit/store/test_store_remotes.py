from __future__ import annotations

from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.ids import SourceID
from trio_p2p.model.version import TreeRevisionID, Version
from trio_p2p.store import bases, checkpoints, remotes

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


async def test_a_revision_that_is_forgotten_is_forgotten_for_all_peers_but_its_sender(engine):
    def job(txn):
        for remote in (1, 2, 3):
            remotes.set_known(txn, remote, 1, "a", VERSION)
            remotes.set_known(txn, remote, 1, "a\U0010ffff", VERSION)
        remotes.set_known(txn, 3, 1, "a", TREE)
        remotes.forget_revision(txn, 1, "a", VERSION, but_of=2)

    await engine.write(job)
    with engine.read() as txn:
        assert [remotes.known(txn, n, 1, "a") for n in (1, 2, 3)] == [None, VERSION, TREE]
        assert remotes.known(txn, 1, 1, "a\U0010ffff") == VERSION


async def test_a_document_that_is_forgotten_is_forgotten_for_all_peers(engine):
    def job(txn):
        for remote in (1, 2):
            for name in ("a", "a\U0010ffff"):
                remotes.set_known(txn, remote, 1, name, VERSION)
        remotes.forget_document(txn, 1, "a")

    await engine.write(job)
    with engine.read() as txn:
        for remote in (1, 2):
            assert remotes.known(txn, remote, 1, "a") is None
            assert remotes.known(txn, remote, 1, "a\U0010ffff") == VERSION


# --- How many are remembered ----------------------------------------------------------------------


async def test_the_peer_met_least_recently_is_forgotten(engine, monkeypatch):
    monkeypatch.setattr(limits, "REMOTES_MAX", 2)

    def meet(*peers):
        return engine.write(lambda txn: [remotes.number(txn, peer) for peer in peers])

    ann, bob, *_ = await meet("ann", "bob", "ann", "eve")
    with engine.read() as txn:
        assert remotes.find(txn, "bob") is None
        assert remotes.find(txn, "ann") == ann
    assert (await meet("bob"))[0] > bob


async def test_with_a_peer_all_that_is_known_of_it_is_forgotten(engine, notes, monkeypatch):
    monkeypatch.setattr(limits, "REMOTES_MAX", 1)
    monkeypatch.setattr(limits, "TIDY_RECORDS", 2)
    other = 1_000
    names = [f"d{number}" for number in range(30)]
    for name in names:
        await notes.put(name, {})

    def job(txn):
        ann = remotes.number(txn, "ann")
        for name in names:
            remotes.set_known(txn, ann, 1, name, VERSION)
            remotes.set_known(txn, other, 1, name, VERSION)
        for url, peer in (("ws://a", "ann"), ("ws://b", "bob"), ("ws://c", "ann")):
            remotes.set_peer_at(txn, url, peer)
        checkpoints.set_local(txn, "cp-ann", b"{}", remote=ann)
        checkpoints.set_local(txn, "cp-bob", b"{}", remote=other)
        return ann

    ann = await engine.write(job)
    await engine.write(lambda txn: remotes.number(txn, "eve"))
    engine.tidy_soon()
    commits = engine.statistics().commits
    await wait_all_tasks_blocked()
    assert engine.statistics().commits - commits >= len(names) // 2
    with engine.read() as txn:
        assert not remotes.is_any_forgotten(txn)
        assert txn.raw.stat(txn.tables.known_revisions)["entries"] == len(names)
        assert all(remotes.known(txn, other, 1, name) == VERSION for name in names)
        assert all(remotes.known(txn, ann, 1, name) is None for name in names)
        assert [remotes.peer_at(txn, f"ws://{x}") for x in "abc"] == [None, "bob", None]
        assert checkpoints.local(txn, "cp-ann") is None
        assert checkpoints.local(txn, "cp-bob") == b"{}"


async def test_bases_go_with_the_peer_that_had_them(engine, notes, monkeypatch):
    monkeypatch.setattr(limits, "REMOTES_MAX", 1)
    document = await notes.put("a", {"n": 1})

    def learn(txn):
        remotes.set_known(txn, remotes.number(txn, "ann"), 1, "a", document.version)

    await engine.write(learn)
    await notes.put("a", {"n": 2})
    await engine.write(lambda txn: remotes.number(txn, "bob"))
    engine.tidy_soon()
    await wait_all_tasks_blocked()
    with engine.read() as txn:
        assert bases.get(txn, 1, "a", document.version) is None


async def test_the_target_that_was_used_least_recently_is_forgotten(engine, monkeypatch):
    monkeypatch.setattr(limits, "TARGETS_MAX", 2)
    for url in ("ws://a", "ws://b", "ws://a", "ws://c"):
        await engine.write(lambda txn, url=url: remotes.set_peer_at(txn, url, "ann"))
    with engine.read() as txn:
        assert [remotes.peer_at(txn, f"ws://{x}") for x in "abc"] == ["ann", None, "ann"]
