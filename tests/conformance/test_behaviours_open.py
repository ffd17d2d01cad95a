"""What peers of ours do where the protocol leaves it open."""

import json

import pytest
import trio
from loopback import PULL, PUSH, ids, put_many
from raw import RawClient, RawServer
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.blip import Message

SOURCE = "BobBobBobBobBobBobBobA"


def rev(time=1_700_000_000 * 10**9):
    return f"{time:x}@{SOURCE}"


def checkpoint_ids(server):
    """The checkpoint asked for by each connection."""
    return [
        json.loads(message.body)["checkpoint_ids"][0] for message in server.told("getCollections")
    ]


# --- Who the peer is ------------------------------------------------------------------------------


@pytest.mark.behaviour("O1")
async def test_a_peer_is_known_by_its_uuid_wherever_it_is(pair, nursery):
    uuid = "00000000-0000-0000-0000-00000000000b"

    def tell_uuid(message):
        return Message({"uuid": uuid}, b"[{}]")

    one, other = (RawServer(nursery, getCollections=tell_uuid) for _ in range(2))
    await pair.mine.put("a", {})
    await pair.replicate(PUSH, target=one.connect, target_id="one")
    await pair.replicate(PUSH, target=other.connect, target_id="other")
    # Once it has told its UUID, the checkpoint is the one that goes by that.
    assert (
        one.told("setCheckpoint")[0].properties["client"]
        == (other.told("getCheckpoint")[0].properties["client"])
    )
    assert one.told("getCollections")[0].properties["uuid"] == str(pair.here.id)
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("O1", "U9")
async def test_a_peer_that_tells_no_uuid_is_known_by_its_target(pair, nursery):
    server = RawServer(nursery)
    for target_id in ("shop", "shop", "till"):
        await pair.replicate(PUSH, target=server.connect, target_id=target_id)
    first, again, other = checkpoint_ids(server)
    assert first == again != other
    nursery.cancel_scope.cancel()


# --- How much at once -----------------------------------------------------------------------------


@pytest.mark.behaviour("O3")
async def test_proposals_hold_two_hundred_changes_and_five_wait_for_their_answers(pair, nursery):
    answer = trio.Event()

    async def answer_late(message):
        await answer.wait()

    server = RawServer(nursery, proposeChanges=answer_late)
    await put_many(pair.mine, ids(*range(1, 1_451)))
    nursery.start_soon(lambda: pair.replicate(PUSH, target=server.connect))
    await wait_all_tasks_blocked()
    sizes = [len(json.loads(message.body)) for message in server.told("proposeChanges")]
    assert sizes == [200] * limits.CHANGES_MESSAGES_IN_FLIGHT_MAX == [200] * 5
    answer.set()
    with trio.fail_after(60):
        while len(server.proposed()) < 1_450:
            await trio.lowlevel.checkpoint()
    sizes = [len(json.loads(message.body)) for message in server.told("proposeChanges")]
    assert sizes == [200] * 7 + [50]
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("O3")
@pytest.mark.parametrize(
    ("batch", "size"), [({}, 200), ({"batch": "50"}, 50), ({"batch": "999"}, 200)]
)
async def test_offers_hold_two_hundred_changes_or_what_was_asked_for(pair, nursery, batch, size):
    await put_many(pair.theirs, ids(*range(1, 1_451)))
    client = RawClient(nursery, pair.there)
    client.answers = False
    await client.open()
    await client.ask("subChanges", versioning="version-vectors", **batch)
    await wait_all_tasks_blocked()
    offers = [said for said in client.heard if said.properties["Profile"] == "changes"]
    assert [len(json.loads(said.body)) for said in offers] == [size] * 5
    nursery.cancel_scope.cancel()


# --- Which documents ------------------------------------------------------------------------------


@pytest.mark.behaviour("O5")
@pytest.mark.parametrize("kind", [PULL, None])
async def test_a_subscription_never_asks_for_live_documents_only(pair, nursery, kind):
    server = RawServer(nursery)
    await pair.replicate(*([kind] if kind else []), target=server.connect)
    (message,) = server.told("subChanges")
    assert "activeOnly" not in message.properties
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("O6")
async def test_a_proposal_without_a_parent_follows_on_an_older_tombstone(pair, nursery):
    await pair.theirs.put("a", {})
    tombstone = await pair.theirs.delete("a")
    older, later = (rev(tombstone.version.time + step) for step in (-1, 1))
    client = RawClient(nursery, pair.there)
    await client.open()
    ((refused),) = await client.propose(["a", older, ""])
    assert (refused["status"], refused["rev"]) == (409, str(tombstone.vector))
    assert await client.propose(["a", later, ""]) == []
    assert await client.send_revision("a", later, {"by": "Bob"}) is None
    # The deletion is in it, so that it is taken for newer by all who have that.
    found = pair.theirs.get("a")
    assert (found.body, str(found.version)) == ({"by": "Bob"}, later)
    assert found.vector.has(tombstone.version)
    # Who wrote it need not hear of that to go on.
    last = rev(tombstone.version.time + 2)
    assert await client.propose(["a", last, later]) == []
    assert await client.send_revision("a", last, {"by": "Bob again"}) is None
    found = pair.theirs.get("a")
    assert (found.body, str(found.version)) == ({"by": "Bob again"}, last)
    assert found.vector.has(tombstone.version)
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("O8")
async def test_a_document_refused_with_409_is_proposed_by_every_push(pair, nursery):
    server = RawServer(nursery, proposeChanges=lambda message: Message({}, b"[409]"))
    await pair.mine.put("a", {})
    for _ in range(3):
        run = await pair.replicate(PUSH, target=server.connect)
        assert {name: error.code for name, error in run.push_errors.items()} == {"a": 409}
    assert [row[0] for row in server.proposed()] == ["a"] * 3
    assert server.checkpoint() is None
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("O9")
async def test_what_was_pulled_is_not_proposed_but_an_edit_of_it_is(pair, nursery):
    rows = [[1, "a", rev()], [2, "b", rev()]]
    server = RawServer(nursery, rows=rows)
    assert (await pair.replicate(target=server.connect)).counts == (0, 2)
    assert server.proposed() == []
    edited = await pair.mine.put("a", {"n": 1})
    server.rows = []
    assert (await pair.replicate(target=server.connect)).counts == (1, 0)
    ((name, version, parent, _),) = server.proposed()
    assert (name, version, parent) == ("a", str(edited.version), rev())
    nursery.cancel_scope.cancel()
