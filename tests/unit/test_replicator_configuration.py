"""What a replicator may be told to do."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trio_p2p
from trio_p2p import limits
from trio_p2p.testing.databases import open_test_database


@pytest.mark.parametrize(
    "settings",
    [
        {"collections": []},
        {"target": "http://127.0.0.1/shop"},
        {"target": "wss://ann:s3cret@127.0.0.1/shop"},
        {"target_id": "the shop\udc00"},
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


@pytest.mark.parametrize(
    "settings",
    [
        {"target": None},
        {"target": 5},
        {"collections": None},
        {"replicator_type": "pull"},
        {"replicator_type": None},
        {"authenticator": ("ann", "s3cret")},
        {"pinned_server_certificate": 5},
        {"trusted_root_certificates": 5},
        {"headers": [("X-Till", "7")]},
        {"network_interface": 5},
        {"heartbeat": "3"},
        {"max_attempts": 1.5},
        {"max_attempts": float("nan")},
    ],
)
async def test_a_setting_of_another_type_is_refused_when_made(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        defaults = {"target": "wss://127.0.0.1/shop", "collections": [till.default_collection]}
        with pytest.raises(trio_p2p.ConfigurationError):
            trio_p2p.ReplicatorConfiguration(**(defaults | settings))


async def connect() -> trio.abc.Stream:
    raise AssertionError("nobody connects here")


@pytest.mark.parametrize("target", ["ws://127.0.0.1/shop", connect])
async def test_what_only_tls_can_do_is_refused_without_it(tmp_path: Path, target: Any) -> None:
    trusting: list[dict[str, Any]] = [
        {"pinned_server_certificate": "00" * 32},
        {"accept_only_self_signed_server_certificate": True},
        {"trusted_root_certificates": trio_p2p.TLSIdentity.create("shop").certificates},
        {"authenticator": trio_p2p.ClientCertificateAuthenticator()},
    ]
    async with open_test_database(tmp_path / "till.p2p") as till:
        defaults = {"target": "wss://127.0.0.1/shop", "collections": [till.default_collection]}
        for settings in trusting:
            trio_p2p.ReplicatorConfiguration(**(defaults | settings))
            with pytest.raises(trio_p2p.ConfigurationError, match="TLS"):
                trio_p2p.ReplicatorConfiguration(**(defaults | settings | {"target": target}))


async def test_a_network_interface_is_for_a_url(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        settings: dict[str, Any] = {
            "network_interface": "127.0.0.1",
            "collections": [till.default_collection],
        }
        for url in ("ws://127.0.0.1/shop", "wss://127.0.0.1/shop"):
            trio_p2p.ReplicatorConfiguration(target=url, **settings)
        with pytest.raises(trio_p2p.ConfigurationError):
            trio_p2p.ReplicatorConfiguration(target=connect, **settings)


async def test_a_password_is_shown_on_any_target(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        for target in ("ws://127.0.0.1/shop", "wss://127.0.0.1/shop", connect):
            trio_p2p.ReplicatorConfiguration(
                target=target,
                collections=[till.default_collection],
                authenticator=trio_p2p.BasicAuthenticator("ann", "s3cret"),
            )


async def test_collections_of_another_type_are_refused_when_made(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        collection = till.default_collection
        wrong: list[Any] = [collection, [till], {collection: None}, {collection: {}}]
        for collections in wrong:
            with pytest.raises(trio_p2p.ConfigurationError):
                trio_p2p.ReplicatorConfiguration(target="wss://a/b", collections=collections)


@pytest.mark.parametrize(
    "settings",
    [
        {"push_filter": 5},
        {"pull_filter": "a"},
        {"conflict_resolver": "remote_wins"},
        {"document_ids": 5},
        {"document_ids": [5]},
        {"channels": 5},
    ],
)
def test_a_setting_of_a_collection_of_another_type_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(trio_p2p.ConfigurationError):
        trio_p2p.CollectionConfiguration(**settings)


async def test_whatever_is_given_for_a_setting_one_error_refuses_it(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        defaults = {"target": "wss://127.0.0.1/shop", "collections": [till.default_collection]}
        fields = [field.name for field in dataclasses.fields(trio_p2p.ReplicatorConfiguration)]
        values = st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()
        )

        @given(name=st.sampled_from(fields), value=values | st.lists(values, max_size=2))
        def check(name: str, value: Any) -> None:
            with contextlib.suppress(trio_p2p.ConfigurationError):
                trio_p2p.ReplicatorConfiguration(**(defaults | {name: value}))

        check()


async def test_more_documents_than_a_peer_lets_one_ask_for_are_refused_unless_only_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SUBSCRIBED_DOCUMENTS_MAX", 2)
    async with open_test_database(tmp_path / "till.p2p") as till:
        for count, kind, is_taken in [
            (2, trio_p2p.ReplicatorType.PULL, True),
            (3, trio_p2p.ReplicatorType.PULL, False),
            (3, trio_p2p.ReplicatorType.PUSH_AND_PULL, False),
            (3, trio_p2p.ReplicatorType.PUSH, True),
        ]:
            chosen = trio_p2p.CollectionConfiguration(document_ids=["a", "b", "c"][:count])
            with (
                contextlib.nullcontext() if is_taken else pytest.raises(trio_p2p.ConfigurationError)
            ):
                trio_p2p.ReplicatorConfiguration(
                    target="wss://127.0.0.1/shop",
                    collections={till.default_collection: chosen},
                    replicator_type=kind,
                )


async def test_a_name_that_no_document_can_have_is_refused_when_made(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "till.p2p") as till:
        plan = trio_p2p.CollectionConfiguration(document_ids=["_a"])
        with pytest.raises(trio_p2p.InvalidDocumentError):
            trio_p2p.ReplicatorConfiguration(
                target="wss://127.0.0.1/shop", collections={till.default_collection: plan}
            )
