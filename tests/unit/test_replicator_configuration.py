"""What a replicator may be told to do."""

from pathlib import Path
from typing import Any

import pytest

import trio_p2p
from trio_p2p.testing.databases import open_test_database


@pytest.mark.parametrize(
    "settings",
    [
        {"collections": []},
        {"target": "http://127.0.0.1/shop"},
        {"target": "wss://ann:s3cret@127.0.0.1/shop"},
        {"heartbeat": 0},
        {"max_attempts": 0},
        {"max_attempt_wait": -1},
        {"pinned_server_certificate": "not a certificate"},
    ],
)
async def test_a_wrong_combination_is_refused_when_made(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        defaults: dict[str, Any] = {
            "target": "wss://127.0.0.1/shop",
            "collections": [till.default_collection],
        }
        trio_p2p.ReplicatorConfiguration(**defaults)
        with pytest.raises(trio_p2p.ConfigurationError):
            trio_p2p.ReplicatorConfiguration(**(defaults | settings))
