"""What sessions leave behind in memory: nothing but the events that the replicator's user may read.

How much memory two processes take in the long run is watched in `tests/simulation/test_soak.py`.
"""

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import trio.testing

import trio_p2p
from trio_p2p import ActivityLevel
from trio_p2p.replication.status import DocumentReplication
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.network import open_network

OURS = ("trio_p2p.", "trio.", "trio_websocket.", "wsproto.")
# Trio keeps the scopes of deadlines that did not pass, until it has a thousand of them.
KEPT_BY_TRIO = {"trio.CancelScope", "trio._core._run.CancelReason"}


def living() -> Counter[str]:
    """The objects of ours and of what we stand on that are alive, by their types."""
    gc.collect()
    names = map(type_name, map(type, gc.get_objects()))
    return Counter(name for name in names if name.startswith(OURS) and name not in KEPT_BY_TRIO)


def type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


async def test_sessions_that_were_cut_leave_nothing_behind(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with (
        open_test_database(tmp_path / "shop.p2p") as shop,
        open_test_database(tmp_path / "till.p2p") as till,
        open_network([shop.default_collection]) as network,
        trio_p2p.open_replicator(
            trio_p2p.ReplicatorConfiguration(
                target=network.connect, collections=[till.default_collection], continuous=True
            )
        ) as replicator,
    ):

        async def go_through(sessions: int) -> None:
            for number in range(sessions):
                await till.default_collection.put("pear", {"n": number})
                await shop.default_collection.put("apple", {"n": number})
                await replicator.wait_for(ActivityLevel.IDLE)
                await network.cut()
                await replicator.wait_for(ActivityLevel.OFFLINE)
            await trio.testing.wait_all_tasks_blocked()  # The listener's side has ended, too.

        await go_through(5)
        before = living()
        await go_through(30)
        assert living() - before == {type_name(DocumentReplication): 60}
