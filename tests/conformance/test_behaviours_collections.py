"""Several collections at once."""

import pytest
from loopback import PULL, PUSH, bodies, ids, put_many

from trio_p2p import CollectionConfiguration, CollectionNotFoundError, ReplicationError


async def create(pair, *names):
    """Create collections on both sides, in opposite order."""
    for name in names:
        await pair.here.create_collection(name)
    for name in reversed(names):
        await pair.there.create_collection(name)


@pytest.mark.behaviour("K1", "K8")
async def test_a_collection_that_is_not_here_is_an_error_before_anything_connects(pair):
    with pytest.raises(CollectionNotFoundError, match="nosuch"):
        pair.here.collection("nosuch")
    gone = await pair.here.create_collection("gone")
    await pair.there.create_collection("gone")
    configuration = pair.configuration(collections=[pair.mine, gone])
    await pair.here.delete_collection("gone")
    run = await pair.replicate(collections=configuration.collections)
    assert isinstance(run.error, ReplicationError)
    assert "gone" in str(run.error)
    assert pair.attempts == 0


@pytest.mark.behaviour("K2", "K8")
@pytest.mark.parametrize("names", [["nosuch"], ["_default", "shop.sales", "nosuch"]])
async def test_a_collection_that_the_peer_lacks_ends_the_replication_with_404(pair, names):
    await create(pair, "shop.sales")
    await pair.here.create_collection("nosuch")
    collections = [pair.here.collection(name) for name in names]
    for collection in collections:
        await collection.put("a", {})
    run = await pair.replicate(collections=collections, max_attempts=5)
    assert run.error.status == 404
    assert "nosuch" in str(run.error)
    assert pair.attempts == 1
    assert (run.counts, pair.theirs.count) == ((0, 0), 0)


@pytest.mark.behaviour("K3")
@pytest.mark.parametrize(
    "names",
    [
        ["_default"],
        ["shop.sales"],
        ["shop.sales", "stock"],
        ["stock", "_default", "shop.sales"],
    ],
)
async def test_collections_are_matched_by_name(pair, names):
    await create(pair, "shop.sales", "stock", "other")
    for collection in (*pair.here.collections(), *pair.there.collections()):
        side = "here" if collection.database is pair.here else "there"
        await put_many(collection, [f"{side}1", f"{side}2"], of=collection.full_name)
    run = await pair.replicate(collections=[pair.here.collection(name) for name in names])
    assert run.counts == (2 * len(names), 2 * len(names))
    for name in ("_default", "shop.sales", "stock", "other"):
        if name in names:
            await pair.assert_equal(name)
            found = await bodies(pair.here.collection(name))
            assert {body["of"] for body in found.values()} == {name}
        assert pair.there.collection(name).count == (4 if name in names else 2)


@pytest.mark.behaviour("K4", "P6", "U1")
async def test_each_collection_has_its_own_checkpoint(pair):
    await create(pair, "guitars", "roses")
    names = ("guitars", "roses")
    for name in names:
        await put_many(pair.here.collection(name), ids(*range(1, 11)))
        await put_many(pair.there.collection(name), ids(*range(11, 21)))
    collections = [pair.here.collection(name) for name in names]
    assert (await pair.replicate(collections=collections)).counts == (20, 20)

    for count, name in enumerate(names, 1):
        await put_many(pair.here.collection(name), ids(*range(100, 100 + count)))
        await put_many(pair.there.collection(name), ids(*range(200, 200 + 2 * count)))
    run = await pair.replicate(collections=collections)
    assert (run.counts, run.offered) == ((3, 6), 9)
    for name in names:
        await pair.assert_equal(name)
    run = await pair.replicate(collections=collections)
    assert run.offered == 0
    # Each side has 20 documents of the first run, and 3 or 6 of the second.
    told = pair.checkpoints()
    assert sorted((c["local"], c["remote"]) for c in told) == [(23, 23), (26, 26)]
    # One of them alone goes on from there.
    await put_many(pair.here.collection("roses"), ["late"])
    run = await pair.replicate(collections=[pair.here.collection("roses")])
    assert (run.counts, run.offered) == ((1, 0), 1)


@pytest.mark.behaviour("K5a")
async def test_one_document_id_in_two_collections_is_two_documents(pair):
    await create(pair, "guitars", "roses")
    await pair.here.collection("guitars").put("a", {"is": "a guitar"})
    await pair.there.collection("roses").put("a", {"is": "a rose"})
    await pair.mine.put("a", {"is": "neither"})
    run = await pair.replicate()
    assert (run.counts, run.statistics.conflicts_resolved) == ((2, 1), 0)
    await pair.here.collection("guitars").delete("a")
    await pair.replicate()
    found = {c.full_name: await bodies(c) for c in pair.there.collections()}
    assert found == {
        "_default": {"a": {"is": "neither"}},
        "guitars": {},
        "roses": {"a": {"is": "a rose"}},
    }


@pytest.mark.behaviour("K5b")
async def test_each_collection_has_its_own_document_ids_and_resolver(pair):
    await create(pair, "guitars", "roses")
    for name in ("guitars", "roses"):
        await pair.here.collection(name).put("a", {"by": "here"})
        await pair.there.collection(name).put("a", {"by": "there"})
        await put_many(pair.here.collection(name), ["b", "c"])

    def keep_local(conflict):
        return conflict.local

    guitars, roses = pair.here.collection("guitars"), pair.here.collection("roses")
    settings = {
        guitars: CollectionConfiguration(conflict_resolver=keep_local, document_ids=["a", "b"]),
        roses: CollectionConfiguration(conflict_resolver=lambda conflict: conflict.remote),
    }
    run = await pair.replicate(collections=settings)
    assert run.statistics.conflicts_resolved == 2
    assert guitars.get("a").body == {"by": "here"}
    assert roses.get("a").body == {"by": "there"}
    assert sorted(await bodies(pair.there.collection("guitars"))) == ["a", "b"]
    assert sorted(await bodies(pair.there.collection("roses"))) == ["a", "b", "c"]


@pytest.mark.behaviour("K6")
async def test_one_collection_is_pushed_another_pulled_and_a_third_both(pair):
    await create(pair, "guitars", "roses")
    for name in ("_default", "guitars", "roses"):
        await put_many(pair.here.collection(name), ["here"])
        await put_many(pair.there.collection(name), ["there"])
    guitars, roses = pair.here.collection("guitars"), pair.here.collection("roses")
    assert (await pair.replicate(PUSH, collections=[guitars])).counts == (1, 0)
    assert (await pair.replicate(PULL, collections=[roses])).counts == (0, 1)
    assert (await pair.replicate(collections=[pair.mine])).counts == (1, 1)
    assert sorted(await bodies(guitars)) == ["here"]
    assert sorted(await bodies(pair.there.collection("guitars"))) == ["here", "there"]
    assert sorted(await bodies(roses)) == ["here", "there"]
    assert sorted(await bodies(pair.there.collection("roses"))) == ["there"]
    await pair.assert_equal()
