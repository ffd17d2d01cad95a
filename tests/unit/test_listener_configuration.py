"""What a listener may be told to do."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trio_p2p
from trio_p2p.security.auth import Admitted, Client, Denied, ListenerAuthenticator
from trio_p2p.security.trust import ClientTrust
from trio_p2p.testing.databases import open_test_database


@pytest.mark.parametrize(
    "settings",
    [
        {"collections": []},
        {"collections": None},
        {"port": -1},
        {"port": 2**16},
        {"port": "80"},
        {"port": 80.5},
        {"network_interface": 5},
        {"tls_identity": "x"},
        {"authenticator": lambda user, password: True},
        {"connections_max": 0},
        {"connections_max": 1.5},
        {"connections_max": None},
        {"heartbeat": 0},
        {"heartbeat": "3"},
        {"heartbeat": math.nan},
        {"key_store": "x"},
    ],
)
async def test_a_wrong_setting_is_refused_when_made(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with open_test_database(tmp_path / "shop.p2p") as shop:
        defaults: dict[str, Any] = {"collections": [shop.default_collection]}
        trio_p2p.URLEndpointListenerConfiguration(**defaults)
        with pytest.raises(trio_p2p.ConfigurationError):
            trio_p2p.URLEndpointListenerConfiguration(**(defaults | settings))


async def test_collections_of_another_type_are_refused_when_made(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "shop.p2p") as shop:
        wrong: list[Any] = [shop.default_collection, [shop], ["_default"]]
        for collections in wrong:
            with pytest.raises(trio_p2p.ConfigurationError):
                trio_p2p.URLEndpointListenerConfiguration(collections=collections)


async def test_what_only_tls_has_a_use_for_is_refused_without_it(tmp_path: Path) -> None:
    identity = trio_p2p.TLSIdentity.create("shop")
    certificates = trio_p2p.ListenerCertificateAuthenticator(callback=lambda chain: True)
    async with open_test_database(tmp_path / "shop.p2p") as shop:
        defaults: dict[str, Any] = {"collections": [shop.default_collection]}
        wrong: list[Any] = [{"tls_identity": identity}, {"authenticator": certificates}]
        for settings in wrong:
            trio_p2p.URLEndpointListenerConfiguration(**(defaults | settings))
            with pytest.raises(trio_p2p.ConfigurationError):
                trio_p2p.URLEndpointListenerConfiguration(disable_tls=True, **(defaults | settings))


class Counting:
    """Counts whom another authenticator is asked about."""

    def __init__(self, asked: ListenerAuthenticator) -> None:
        self._asked = asked
        self.count = 0

    @property
    def clients(self) -> ClientTrust | None:
        return self._asked.clients

    def recognises(self, client: Client) -> bool:
        return self._asked.recognises(client)

    async def admit(self, client: Client) -> Admitted | Denied:
        self.count += 1
        return await self._asked.admit(client)


async def test_whatever_does_what_an_authenticator_does_is_one(tmp_path: Path) -> None:
    passwords = Counting(trio_p2p.ListenerPasswordAuthenticator(lambda user, password: True))
    certificates = Counting(trio_p2p.ListenerCertificateAuthenticator(callback=lambda chain: True))
    async with open_test_database(tmp_path / "shop.p2p") as shop:
        collections = [shop.default_collection]
        for authenticator, disable_tls in [(passwords, True), (certificates, False)]:
            trio_p2p.URLEndpointListenerConfiguration(
                collections=collections, authenticator=authenticator, disable_tls=disable_tls
            )
        with pytest.raises(trio_p2p.ConfigurationError, match="TLS"):
            trio_p2p.URLEndpointListenerConfiguration(
                collections=collections, authenticator=certificates, disable_tls=True
            )


async def test_whatever_is_given_for_a_setting_one_error_refuses_it(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "shop.p2p") as shop:
        defaults = {"collections": [shop.default_collection]}
        kind = trio_p2p.URLEndpointListenerConfiguration
        fields = [field.name for field in dataclasses.fields(kind)]
        values = st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()
        )

        @given(name=st.sampled_from(fields), value=values | st.lists(values, max_size=2))
        def check(name: str, value: Any) -> None:
            with contextlib.suppress(trio_p2p.ConfigurationError):
                kind(**(defaults | {name: value}))

        check()
