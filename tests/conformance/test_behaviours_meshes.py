"""More than two peers."""

import pytest
import trio
from loopback import Clock, Pair, bodies, contents, ids, put_many

from trio_p2p import CollectionConfiguration
from trio_p2p.testing.databases import open_test_database


@pytest.fixture
async def peers(tmp_path, nursery):
    """Four databases."""
    async with (
        open_test_database(tmp_path / "a", clock=Clock()) as a,
        open_test_database(tmp_path / "b", clock=Clock()) as b,
        open_test_database(tmp_path / "c", clock=Clock()) as c,
        open_test_database(tmp_path / "d", clock=Clock()) as d,
    ):
        yield a, b, c, d
        nursery.cancel_scope.cancel()


def merge(conflict):
    if conflict.local is None or conflict.remote is None:
        return None
    return conflict.local.body | conflict.remote.body


SHAPES = {
    "chain": [(0, 1), (1, 2), (2, 3)],
    "star": [(1, 0), (2, 0), (3, 0)],
    "hub": [(0, 1), (0, 2), (0, 3)],
}


@pytest.mark.behaviour("X2a")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("continuous", [False, True])
async def test_peers_in_a_chain_or_a_star_converge_with_a_conflict_in_the_middle(
    peers, nursery, autojump_clock, shape, continuous
):
    links = [Pair(nursery, peers[n], peers[m], None) for n, m in SHAPES[shape]]

    def settings(link):
        return {"collections": {link.mine: CollectionConfiguration(conflict_resolver=merge)}}

    async def exchange():
        if not continuous:
            for _ in range(6):
                for link in links:
                    run = await link.replicate(**settings(link))
                    assert run.error is None
            return
        async with (
            links[0].replicating(**settings(links[0])),
            links[1].replicating(**settings(links[1])),
            links[2].replicating(**settings(links[2])),
        ):
            await trio.sleep(120)

    await put_many(peers[0].default_collection, ids(*range(1, 21)))
    await exchange()
    # All four edit one document, two delete another, and each writes one of its own.
    for number, peer in enumerate(peers):
        collection = peer.default_collection
        await collection.put("0000001", {f"by{number}": number})
        await collection.put(f"own{number}", {})
        if number % 2:
            await collection.delete("0000002")
        else:
            await collection.put("0000002", {"by": number})
    await exchange()
    found = [await contents(peer.default_collection) for peer in peers]
    assert found[1:] == found[:1] * 3
    merged = (await bodies(peers[3].default_collection))["0000001"]
    assert merged == {"by0": 0, "by1": 1, "by2": 2, "by3": 3}
    assert sorted(found[0])[-4:] == ["own0", "own1", "own2", "own3"]
    assert found[0]["0000002"][1]
