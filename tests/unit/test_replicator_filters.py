"""Documents that the user's filters keep from being pushed or pulled."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pairs import Pair, open_pair
from trio.testing import wait_all_tasks_blocked

import trio_p2p
from trio_p2p import ActivityLevel, Direction, DocumentFlags, ReplicatorType, limits
from trio_p2p.store import documents

BUSY, IDLE = ActivityLevel.BUSY, ActivityLevel.IDLE
PUSH = ReplicatorType.PUSH


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path) as pair:
        yield pair


def filtered(pair: Pair, **settings: Any) -> trio_p2p.ReplicatorConfiguration:
    """A one-shot replication; settings of collections and others together."""
    names = ("push_filter", "pull_filter", "document_ids", "conflict_resolver")
    of_collection = {name: settings.pop(name) for name in names if name in settings}
    plan = trio_p2p.CollectionConfiguration(**of_collection)
    defaults = {"continuous": False, "collections": {pair.till.default_collection: plan}}
    return pair.configuration(**(defaults | settings))


def public(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
    return bool(document.body.get("public"))


async def public_soon(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
    await trio.sleep(0.1)
    return public(document, flags)


def ids(database: trio_p2p.Database) -> set[str]:
    names = ["a", "b", "c", "d"]
    return {name for name in names if database.default_collection.get(name) is not None}


async def put(database: trio_p2p.Database, **is_public: bool) -> None:
    for name, value in is_public.items():
        await database.default_collection.put(name, {"public": value})


async def put_many(database: trio_p2p.Database, count: int, size: int) -> None:
    async with database.default_collection.batch() as batch:
        for number in range(count):
            batch.put(f"doc-{number}", {"text": "x" * size})


@pytest.mark.parametrize("push_filter", [public, public_soon])
async def test_what_the_push_filter_refuses_is_not_sent_and_no_failure(
    pair: Pair, autojump_clock: Any, push_filter: Any
) -> None:
    await put(pair.till, a=True, b=False, c=True)
    config = filtered(pair, push_filter=push_filter)
    result = await trio_p2p.replicate(config)
    assert (result.documents_pushed, result.documents_failed) == (2, 0)
    assert ids(pair.shop) == {"a", "c"}
    # It is done with: neither offered nor asked about again, until it is edited.
    again = await trio_p2p.replicate(config)
    assert again.statistics.documents_offered == 0
    await put(pair.till, b=True, c=False)
    result = await trio_p2p.replicate(config)
    assert result.documents_pushed == 1
    assert ids(pair.shop) == {"a", "b", "c"}


@pytest.mark.parametrize("pull_filter", [public, public_soon])
async def test_what_the_pull_filter_refuses_is_not_stored_and_told_with_403(
    pair: Pair, autojump_clock: Any, pull_filter: Any
) -> None:
    await put(pair.shop, a=True, b=False, c=True)
    config = filtered(pair, pull_filter=pull_filter)
    result = await trio_p2p.replicate(config)
    assert (result.documents_pulled, result.documents_failed) == (2, 1)
    [event] = result.errors
    assert (event.direction, event.document_id) == (Direction.PULL, "b")
    assert isinstance(event.error, trio_p2p.PeerError)
    assert event.error.status == 403
    # Nobody is to look for the reason at the peer.
    assert str(event.error) == "we answered HTTP/403: rejected by the pull filter"
    assert ids(pair.till) == {"a", "c"}
    again = await trio_p2p.replicate(config)
    assert again.statistics.documents_offered == 0
    await put(pair.shop, b=True)
    assert (await trio_p2p.replicate(config)).documents_pulled == 1


async def test_tombstones_are_put_to_the_filters_as_such(pair: Pair, autojump_clock: Any) -> None:
    asked: dict[str, tuple[bool, DocumentFlags]] = {}

    def note(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        asked[document.id] = document.deleted, flags
        return False

    await put(pair.till, a=True)
    await put(pair.shop, b=True)
    await trio_p2p.replicate(pair.configuration(continuous=False))
    await pair.till.default_collection.delete("a")
    await pair.shop.default_collection.delete("b")
    config = filtered(pair, push_filter=note, pull_filter=note)
    await trio_p2p.replicate(config)
    assert asked == dict.fromkeys("ab", (True, DocumentFlags.DELETED))
    assert ids(pair.shop) == {"a"}
    assert ids(pair.till) == {"b"}


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_filter_that_raises_fails_that_document_which_is_tried_again(
    pair: Pair, autojump_clock: Any, direction: Direction
) -> None:
    broken = True

    def check(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        if broken and document.id == "b":
            raise LookupError("no table of them")
        return True

    source, other = pair.till, pair.shop
    if direction is Direction.PULL:
        source, other = other, source
    await put(source, a=True, b=True, c=True)
    config = filtered(pair, **{f"{direction.value}_filter": check})
    for _ in range(2):
        result = await trio_p2p.replicate(config)
        [event] = result.errors
        assert (event.direction, event.document_id) == (direction, "b")
        assert isinstance(event.error, trio_p2p.CallbackError)
        assert event.error.retryable
        assert isinstance(event.error.__cause__, LookupError)
        assert ids(other) == {"a", "c"}
    broken = False
    await trio_p2p.replicate(config)
    assert ids(other) == {"a", "b", "c"}


@pytest.mark.parametrize("direction", list(Direction))
async def test_while_connected_a_document_that_a_filter_failed_is_tried_again_later(
    pair: Pair, autojump_clock: Any, direction: Direction
) -> None:
    broken = True

    async def check(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        await trio.lowlevel.checkpoint()
        if broken:
            raise LookupError("no table of them")
        return True

    source, other = pair.till, pair.shop
    if direction is Direction.PULL:
        source, other = other, source
    await put(source, a=True)
    config = filtered(pair, continuous=True, **{f"{direction.value}_filter": check})
    async with trio_p2p.open_replicator(config) as replicator:
        await replicator.wait_for(IDLE)
        assert ids(other) == set()
        broken = False
        await trio.sleep(limits.RETRY_DOCUMENTS_S_MAX)
        assert ids(other) == {"a"}


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_filter_that_never_returns_holds_up_neither_others_nor_the_stop(
    pair: Pair, autojump_clock: Any, direction: Direction
) -> None:
    async def check(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        if document.id == "a":
            await trio.sleep_forever()
        return True

    source, other = pair.till, pair.shop
    if direction is Direction.PULL:
        source, other = other, source
    await put(source, a=True, b=True, c=True)
    name = f"{direction.value}_filter"
    async with trio_p2p.open_replicator(filtered(pair, **{name: check})) as replicator:
        await replicator.wait_for(BUSY)
        await wait_all_tasks_blocked()
        assert ids(other) == {"b", "c"}
        before = trio.current_time()
        await replicator.stop()
        assert trio.current_time() - before < 1
    # Left alone, it does not keep a one-shot from ending.
    result = await trio_p2p.replicate(filtered(pair, **{name: check}))
    [event] = result.errors
    assert event.document_id == "a"
    assert isinstance(event.error, trio_p2p.CallbackError)


async def fail_when_cut_off(*_: object) -> bool:
    """A filter or resolver that waits in a nursery whose task raises when it is cancelled."""

    async def connected_to_a_server() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("the server is gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connected_to_a_server)
        await trio.sleep(10)
    return True


@pytest.mark.parametrize("function", ["push_filter", "pull_filter", "conflict_resolver"])
async def test_what_fails_when_a_lost_connection_cuts_it_off_does_not_end_the_replication(
    pair: Pair, autojump_clock: Any, function: str
) -> None:
    await put(pair.shop, a=True)
    await put(pair.till, a=False)
    config = filtered(pair, continuous=True, **{function: fail_when_cut_off})
    async with trio_p2p.open_replicator(config) as replicator:
        await trio.sleep(1)
        await pair.network.cut()
        status = await replicator.wait_for(ActivityLevel.OFFLINE)
        assert isinstance(status.error, trio_p2p.ReplicationError)
        assert status.error.retryable
        await replicator.wait_for(BUSY)


class Slow:
    """A filter that takes a second for each document, and counts how many it has at once."""

    def __init__(self, refused: str | None = None) -> None:
        self.refused = refused
        self.asked = self.most = 0

    async def __call__(self, document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        self.asked += 1
        self.most = max(self.most, self.asked)
        await trio.sleep(1)
        self.asked -= 1
        return document.id != self.refused


async def test_not_too_many_documents_are_put_to_a_slow_filter_at_once(
    pair: Pair, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILTERED_AT_ONCE_MAX", 10)
    monkeypatch.setattr(limits, "CHANGES_PER_MESSAGE_MAX", 4)
    check = Slow()
    async with pair.till.default_collection.batch() as batch:
        for number in range(100):
            batch.put(f"doc-{number}", {})
    result = await trio_p2p.replicate(filtered(pair, push_filter=check))
    assert result.documents_pushed == 100
    assert 10 <= check.most < 10 + 4


async def test_not_too_large_documents_are_put_to_a_slow_filter_at_once(
    pair: Pair, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILTERED_BYTES_MAX", 5_000)
    monkeypatch.setattr(limits, "SCAN_SLICE_BYTES", 1)
    check = Slow(refused="doc-7")
    await put_many(pair.till, 20, 2_000)
    result = await trio_p2p.replicate(filtered(pair, push_filter=check))
    assert result.documents_pushed == 19
    assert check.most == 3


class Turns(trio.abc.Instrument):
    """Counts how often all tasks that can run had a turn."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@pytest.mark.parametrize("push_filter", [public, public_soon])
@pytest.mark.parametrize(
    ("limit", "value", "at_once"), [("SCAN_SLICE_BYTES", 3_000, 2), ("SCAN_SLICE_ROWS", 3, 3)]
)
async def test_no_more_than_a_slice_is_put_to_a_filter_before_other_tasks_have_their_turns(
    pair: Pair,
    autojump_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
    push_filter: Any,
    limit: str,
    value: int,
    at_once: int,
) -> None:
    monkeypatch.setattr(limits, limit, value)
    await put_many(pair.till, 20, 2_000)
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    read, asked = Counter[int](), Counter[int]()
    get = documents.get

    def count_read(*args: Any) -> Any:
        read[turns.count] += 1
        return get(*args)

    def count_asked(document: trio_p2p.Document, flags: DocumentFlags) -> Any:
        asked[turns.count] += 1
        return push_filter(document, flags)

    # All are held back, so nothing else reads a whole document.
    monkeypatch.setattr(documents, "get", count_read)
    result = await trio_p2p.replicate(filtered(pair, push_filter=count_asked))
    assert result.documents_pushed == 0
    assert asked.total() == 20
    assert max(asked.values()) == at_once
    assert asked == read


async def test_what_changes_while_it_waits_for_the_filter_is_asked_about_as_it_is_then(
    pair: Pair, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILTERED_AT_ONCE_MAX", 1)
    collection = pair.till.default_collection
    await put(pair.till, a=True, b=True, c=True, d=False)
    asked: list[tuple[str, bool]] = []

    async def check(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        asked.append((document.id, document["public"]))
        if len(asked) == 1:
            # The others were read from the feed together with it.
            await put(pair.till, d=True, b=False)
            await collection.purge("c")
        return public(document, flags)

    async with trio_p2p.open_replicator(
        filtered(pair, push_filter=check, continuous=True)
    ) as replicator:
        await replicator.wait_for(IDLE)
        assert replicator.pending_document_ids(collection) == frozenset()
    assert ids(pair.shop) == {"a", "d"}
    assert asked == [("a", True), ("d", True), ("b", False)]
    again = await trio_p2p.replicate(filtered(pair, push_filter=public))
    assert again.statistics.documents_offered == 0


async def test_only_the_revision_that_passed_is_sent(pair: Pair, autojump_clock: Any) -> None:
    """Not what has taken its place when it is sent, though the peer would take that."""
    collection = pair.till.default_collection
    asked: list[bool] = []

    async def check(document: trio_p2p.Document, flags: DocumentFlags) -> bool:
        asked.append(document["public"])
        return public(document, flags)

    await put(pair.till, a=True)
    config = filtered(pair, push_filter=check, continuous=True, replicator_type=PUSH)
    async with trio_p2p.open_replicator(config) as replicator:
        await replicator.wait_for(IDLE)
        for _ in range(20):
            await put(pair.till, a=True)
            await trio.lowlevel.checkpoint()
            await put(pair.till, a=False)
            await trio.sleep(0.1)
            document = pair.shop.default_collection.get("a")
            assert document is not None
            assert document["public"]
    assert {True, False} <= set(asked)
    assert collection.get("a")["public"] is False


async def test_of_quick_edits_in_a_slow_filter_the_last_one_counts(
    pair: Pair, autojump_clock: Any
) -> None:
    config = filtered(pair, push_filter=public_soon, continuous=True)
    async with trio_p2p.open_replicator(config) as replicator:
        await replicator.wait_for(IDLE)
        for number in range(20):
            await pair.till.default_collection.put("a", {"public": number % 3 > 0, "n": number})
            await trio.sleep(0.03)
        await replicator.wait_for(BUSY)
        await replicator.wait_for(IDLE)
        document = pair.shop.default_collection.get("a")
        assert document is not None
        assert document["n"] == 19
    again = await trio_p2p.replicate(filtered(pair, push_filter=public_soon))
    assert again.statistics.documents_offered == 0


async def test_filters_work_beside_document_ids_each_with_a_checkpoint(
    pair: Pair, autojump_clock: Any
) -> None:
    await put(pair.till, a=True, b=True, c=False)
    await trio_p2p.replicate(filtered(pair, push_filter=public, document_ids=["b", "c"]))
    assert ids(pair.shop) == {"b"}
    # Another checkpoint each: with other IDs or filters more is to be done.
    await trio_p2p.replicate(filtered(pair, push_filter=public))
    assert ids(pair.shop) == {"a", "b"}
    await trio_p2p.replicate(filtered(pair))
    assert ids(pair.shop) == {"a", "b", "c"}
