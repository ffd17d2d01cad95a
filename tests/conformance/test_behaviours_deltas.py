"""Edits that go over as deltas, between whole peers."""

import json

import pytest
from loopback import PULL, PUSH, ids, open_pair
from raw import RawClient, RawServer, Refusal
from test_behaviours_versions import put_tree

from trio_p2p import CollectionConfiguration
from trio_p2p.blip import Message

# Longer than what is not worth a delta.
FILLER = "a text of some length, as documents have them; " * 8
HUNDRED, EVERY_SEVENTH = ids(*range(1, 101)), ids(*range(1, 101, 7))


@pytest.fixture
async def pair(tmp_path):
    """Two peers that permit deltas."""
    async with open_pair(tmp_path, delta_sync=True) as pair:
        yield pair


async def put_texts(collection, names=HUNDRED, **body):
    async with collection.batch() as batch:
        for name in names:
            batch.put(name, {"name": name, "text": FILLER, **body})


def deltas(run):
    return run.statistics.deltas_sent + run.statistics.deltas_received


@pytest.mark.behaviour("D1")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_every_seventh_document_that_was_edited_goes_as_a_delta(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    await put_texts(source)
    run = await pair.replicate(kind)
    assert (sum(run.counts), deltas(run)) == (100, 0)
    await put_texts(source, EVERY_SEVENTH, n=1)
    run = await pair.replicate(kind)
    assert (sum(run.counts), deltas(run)) == (15, 15)
    assert run.statistics.delta_bytes_saved > 15 * 100
    await pair.assert_equal()


@pytest.mark.behaviour("D1")
async def test_a_delta_is_applied_before_the_pull_filter_sees_the_document(pair):
    seen = []

    def note(document, flags):
        seen.append(document.body)
        return True

    settings = {"collections": {pair.mine: CollectionConfiguration(pull_filter=note)}}
    await put_texts(pair.theirs)
    await pair.replicate(PULL, **settings)
    seen.clear()
    await put_texts(pair.theirs, EVERY_SEVENTH, n=1)
    run = await pair.replicate(PULL, **settings)
    assert (sum(run.counts), deltas(run)) == (15, 15)
    assert len(seen) == 15
    assert all(body["text"] == FILLER and body["n"] == 1 for body in seen)
    await pair.assert_equal()


@pytest.mark.behaviour("D2")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_a_quarter_of_many_numbers_goes_as_a_delta(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    for number in range(20):
        await source.put(f"doc{number}", {str(n): n for n in range(1_000)})
    await pair.replicate(kind)
    for number in range(20):
        changed = {str(n): n + (n % 4 == 0) for n in range(1_000)}
        await source.put(f"doc{number}", changed)
    run = await pair.replicate(kind)
    assert (sum(run.counts), deltas(run)) == (20, 20)
    await pair.assert_equal()


@pytest.mark.behaviour("D3")
async def test_what_was_pushed_comes_back_as_a_delta_after_an_edit_there(pair):
    await put_texts(pair.mine)
    await pair.replicate(PUSH)
    await put_texts(pair.theirs, EVERY_SEVENTH, n=1)
    run = await pair.replicate(PULL)
    assert (run.counts, run.statistics.deltas_received) == ((0, 15), 15)
    await pair.assert_equal()


@pytest.mark.behaviour("D4")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_of_documents_with_blobs_only_new_blobs_are_sent_beside_the_delta(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    target = pair.theirs if kind is PUSH else pair.mine
    blob = await source.database.save_blob(b"photo")
    await source.put("a", {"text": FILLER, "photo": blob})
    await pair.replicate(kind)
    await source.put("a", {"text": FILLER, "photo": blob, "n": 1})
    run = await pair.replicate(kind)
    assert deltas(run) == 1
    assert run.statistics.blobs_sent + run.statistics.blobs_received == 0
    other = await source.database.save_blob(b"another photo")
    await source.put("a", {"text": FILLER, "photo": other, "n": 1})
    run = await pair.replicate(kind)
    assert deltas(run) == 1
    assert run.statistics.blobs_sent + run.statistics.blobs_received == 1
    assert await target.get("a")["photo"].read() == b"another photo"
    await pair.assert_equal()


def announcing(rows=b"[]"):
    """The answer of a peer that takes deltas."""
    return Message({"blobs": "true", "deltas": "true"}, rows)


@pytest.mark.behaviour("D5")
async def test_after_422_the_body_is_sent_whole_at_once(pair, nursery):
    """The peer lost the base, or takes the delta for corrupt."""

    def refuse_deltas(message):
        return Refusal(422, "no such base") if "deltaSrc" in message.properties else None

    server = RawServer(nursery, proposeChanges=lambda message: announcing(), rev=refuse_deltas)
    settings = {"target": server.connect, "enable_delta_sync": True}
    await pair.mine.put("a", {"text": FILLER})
    await pair.replicate(PUSH, **settings)
    base = pair.mine.get("a").version
    await pair.mine.put("a", {"text": FILLER, "n": 1})
    run = await pair.replicate(PUSH, **settings)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    _, delta, whole = server.told("rev")
    assert delta.properties["deltaSrc"] == str(base)
    assert json.loads(delta.body) == {"n": 1}
    assert "deltaSrc" not in whole.properties
    assert json.loads(whole.body) == {"text": FILLER, "n": 1}
    assert len(server.told("proposeChanges")) == 2
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("D5")
async def test_an_unknown_base_and_a_corrupt_delta_are_answered_422(pair, nursery):
    version = (await pair.theirs.put("a", {"text": FILLER})).version
    client = RawClient(nursery, pair.there, deltas=True)
    await client.open()
    later = f"{pair.there.engine.now_ns() + 10**6:x}@BobBobBobBobBobBobBobA"
    assert await client.propose(["a", later, str(version)]) == []

    async def send(delta, base):
        return await client.send_revision("a", later, delta, history=str(version), deltaSrc=base)

    assert await send({"n": 1}, "77@BobBobBobBobBobBobBobA") == 422
    assert await send({"text": ["9999=", 0, 2]}, str(version)) == 422
    assert pair.theirs.get("a").version == version
    assert await send({"n": 1}, str(version)) is None
    assert pair.theirs.get("a").body == {"text": FILLER, "n": 1}
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("D6")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_there_is_no_delta_to_or_from_a_tombstone(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    await put_texts(source, ["a"])
    await pair.replicate(kind)
    await source.delete("a")
    run = await pair.replicate(kind)
    assert (sum(run.counts), deltas(run)) == (1, 0)
    await put_texts(source, ["a"], n=1)
    run = await pair.replicate(kind)
    assert (sum(run.counts), deltas(run)) == (1, 0)
    await pair.assert_equal()


@pytest.mark.behaviour("D6")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_there_is_no_delta_where_the_replicator_does_not_enable_them(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    await put_texts(source, ["a"])
    await pair.replicate(kind, enable_delta_sync=False)
    await put_texts(source, ["a"], n=1)
    run = await pair.replicate(kind, enable_delta_sync=False)
    assert (sum(run.counts), deltas(run)) == (1, 0)
    await pair.assert_equal()


@pytest.mark.behaviour("V11d")
async def test_the_base_of_a_delta_may_be_a_tree_revision_id(pair, nursery):
    for collection in (pair.mine, pair.theirs):
        await put_tree(collection, ["a"], ["2-beef", "1-abcd"], {"text": FILLER})
    await pair.replicate()
    await pair.mine.put("a", {"text": FILLER, "n": 1})
    run = await pair.replicate(PUSH)
    assert (run.counts, run.statistics.deltas_sent) == ((1, 0), 1)
    await pair.assert_equal()
