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
        {"headers": {"Host": "elsewhere"}},
        {"headers": {"X-Till": "7\r\nHost: elsewhere"}},
        {"heartbeat": float("nan")},
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


@pytest.mark.parametrize(
    "settings",
    [
        {"document_ids": "a"},
        {"channels": "a"},
        {"channels": [""]},
        {"channels": ["a,b"]},
        {"channels": ["a\n"]},
    ],
)
def test_a_wrong_setting_of_a_collection_is_refused_when_made(settings: dict[str, Any]) -> None:
    with pytest.raises(trio_p2p.ConfigurationError):
        trio_p2p.CollectionConfiguration(**settings)


async def test_a_name_that_no_document_can_have_is_refused_when_made(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        plan = trio_p2p.CollectionConfiguration(document_ids=["_a"])
        with pytest.raises(trio_p2p.InvalidDocumentError):
            trio_p2p.ReplicatorConfiguration(
                target="wss://127.0.0.1/shop", collections={till.default_collection: plan}
            )
