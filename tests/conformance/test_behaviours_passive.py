"""A passive peer, message by message; more of it is in test_replication_passive."""

import pytest
from loopback import PUSH, Pair
from raw import RawClient
from trio.testing import wait_all_tasks_blocked

from trio_p2p.testing.databases import open_test_database


@pytest.fixture
async def client(pair, nursery):
    """An active peer of raw messages, of what is there."""
    client = RawClient(nursery, pair.there)
    await client.open()
    yield client
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("S7")
async def test_a_revision_that_is_sent_names_every_author_before_it(
    pair, client, tmp_path, nursery
):
    """Three peers edited it, one after the other, some of them several times."""
    await pair.theirs.put("a", {"by": "there"})
    await pair.replicate()
    await pair.mine.put("a", {"by": "here"})
    await pair.mine.put("a", {"by": "here again"})
    await pair.replicate()
    async with open_test_database(tmp_path / "third", clock=pair.clock) as third:
        other = Pair(nursery, third, pair.there, pair.clock)
        await other.replicate()
        await other.mine.put("a", {"by": "third"})
        await other.replicate(PUSH)
        authors = [third.source_id, pair.here.source_id, pair.there.source_id]
    await client.ask("subChanges", versioning="version-vectors")
    await wait_all_tasks_blocked()
    (sent,) = [said for said in client.heard if said.properties["Profile"] == "rev"]
    version, history = sent.properties["rev"], sent.properties["history"].split(", ")
    assert [text.split("@")[1] for text in (version, *history)] == authors
    vector = pair.theirs.get("a").vector
    assert str(vector) == f"{version}; {', '.join(history)}"


@pytest.mark.behaviour("S6a", "S9")
async def test_what_was_pushed_stays_when_the_connection_is_lost(pair, client):
    later = f"{pair.there.engine.now_ns():x}@BobBobBobBobBobBobBobA"
    await client.ask("subChanges", continuous="true", versioning="version-vectors")
    assert await client.propose(["a", later, ""]) == []
    assert await client.send_revision("a", later, {"n": 1}) is None
    client.hang_up()
    await wait_all_tasks_blocked()
    assert pair.theirs.get("a").body == {"n": 1}
    # Another connection takes over where this one was.
    assert (await pair.replicate()).counts == (0, 1)
