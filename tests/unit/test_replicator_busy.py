"""What becomes of documents while others are edited all the time, or wait for a resolver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_p2p
from trio_p2p import ActivityLevel, limits
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.network import MemoryNetwork, open_network

LATENCY_S = 0.1


class Pair:
    """A shop that listens, and a till, over a network that takes its time."""

    def __init__(
        self, shop: trio_p2p.Collection, till: trio_p2p.Collection, network: MemoryNetwork
    ) -> None:
        self.shop, self.till, self.network = shop, till, network

    def configuration(
        self, *, continuous: bool = True, **settings: Any
    ) -> trio_p2p.ReplicatorConfiguration:
        collection = trio_p2p.CollectionConfiguration(**settings)
        return trio_p2p.ReplicatorConfiguration(
            target=self.network.connect,
            target_id="the shop",
            collections={self.till: collection},
            continuous=continuous,
        )

    async def put_anew(self, document_id: str) -> None:
        """Write a document that the shop refuses, and does not offer: it did so long ago."""
        await self.till.purge(document_id)
        await self.till.put(document_id, {"from": "till"})


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with (
        open_test_database(tmp_path / "shop.p2p") as shop,
        open_test_database(tmp_path / "till.p2p") as till,
        open_network([shop.default_collection]) as network,
    ):
        network.latency_s = LATENCY_S
        yield Pair(shop.default_collection, till.default_collection, network)


async def edit_for_ever(collection: trio_p2p.Collection, documents: int, every_s: float) -> None:
    for number in count():
        body = {"n": number, "at": collection.database.name}
        await collection.put(f"edited-{number % documents}", body)
        await trio.sleep(every_s)


@asynccontextmanager
async def edited(collection: trio_p2p.Collection) -> AsyncIterator[None]:
    """Something of a collection is on its way at any time."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(edit_for_ever, collection, 50, LATENCY_S)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def in_conflict(pair: Pair) -> AsyncIterator[None]:
    """Both sides have written this one, whose resolver never returns."""
    await pair.till.put("hanging", {"from": "till"})
    await pair.shop.put("hanging", {"from": "shop"})
    yield


async def hang(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
    if conflict.document_id == "hanging":
        await trio.sleep_forever()
    return conflict.local


@pytest.mark.parametrize("distraction", ["edits", "resolver"])
async def test_a_refused_document_is_fetched_whatever_else_goes_on(
    pair: Pair, autojump_clock: Any, distraction: str
) -> None:
    await pair.shop.put("apple", {"from": "shop"})
    await trio_p2p.replicate(pair.configuration(continuous=False))
    async with (
        edited(pair.till) if distraction == "edits" else in_conflict(pair),
        trio_p2p.open_replicator(pair.configuration(conflict_resolver=hang)) as replicator,
    ):
        await trio.sleep(5)
        assert replicator.status.activity is ActivityLevel.BUSY
        await pair.put_anew("apple")
        await trio.sleep(5)
        document = pair.shop.get("apple")
        assert document is not None
        assert document.body == {"from": "till"}
        assert not replicator.is_document_pending(pair.till, "apple")


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.parametrize("distraction", ["edits", "resolver"])
async def test_a_failed_document_is_tried_again_whatever_else_goes_on(
    pair: Pair, autojump_clock: Any, distraction: str, direction: str
) -> None:
    asked_at = []

    def fail(document: trio_p2p.Document, flags: trio_p2p.DocumentFlags) -> bool:
        if document.id == "failing":
            asked_at.append(trio.current_time())
            raise ValueError
        return True

    settings: dict[str, Any] = {f"{direction}_filter": fail, "conflict_resolver": hang}
    async with (
        edited(pair.till) if distraction == "edits" else in_conflict(pair),
        trio_p2p.open_replicator(pair.configuration(**settings)),
    ):
        await trio.sleep(5)
        await (pair.till if direction == "push" else pair.shop).put("failing", {})
        await trio.sleep(45)
        pauses = [later - earlier for earlier, later in pairwise(asked_at)]
        assert pauses == pytest.approx([5, 10, 20], abs=1)


async def test_a_one_shot_run_ends_though_both_sides_go_on_editing(
    pair: Pair, autojump_clock: Any
) -> None:
    async with trio.open_nursery() as nursery:
        for collection in (pair.shop, pair.till):
            nursery.start_soon(edit_for_ever, collection, 50, LATENCY_S)
        await trio.sleep(3)
        with trio.fail_after(10):
            await trio_p2p.replicate(pair.configuration(continuous=False))
        nursery.cancel_scope.cancel()


async def test_a_one_shot_run_pushes_what_a_resolver_made_of_a_fetched_document(
    pair: Pair, autojump_clock: Any
) -> None:
    def merge(conflict: trio_p2p.Conflict) -> dict[str, Any]:
        assert conflict.local is not None
        assert conflict.remote is not None
        return {"from": [conflict.local.body["from"], conflict.remote.body["from"]]}

    await pair.shop.put("apple", {"from": "shop"})
    await trio_p2p.replicate(pair.configuration(continuous=False))
    await pair.put_anew("apple")
    await trio_p2p.replicate(pair.configuration(continuous=False, conflict_resolver=merge))
    for collection in (pair.shop, pair.till):
        document = collection.get("apple")
        assert document is not None
        assert document.body == {"from": ["till", "shop"]}


async def test_what_came_of_a_fetched_document_stays_pending_if_it_fails(
    pair: Pair, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is so much to push that the feed was not read to its end by then."""
    monkeypatch.setattr(limits, "CHANGES_PER_MESSAGE_MAX", 5)
    to_fail = ["apple"]

    def fail_once(document: trio_p2p.Document, flags: trio_p2p.DocumentFlags) -> bool:
        if document.body == {"merged": True}:
            while to_fail:
                raise ValueError(to_fail.pop())
        return True

    configuration = pair.configuration(
        continuous=False, push_filter=fail_once, conflict_resolver=lambda conflict: {"merged": True}
    )
    await pair.shop.put("apple", {"from": "shop"})
    await trio_p2p.replicate(configuration)
    await pair.put_anew("apple")
    async with pair.till.batch() as batch:
        for number in range(300):
            batch.put(f"pear-{number}", {})
    result = await trio_p2p.replicate(configuration)
    assert [event.document_id for event in result.errors] == ["apple"]
    assert pair.shop.count == 301
    await trio_p2p.replicate(configuration)
    document = pair.shop.get("apple")
    assert document is not None
    assert document.body == {"merged": True}


@pytest.mark.parametrize("continuous", [False, True])
async def test_any_number_of_refused_documents_is_fetched(
    pair: Pair, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, continuous: bool
) -> None:
    """Though the shop still sends what was fetched last when the till asks for more."""
    monkeypatch.setattr(limits, "FETCHED_DOCUMENTS_MAX", 10)
    monkeypatch.setattr(limits, "REVISION_BYTES_UNANSWERED_MAX", 1_000)
    names = [f"apple-{number}" for number in range(35)]
    for name in names:
        await pair.shop.put(name, {"from": "shop", "text": "x" * 1_000})
    await trio_p2p.replicate(pair.configuration(continuous=False))
    for name in names:
        await pair.put_anew(name)
    configuration = pair.configuration(continuous=continuous, conflict_resolver=trio_p2p.local_wins)
    async with trio_p2p.open_replicator(configuration) as replicator:
        with trio.move_on_after(100):
            await replicator.wait_for(ActivityLevel.STOPPED)
        assert replicator.pending_document_ids(pair.till) == frozenset()
    async for document in pair.shop.documents():
        assert document.body == {"from": "till"}


async def test_a_document_that_is_purged_while_it_is_refused_does_not_come_back(
    pair: Pair, autojump_clock: Any
) -> None:
    async def hang_until_purged(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
        await trio.sleep(10)
        return conflict.local

    await pair.till.put("apple", {"from": "till"})
    await pair.shop.put("apple", {"from": "shop"})
    async with trio_p2p.open_replicator(pair.configuration(conflict_resolver=hang_until_purged)):
        await trio.sleep(5)
        await pair.till.purge("apple")
        await trio.sleep(100)
    assert pair.till.get("apple") is None


async def test_a_conflict_is_told_of_once_it_is_resolved(pair: Pair, autojump_clock: Any) -> None:
    async def decide(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
        await trio.sleep(30)
        if conflict.document_id == "bad":
            raise ValueError
        return conflict.local

    for document_id in ("good", "bad"):
        await pair.till.put(document_id, {"from": "till"})
        await pair.shop.put(document_id, {"from": "shop"})
    async with trio_p2p.open_replicator(pair.configuration(conflict_resolver=decide)) as replicator:
        await trio.sleep(29)
        assert replicator.statistics().documents_pulled == 0
        events = replicator.document_replications()
        with trio.fail_after(5):
            told = [await anext(events) for _ in range(2)]
        assert {(event.document_id, event.error is None) for event in told} == {
            ("good", True),
            ("bad", False),
        }
        assert replicator.result().documents_pulled == 1
        assert replicator.result().documents_failed == 1


async def test_a_document_that_changes_there_between_proposal_and_revision_has_not_failed(
    pair: Pair, autojump_clock: Any
) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(ActivityLevel.IDLE)
        await pair.till.put("apple", {"from": "till"})
        await trio.sleep(1.5 * LATENCY_S)
        await pair.shop.put("apple", {"from": "shop"})
        await trio.sleep(5)
        assert replicator.statistics().conflicts_resolved == 1
        assert replicator.result().errors == ()


class Steps(trio.abc.Instrument):
    """Counts the steps that tasks take."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_what_changes_in_one_of_many_collections_wakes_few_tasks_of_others(
    tmp_path: Path, autojump_clock: Any
) -> None:
    steps = []
    async with (
        open_test_database(tmp_path / "shop.p2p") as shop,
        open_test_database(tmp_path / "till.p2p") as till,
    ):
        for size in (10, 40):
            for database in (shop, till):
                while len(database.collections()) < size:
                    await database.create_collection(f"c{len(database.collections())}")
            async with open_network(shop.collections()) as network:
                config = trio_p2p.ReplicatorConfiguration(
                    target=network.connect, target_id="the shop", collections=till.collections()
                )
                counter = Steps()
                trio.lowlevel.add_instrument(counter)
                await trio_p2p.replicate(config)
                trio.lowlevel.remove_instrument(counter)
            steps.append(counter.count)
    few, many = steps
    # Each says the same as before: four times as much in all, not sixteen times.
    assert many < 6 * few
