"""Documents that began in Couchbase Lite 3, with trees of revisions, among version vectors."""

import pytest
from loopback import PULL, PUSH, ids
from raw import RawClient
from trio.testing import wait_all_tasks_blocked

from trio_p2p import CollectionConfiguration
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import Revision
from trio_p2p.model.version import TREE_SOURCE, TreeRevisionID
from trio_p2p.store import documents

SOURCE = "BobBobBobBobBobBobBobA"


async def put_tree(collection, names, trees, body, *, deleted=False):
    """Put documents as they were before the upgrade; `trees` are their revisions, newest first."""
    revision = Revision.from_tree(
        tuple(map(TreeRevisionID.parse, trees)), encode_body(body), deleted=deleted
    )

    def store(txn):
        for name in names:
            documents.put_revision(txn, collection.number, name, revision)

    await collection.database.engine.write(store)


def stored(collection, name):
    """The revision of a document."""
    with collection.database.engine.read() as txn:
        return documents.get(txn, collection.number, name).revision


def trees(collection, name):
    return [str(tree) for tree in stored(collection, name).trees]


@pytest.fixture
async def upgraded(pair):
    """Two peers that were in sync before both were upgraded, with 100 documents."""
    for collection in (pair.mine, pair.theirs):
        await put_tree(collection, ids(*range(1, 101)), ["1-abcd"], {"n": 0})
    run = await pair.replicate()
    assert run.counts == (0, 0)
    return pair


# --- After the upgrade ----------------------------------------------------------------------------


@pytest.mark.behaviour("V8")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_after_the_upgrade_edits_and_new_documents_go_over_and_nothing_else(upgraded, kind):
    pair = upgraded
    source = pair.mine if kind is PUSH else pair.theirs
    await source.put("0000001", {"n": 1})
    await source.put("0000002", {"n": 1})
    await source.put("new", {"n": 1})
    run = await pair.replicate(kind)
    assert (run.offered, sum(run.counts), run.push_errors, run.pull_errors) == (3, 3, {}, {})
    assert pair.checkpoints()[0]["local" if kind is PUSH else "remote"] == 103
    await pair.assert_equal()
    # What was edited keeps its tree, for peers that know it by that.
    assert trees(pair.mine, "0000001") == trees(pair.theirs, "0000001") == ["1-abcd"]
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("V8")
async def test_new_documents_on_both_sides_and_edits_from_before_the_upgrade_go_over(upgraded):
    pair = upgraded
    await pair.mine.put("here", {})
    await pair.theirs.put("there", {})
    # Edited by the old version, after the two had been in sync.
    await put_tree(pair.mine, ids(1, 2), ["2-beef", "1-abcd"], {"n": 2})
    run = await pair.replicate()
    assert (run.counts, run.push_errors, run.pull_errors) == ((3, 1), {}, {})
    await pair.assert_equal()
    assert str(stored(pair.theirs, "0000001").id) == "2-beef"


# --- Conflicts ------------------------------------------------------------------------------------


def resolving(pair, resolver):
    return {"collections": {pair.mine: CollectionConfiguration(conflict_resolver=resolver)}}


RESOLVERS = {
    "local": lambda conflict: conflict.local,
    "remote": lambda conflict: conflict.remote,
    "merge": lambda conflict: {"by": "both"},
}


@pytest.mark.behaviour("V9")
@pytest.mark.parametrize(("here", "there"), [("2-1111", "2-2222"), ("2-2222", "2-1111")])
@pytest.mark.parametrize("choice", RESOLVERS)
async def test_a_conflict_of_two_trees_is_resolved_to_a_revision_of_both(pair, here, there, choice):
    await put_tree(pair.mine, ["a"], [here, "1-abcd"], {"by": "local"})
    await put_tree(pair.theirs, ["a"], [there, "1-abcd"], {"by": "remote"})
    run = await pair.replicate(**resolving(pair, RESOLVERS[choice]))
    assert (run.statistics.conflicts_resolved, run.push_errors, run.pull_errors) == (1, {}, {})
    await pair.assert_equal()
    body = {"by": "both" if choice == "merge" else choice}
    assert pair.theirs.get("a").body == body
    # A new version, and whoever knows either tree learns that it includes that.
    assert pair.theirs.get("a").version.source == pair.mine.get("a").version.source != TREE_SOURCE
    assert {here, there} <= set(trees(pair.theirs, "a"))
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("V10")
@pytest.mark.parametrize("legacy", ["here", "there"])
@pytest.mark.parametrize("choice", RESOLVERS)
async def test_of_a_tree_and_a_vector_a_vector_that_wins_keeps_its_version(pair, legacy, choice):
    old, new = (pair.mine, pair.theirs) if legacy == "here" else (pair.theirs, pair.mine)
    await put_tree(old, ["a"], ["2-1111", "1-abcd"], {"by": "tree"})
    version = (await new.put("a", {"by": "vector"})).version
    run = await pair.replicate(**resolving(pair, RESOLVERS[choice]))
    assert (run.statistics.conflicts_resolved, run.push_errors, run.pull_errors) == (1, {}, {})
    await pair.assert_equal()
    found = pair.theirs.get("a")
    winner = {"local": pair.mine, "remote": pair.theirs}.get(choice)
    expected = "both" if winner is None else "vector" if winner is new else "tree"
    assert found.body == {"by": expected}
    assert (found.version == version) == (winner is new)
    assert found.vector.has(version)
    # Whoever resolved it knows that the tree is included.
    assert "2-1111" in trees(pair.mine, "a")
    assert (await pair.replicate()).offered == 0


# --- Message by message ---------------------------------------------------------------------------


@pytest.fixture
async def client(pair, nursery):
    """An active peer of raw messages, of what is there."""
    client = RawClient(nursery, pair.there)
    await client.open()
    yield client
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("V11a")
async def test_proposals_with_tree_revision_ids_are_judged(pair, client):
    await put_tree(pair.theirs, ["tree", "edited"], ["2-beef", "1-abcd"], {})
    await put_tree(pair.theirs, ["gone"], ["2-beef", "1-abcd"], {}, deleted=True)
    version = (await pair.theirs.put("edited", {"n": 1})).version
    vector = (await pair.theirs.put("vector", {})).version
    later = f"{vector.time + 1:x}@{SOURCE}"
    answers = await client.propose(
        ["new", "1-aa", ""],
        ["tree", "2-beef", ""],
        ["tree", "1-abcd", ""],
        ["tree", "3-cafe", "2-beef"],
        ["tree", "3-cafe", "1-abcd"],
        ["tree", later, "2-beef"],
        ["edited", "2-beef", ""],
        ["edited", later, "2-beef"],
        ["edited", later, str(version)],
        ["vector", "2-beef", ""],
    )
    conflict = {"status": 409, "rev": "2-beef"}
    assert answers[:6] == [0, 304, 304, 0, conflict, 0]
    assert answers[6] == 304
    assert answers[7]["status"] == 409
    assert answers[7]["rev"] == str(pair.theirs.get("edited").vector)
    assert answers[8] == 0
    assert answers[9]["status"] == 409


@pytest.mark.behaviour("V11b")
async def test_a_revision_may_come_with_tree_revision_ids_in_its_history(pair, client):
    await put_tree(pair.theirs, ["a", "b"], ["2-beef", "1-abcd"], {"n": 2})
    later = f"{pair.there.engine.now_ns():x}@{SOURCE}"
    # A tree on top of a tree, a version on top of one, and one of another history.
    assert await client.send_revision("a", "3-cafe", {"n": 3}, history="2-beef,1-abcd") is None
    assert await client.send_revision("a", later, {"n": 4}, history="3-cafe, 2-beef") is None
    assert await client.send_revision("b", later, {"n": 4}, history="2-1111, 1-abcd") == 409
    assert pair.theirs.get("a").body == {"n": 4}
    assert trees(pair.theirs, "a") == ["3-cafe", "2-beef"]
    assert pair.theirs.get("b").body == {"n": 2}
    # It is sent as it came: the vector, then the trees.
    await client.ask("subChanges", versioning="version-vectors", since="2")
    await wait_all_tasks_blocked()
    (sent,) = [said for said in client.heard if said.properties["Profile"] == "rev"]
    assert (sent.properties["rev"], sent.properties["history"]) == (later, "3-cafe, 2-beef")


@pytest.mark.behaviour("V11c", "V6")
async def test_the_version_that_stands_for_a_tree_revision_is_recognised(pair, client):
    tree = "2-1111000000"
    await put_tree(pair.theirs, ["a"], [tree], {"n": 2})
    stands = str(TreeRevisionID.parse(tree).as_version())
    assert stands == "21111000000@Revision+Tree+Encoding"
    assert await client.propose(["a", stands, ""]) == [304]
    later = f"{pair.there.engine.now_ns():x}@{SOURCE}"
    assert await client.send_revision("a", later, {"n": 3}, history=stands) is None
    assert pair.theirs.get("a").body == {"n": 3}
    assert await client.propose(["a", tree, ""]) == [304]
