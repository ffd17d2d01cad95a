"""What a listener is told to serve: checked when it is written down, and never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError
from trio_p2p.security.auth import ListenerAuthenticator
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.keystore import KeyStore
from trio_p2p.settings import check_types
from trio_p2p.store.database import Collection, Database


@dataclass(frozen=True, slots=True, kw_only=True)
class URLEndpointListenerConfiguration:
    """What to serve, and how. A wrong type or combination raises ConfigurationError.

    `collections` are of one database. `port` None or 0 lets the system choose; `network_interface`
    is a name or an address, None for all. `disable_tls` listens for `ws://`: everything can be read
    on the way. With TLS, `tls_identity` None means an anonymous self-signed identity, made once,
    kept in `key_store` (None: the system's secure storage, or files of this user) and renewed
    before it expires. `authenticator` None lets everyone in.

    `read_only`: peers that push are refused with 403, and stop; pulling works. `enable_delta_sync`
    sends and takes only what changed in documents, where both databases permit it and the other
    side enables it too. `connections_max` peers are served at once; who comes then is told to come
    back later. `heartbeat` is the silence in seconds before a ping.
    """

    collections: Sequence[Collection]
    port: int | None = None
    network_interface: str | None = None
    disable_tls: bool = False
    tls_identity: TLSIdentity | None = None
    authenticator: ListenerAuthenticator | None = None
    read_only: bool = False
    enable_delta_sync: bool = False
    connections_max: int = limits.LISTENER_CONNECTIONS_MAX
    heartbeat: float = limits.HEARTBEAT_S
    key_store: KeyStore | None = None

    def __post_init__(self) -> None:
        check_types(self, URLEndpointListenerConfiguration)
        if not self.collections:
            raise ConfigurationError("a listener serves one collection or more")
        if len({collection.database for collection in self.collections}) > 1:
            raise ConfigurationError("all collections must be of one database")
        if self.port is not None and not 0 <= self.port < 2**16:
            raise ConfigurationError("a port is a number from 0 to 65535", port=self.port)
        if not (self.heartbeat > 0 and self.connections_max > 0):
            raise ConfigurationError("heartbeat and connections_max are greater than 0")
        wants_certificates = (
            self.authenticator is not None and self.authenticator.clients is not None
        )
        if self.disable_tls and wants_certificates:
            raise ConfigurationError("client certificates need TLS")
        if self.disable_tls and self.tls_identity is not None:
            raise ConfigurationError("without TLS there is no use for an identity")

    @property
    def database(self) -> Database:
        """The database that all collections are of."""
        return self.collections[0].database
