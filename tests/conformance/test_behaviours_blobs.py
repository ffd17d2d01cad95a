"""Documents that name blobs, between whole peers."""

import os
import tracemalloc

import pytest
from loopback import PULL, PUSH, contents

from trio_p2p import CollectionConfiguration
from trio_p2p.store.blob_files import BLOB_DIRECTORY

MIB = 2**20


def source_of(pair, kind):
    return pair.mine if kind is PUSH else pair.theirs


def drop_files(database):
    """Lose every blob, as by a damaged disk."""
    for path in (database.path / BLOB_DIRECTORY).iterdir():
        path.unlink()


@pytest.mark.behaviour("A1")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_blobs_arrive_byte_for_byte_and_are_told_in_the_statistics(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    content = {f"blob{n}": os.urandom(n * 1_000) for n in range(1, 6)}
    for name, data in content.items():
        blob = await source.database.save_blob(data, "image/png")
        await source.put(name, {"image": blob})
    run = await pair.replicate(kind)
    assert (sum(run.counts), run.push_errors, run.pull_errors) == (5, {}, {})
    for name, data in content.items():
        blob = target.get(name)["image"]
        assert blob == source.get(name)["image"]
        assert (blob.length, blob.content_type) == (len(data), "image/png")
        assert await blob.read() == data
    told = run.statistics
    moved = (told.blobs_sent, told.blob_bytes_sent, told.blobs_received, told.blob_bytes_received)
    assert moved == ((5, 15_000, 0, 0) if kind is PUSH else (0, 0, 5, 15_000))


@pytest.mark.behaviour("A2", "X5")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_a_large_blob_arrives_and_takes_little_memory(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    content = os.urandom(MIB) * 6
    await source.put("a", {"blob": await source.database.save_blob(content)})
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        run = await pair.replicate(kind)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(run.counts) == 1
    assert peak - before < 3 * MIB
    assert await target.get("a")["blob"].read() == content


@pytest.mark.behaviour("A2")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_dozens_of_documents_with_two_blobs_each_arrive(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    for number in range(60):
        blobs = [await source.database.save_blob(b"%d of %d" % (n, number)) for n in range(2)]
        await source.put(f"doc{number}", {"blobs": blobs})
    run = await pair.replicate(kind)
    assert (sum(run.counts), run.push_errors, run.pull_errors) == (60, {}, {})
    first, second = target.get("doc59")["blobs"]
    assert (await first.read(), await second.read()) == (b"0 of 59", b"1 of 59")
    await pair.assert_equal()


@pytest.mark.behaviour("A5")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_only_blobs_that_are_not_there_are_sent(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    await target.database.save_blob(b"held")
    body = {"held": await source.database.save_blob(b"held")}
    await source.put("a", body)
    run = await pair.replicate(kind)
    assert (run.statistics.blobs_sent, run.statistics.blobs_received) == (0, 0)
    # An edit that keeps the blob and adds another sends the other alone.
    await source.put("a", body | {"new": await source.database.save_blob(b"new")})
    run = await pair.replicate(kind)
    assert run.statistics.blobs_sent + run.statistics.blobs_received == 1
    await pair.assert_equal()


@pytest.mark.behaviour("A6")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_a_blob_that_the_sender_lacks_fails_its_document_alone(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    await source.put("a", {"blob": await source.database.save_blob(b"lost")})
    drop_files(source.database)
    await source.put("b", {"blob": await source.database.save_blob(b"there")})
    run = await pair.replicate(kind)
    assert run.error is None
    assert list(run.push_errors if kind is PUSH else run.pull_errors) == ["a"]
    assert target.get("a") is None
    assert await target.get("b")["blob"].read() == b"there"


@pytest.mark.behaviour("A8")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_a_blob_is_found_wherever_it_stands_and_moves(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    blob = await source.database.save_blob(b"photo")
    for body in ({"photo": blob}, {"renamed": blob}, {"deep": [{"er": [1, {"photo": blob}]}]}):
        await source.put("a", body)
        await pair.replicate(kind)
        await pair.assert_equal()
    assert await target.get("a")["deep"][0]["er"][1]["photo"].read() == b"photo"


@pytest.mark.behaviour("A9")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_after_a_blob_was_taken_out_the_next_edits_go_over(pair, kind):
    source, target = source_of(pair, kind), source_of(pair, PULL if kind is PUSH else PUSH)
    await source.put("a", {"blob": await source.database.save_blob(b"photo"), "n": 1})
    await pair.replicate(kind)
    await source.put("a", {"n": 2})
    await pair.replicate(kind)
    assert target.get("a").body == {"n": 2}
    await target.database.compact()
    await source.put("a", {"blob": await source.database.save_blob(b"photo"), "n": 3})
    run = await pair.replicate(kind)
    assert (sum(run.counts), run.push_errors, run.pull_errors) == (1, {}, {})
    assert await target.get("a")["blob"].read() == b"photo"


@pytest.mark.behaviour("C13d")
async def test_a_merge_may_hold_blobs_of_either_side(pair):
    await pair.mine.put("a", {"here": await pair.here.save_blob(b"from here")})
    await pair.theirs.put("a", {"there": await pair.there.save_blob(b"from there")})

    def merge(conflict):
        return conflict.local.body | conflict.remote.body

    settings = {pair.mine: CollectionConfiguration(conflict_resolver=merge)}
    run = await pair.replicate(collections=settings)
    assert (run.statistics.conflicts_resolved, run.push_errors, run.pull_errors) == (1, {}, {})
    assert await contents(pair.mine) == await contents(pair.theirs)
    for collection in (pair.mine, pair.theirs):
        merged = collection.get("a")
        assert await merged["here"].read() == b"from here"
        assert await merged["there"].read() == b"from there"
