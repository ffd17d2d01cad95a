"""An embedded document database with peer-to-peer sync, built on Trio.

The names below are the stable surface. Beneath them, each layer imports only what stands lower:

    cli, testing             the command line; public fakes and harnesses
    replicator, listener     the active and the passive peer, over the network
    replication              sessions, pushers, pullers, checkpoints, profiles
    peer, security           BLIP over a transport; TLS, identities, trust, authentication
    blip, transport, store   frames and messages; moving them; the LMDB store
    model                    pure values: clock, versions, documents, conflicts
    ids, settings            identifiers and settings, checked once
    errors, limits           what can go wrong, and how much of anything there may be
    retry                    after which errors trying again may help
"""

from trio_p2p.errors import (
    AddressesExhaustedError,
    AuthError,
    BlobNotFoundError,
    CallbackError,
    ClockSkewError,
    CollectionNotFoundError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    ConnectionLostError,
    DatabaseBusyError,
    DatabaseExistsError,
    DatabaseNotFoundError,
    DocumentNotFoundError,
    DuplicateDatabaseError,
    HandshakeError,
    InvalidDocumentError,
    KeyStoreError,
    ListenError,
    NetworkUnavailableError,
    PeerError,
    PeerUnreachableError,
    ProtocolError,
    ReplicationError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFailedError,
    StoreFormatError,
    StoreFullError,
    TrioP2PError,
    TrustError,
)
from trio_p2p.listener import (
    ListenerConnection,
    ListenerStatus,
    URLEndpointListener,
    open_listener,
)
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.model.conflict import Conflict, ConflictResolver, default_conflict_resolver
from trio_p2p.model.document import Document
from trio_p2p.model.resolvers import local_wins, merge_fields, remote_wins
from trio_p2p.model.version import Order, Version, VersionVector
from trio_p2p.replication.filters import ReplicationFilter
from trio_p2p.replication.status import (
    ActivityLevel,
    Direction,
    DocumentFlags,
    DocumentReplication,
    Progress,
    ReplicatorResult,
    ReplicatorStatistics,
    ReplicatorStatus,
)
from trio_p2p.replicator import Replicator, open_replicator, replicate
from trio_p2p.replicator_configuration import (
    CollectionConfiguration,
    ReplicatorConfiguration,
    ReplicatorType,
)
from trio_p2p.security.auth import (
    BasicAuthenticator,
    ClientCertificateAuthenticator,
    ListenerCertificateAuthenticator,
    ListenerPasswordAuthenticator,
)
from trio_p2p.security.identity import CLIENT_AUTH, SERVER_AUTH, KeyType, TLSIdentity, Usage
from trio_p2p.security.keyring_store import KeyringKeyStore
from trio_p2p.security.keystore import FileKeyStore, KeyStore, MemoryKeyStore
from trio_p2p.security.passwords import same_secret
from trio_p2p.store.database import (
    Batch,
    Blob,
    Change,
    Collection,
    CompactResult,
    Database,
    DatabaseStatistics,
    open_database,
)
from trio_p2p.store.documents import ANY
from trio_p2p.transport.base import MessageTransport

__version__ = "0.1.0"

__all__ = [
    # The database
    "open_database",
    "Database",
    "DatabaseStatistics",
    "CompactResult",
    "Collection",
    "Batch",
    "Change",
    "Blob",
    "Document",
    "Version",
    "VersionVector",
    "Order",
    "ANY",
    # The active peer
    "replicate",
    "open_replicator",
    "Replicator",
    "ReplicatorConfiguration",
    "CollectionConfiguration",
    "ReplicationFilter",
    "ReplicatorType",
    "ReplicatorStatus",
    "ReplicatorResult",
    "ReplicatorStatistics",
    "ActivityLevel",
    "Progress",
    "DocumentReplication",
    "DocumentFlags",
    "Direction",
    "BasicAuthenticator",
    "ClientCertificateAuthenticator",
    # The passive peer
    "open_listener",
    "URLEndpointListener",
    "URLEndpointListenerConfiguration",
    "ListenerStatus",
    "ListenerConnection",
    "ListenerPasswordAuthenticator",
    "ListenerCertificateAuthenticator",
    "same_secret",
    "MessageTransport",
    # Identities
    "TLSIdentity",
    "KeyType",
    "Usage",
    "CLIENT_AUTH",
    "SERVER_AUTH",
    "KeyStore",
    "FileKeyStore",
    "KeyringKeyStore",
    "MemoryKeyStore",
    # Conflicts
    "Conflict",
    "ConflictResolver",
    "default_conflict_resolver",
    "local_wins",
    "remote_wins",
    "merge_fields",
    # Errors
    "TrioP2PError",
    "ConfigurationError",
    "KeyStoreError",
    "StoreError",
    "DatabaseNotFoundError",
    "DatabaseBusyError",
    "DatabaseExistsError",
    "DuplicateDatabaseError",
    "AddressesExhaustedError",
    "StoreClosedError",
    "StoreFailedError",
    "StoreFullError",
    "StoreCorruptError",
    "StoreFormatError",
    "CollectionNotFoundError",
    "DocumentNotFoundError",
    "BlobNotFoundError",
    "ConflictError",
    "InvalidDocumentError",
    "ClockSkewError",
    "ProtocolError",
    "PeerError",
    "ConnectError",
    "PeerUnreachableError",
    "NetworkUnavailableError",
    "HandshakeError",
    "AuthError",
    "TrustError",
    "ListenError",
    "ConnectionLostError",
    "ReplicationError",
    "CallbackError",
]
