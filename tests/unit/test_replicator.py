"""Replicator and listener joined by streams in memory, on a clock that jumps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trio_p2p
from trio_p2p import ActivityLevel
from trio_p2p.replication import passive
from trio_p2p.replication.messages import CollectionsReply
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.network import MemoryNetwork, open_network


@asynccontextmanager
async def open_peers(
    path: Path, **settings: Any
) -> AsyncIterator[tuple[trio_p2p.Database, trio_p2p.Database, MemoryNetwork]]:
    async with (
        open_test_database(path / "shop.p2p") as shop,
        open_test_database(path / "till.p2p") as till,
        open_network([shop.default_collection], **settings) as network,
    ):
        yield shop, till, network


def configuration(
    till: trio_p2p.Database, network: MemoryNetwork, **settings: Any
) -> trio_p2p.ReplicatorConfiguration:
    defaults: dict[str, Any] = {
        "target": network.connect,
        "collections": [till.default_collection],
        "continuous": True,
    }
    return trio_p2p.ReplicatorConfiguration(**(defaults | settings))


async def test_own_transports_replicate(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_peers(tmp_path) as (shop, till, network):
        await shop.default_collection.put("apple", {"price": 120})
        result = await trio_p2p.replicate(configuration(till, network, continuous=False))
        assert result.documents_pulled == 1
        assert till.default_collection.get("apple") is not None


async def test_the_pauses_between_attempts_double_up_to_the_longest(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        network.failure = trio_p2p.PeerUnreachableError("nobody is there")
        config = configuration(till, network, max_attempts=6, max_attempt_wait=10)
        replicator = trio_p2p.Replicator(config)
        await replicator.run()
        assert replicator.status.activity is ActivityLevel.STOPPED
        assert replicator.status.error is not None
        times = network.attempted_at
        pauses = [later - earlier for earlier, later in pairwise(times)]
        for pause, longest in zip(pauses, [2, 4, 8, 10, 10], strict=True):
            assert longest / 2 <= pause <= longest


@pytest.mark.parametrize(("continuous", "attempts"), [(False, 10), (True, 10)])
async def test_a_one_shot_gives_up_after_ten_attempts_a_continuous_one_does_not(
    tmp_path: Path, autojump_clock: Any, continuous: bool, attempts: int
) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        network.failure = trio_p2p.PeerUnreachableError("nobody is there")
        config = configuration(till, network, continuous=continuous)
        async with trio_p2p.open_replicator(config) as replicator:
            with trio.move_on_after(10_000):
                await replicator.wait_for(ActivityLevel.STOPPED)
            if continuous:
                assert replicator.status.activity is ActivityLevel.OFFLINE
                assert len(network.attempted_at) > attempts
            else:
                assert len(network.attempted_at) == attempts


@pytest.mark.behaviour("R19b")
async def test_a_permanent_error_stops_at_once(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        network.failure = trio_p2p.AuthError("the peer refused", status=401)
        async with trio_p2p.open_replicator(configuration(till, network)) as replicator:
            with pytest.raises(trio_p2p.ReplicationError) as caught:
                await replicator.wait_for(ActivityLevel.IDLE)
        assert caught.value.status == 401
        assert len(network.attempted_at) == 1


@pytest.mark.behaviour("R9a")
async def test_a_cut_connection_is_made_again_and_nothing_is_lost(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_peers(tmp_path) as (shop, till, network):
        async with trio_p2p.open_replicator(configuration(till, network)) as replicator:
            for round_number in range(3):
                await replicator.wait_for(ActivityLevel.IDLE)
                await network.cut()
                await replicator.wait_for(ActivityLevel.OFFLINE)
                await till.default_collection.put(f"pear-{round_number}", {})
                await shop.default_collection.put(f"apple-{round_number}", {})
            await replicator.wait_for(ActivityLevel.IDLE)
            assert till.default_collection.count == shop.default_collection.count == 6
            assert replicator.statistics().connections == 4
            assert replicator.status.error is None


@pytest.mark.parametrize("direction", ["push", "pull"])
async def test_a_cut_fails_no_document_and_is_forgotten_by_progress(
    tmp_path: Path, autojump_clock: Any, direction: str
) -> None:
    """What was on its way goes with the next session: the status tells of the cut, no document."""
    async with open_peers(tmp_path) as (shop, till, network):
        giver, taker = (till, shop) if direction == "push" else (shop, till)
        async with giver.default_collection.batch() as batch:
            for number in range(1_000):
                batch.put(f"apple-{number}", {"text": "x" * 1_000})

        async def cut_midway() -> None:
            async for _ in taker.default_collection.changes():
                await network.cut()
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_midway)
            await trio.testing.wait_all_tasks_blocked()
            replicator = trio_p2p.Replicator(configuration(till, network, continuous=False))
            await replicator.run()
        result = replicator.result()
        assert taker.default_collection.count == 1_000
        assert result.statistics.connections == 2
        assert (result.documents_failed, result.errors) == (0, ())
        assert network.listener.statistics().documents_failed == 0
        progress = replicator.status.progress
        assert progress.completed == progress.total


async def test_the_first_pause_is_short_again_after_a_session_that_worked(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        network.failure = trio_p2p.PeerUnreachableError("nobody is there")
        async with trio_p2p.open_replicator(configuration(till, network)) as replicator:
            with trio.move_on_after(1_000):
                await replicator.wait_for(ActivityLevel.STOPPED)
            network.failure = None
            await till.default_collection.put("pear", {})
            await replicator.wait_for(ActivityLevel.IDLE)
            await network.cut()
            await replicator.wait_for(ActivityLevel.OFFLINE)
            cut_at = trio.current_time()
            await replicator.wait_for(ActivityLevel.IDLE)
            assert trio.current_time() - cut_at <= 2


@pytest.mark.behaviour("R8")
async def test_stopping_is_prompt_whatever_it_is_doing(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_peers(tmp_path) as (_, till, network):

        async def never() -> trio.abc.Stream:
            return await trio.sleep_forever()

        async def connecting(replicator: trio_p2p.Replicator) -> None:
            await trio.testing.wait_all_tasks_blocked()

        async def offline(replicator: trio_p2p.Replicator) -> None:
            await replicator.wait_for(ActivityLevel.OFFLINE)

        async def idle(replicator: trio_p2p.Replicator) -> None:
            await replicator.wait_for(ActivityLevel.IDLE)

        refused = trio_p2p.PeerUnreachableError("nobody is there")
        for target, failure, reach in [
            (never, None, connecting),
            (network.connect, refused, offline),
            (network.connect, None, idle),
        ]:
            network.failure = failure
            config = configuration(till, network, target=target)
            async with trio_p2p.open_replicator(config) as replicator:
                await reach(replicator)
                before = trio.current_time()
                await replicator.stop()
                assert trio.current_time() - before < 1
                assert replicator.status.activity is ActivityLevel.STOPPED


async def test_document_events_are_told_to_who_comes_late(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_peers(tmp_path) as (shop, till, network):
        await till.default_collection.put("pear", {})
        await shop.default_collection.put("apple", {})
        async with trio_p2p.open_replicator(configuration(till, network)) as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
            events = replicator.document_replications()
            told = {(await anext(events)).document_id for _ in range(2)}
            assert told == {"apple", "pear"}
        assert [event async for event in events] == []


async def test_what_is_pending_at_a_peer_without_a_name_is_known_without_a_connection(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        notes = till.default_collection
        await notes.put("sent", {})
        replicator = trio_p2p.Replicator(configuration(till, network))
        async with trio.open_nursery() as nursery:
            await nursery.start(replicator.run)
            await replicator.wait_for(ActivityLevel.IDLE)
            replicator.suspend()
            await replicator.wait_for(ActivityLevel.OFFLINE)
            await notes.put("new", {})
            assert replicator.pending_document_ids(notes) == {"new"}
            await replicator.stop()
        assert replicator.pending_document_ids(notes) == {"new"}
        assert not replicator.is_document_pending(notes, "sent")


def hide_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on listeners do not tell who they are."""
    monkeypatch.setattr(passive, "CollectionsReply", lambda held, _: CollectionsReply(held, None))


@pytest.mark.parametrize("graceful", [True, False])
async def test_what_is_pending_at_a_peer_that_nothing_names_is_known_after_the_connection(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, graceful: bool
) -> None:
    hide_names(monkeypatch)
    async with open_peers(tmp_path) as (_, till, network):
        notes = till.default_collection
        await notes.put("sent", {})
        replicator = trio_p2p.Replicator(configuration(till, network))
        assert replicator.pending_document_ids(notes) == {"sent"}
        async with trio.open_nursery() as nursery:
            await nursery.start(replicator.run)
            await replicator.wait_for(ActivityLevel.IDLE)
            if graceful:
                replicator.suspend()
            else:
                await network.cut()
            await replicator.wait_for(ActivityLevel.OFFLINE)
            await notes.put("new", {})
            assert replicator.pending_document_ids(notes) == {"new"}
            # Nobody knows yet who is there now.
            network.silent = True
            replicator.resume()
            await replicator.wait_for(ActivityLevel.CONNECTING)
            await trio.testing.wait_all_tasks_blocked()
            assert replicator.pending_document_ids(notes) == {"new"}
            await replicator.stop()
        assert replicator.pending_document_ids(notes) == {"new"}
        assert not replicator.is_document_pending(notes, "sent")
        # Another one has not met it.
        other = trio_p2p.Replicator(configuration(till, network))
        assert other.pending_document_ids(notes) == {"new", "sent"}


@pytest.mark.parametrize("is_first_nameless", [True, False])
async def test_what_one_peer_has_is_pending_at_the_next_one_that_nothing_names(
    tmp_path: Path,
    autojump_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
    is_first_nameless: bool,
) -> None:
    async with (
        open_peers(tmp_path) as (_, till, network),
        open_test_database(tmp_path / "stall.p2p") as stall,
        open_network([stall.default_collection], read_only=True) as to_stall,
    ):
        notes = till.default_collection
        await notes.put("sent", {})
        ways = [network]
        config = configuration(till, network, target=lambda: ways[-1].connect())
        if is_first_nameless:
            hide_names(monkeypatch)
        async with trio_p2p.open_replicator(config) as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
            assert replicator.pending_document_ids(notes) == frozenset()
            hide_names(monkeypatch)
            ways.append(to_stall)
            await network.cut()
            # It takes nothing.
            await replicator.wait_for(ActivityLevel.STOPPED)
            assert replicator.pending_document_ids(notes) == {"sent"}


async def test_what_is_no_activity_level_is_not_waited_for(tmp_path: Path) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        replicator = trio_p2p.Replicator(configuration(till, network))
        with pytest.raises(trio_p2p.ConfigurationError, match="'idle'"):
            await replicator.wait_for("idle")  # type: ignore[arg-type]


async def test_a_replicator_runs_once(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_peers(tmp_path) as (_, till, network):
        replicator = trio_p2p.Replicator(configuration(till, network, continuous=False))
        await replicator.run()
        with pytest.raises(trio_p2p.ConfigurationError):
            await replicator.run()


async def test_a_full_listener_turns_peers_away_for_now(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_peers(tmp_path, connections_max=1) as (_, till, network):
        async with trio_p2p.open_replicator(configuration(till, network)) as first:
            await first.wait_for(ActivityLevel.IDLE)
            async with trio_p2p.open_replicator(configuration(till, network)) as second:
                status = await second.wait_for(ActivityLevel.OFFLINE)
                assert isinstance(status.error, trio_p2p.ReplicationError)
                assert status.error.status == 503


async def test_an_authenticator_that_raises_lets_nobody_in(
    tmp_path: Path, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(user: str, password: str) -> bool:
        raise LookupError("no user database")

    authenticator = trio_p2p.ListenerPasswordAuthenticator(broken)
    async with open_peers(tmp_path, authenticator=authenticator) as (_, till, network):
        config = configuration(
            till, network, authenticator=trio_p2p.BasicAuthenticator("ann", "s3cret")
        )
        async with trio_p2p.open_replicator(config) as replicator:
            status = await replicator.wait_for(ActivityLevel.STOPPED)
        assert isinstance(status.error, trio_p2p.ReplicationError)
        assert status.error.status == 500
    assert "no user database" in caplog.text


async def test_a_continuous_replication_has_no_result(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        config = trio_p2p.ReplicatorConfiguration(
            target="wss://127.0.0.1/shop", collections=[till.default_collection], continuous=True
        )
        with pytest.raises(trio_p2p.ConfigurationError):
            await trio_p2p.replicate(config)
