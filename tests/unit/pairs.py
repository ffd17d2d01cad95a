"""Two databases, and a network in memory between a replicator and a listener of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio_p2p
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.network import MemoryNetwork, open_network


@dataclass
class Pair:
    """Two databases, and a network from the till to the shop's listener."""

    shop: trio_p2p.Database
    till: trio_p2p.Database
    network: MemoryNetwork

    def configuration(self, **settings: Any) -> trio_p2p.ReplicatorConfiguration:
        defaults: dict[str, Any] = {
            "target": self.network.connect,
            "target_id": "the shop",
            "collections": [self.till.default_collection],
            "continuous": True,
        }
        return trio_p2p.ReplicatorConfiguration(**(defaults | settings))


@asynccontextmanager
async def open_pair(path: Path, **settings: Any) -> AsyncIterator[Pair]:
    """`settings` are those of the listener."""
    async with (
        open_test_database(path / "shop.p2p") as shop,
        open_test_database(path / "till.p2p") as till,
        open_network([shop.default_collection], **settings) as network,
    ):
        yield Pair(shop, till, network)
