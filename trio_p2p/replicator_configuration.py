"""What a replicator is told to do: checked when it is written down, and never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cryptography import x509

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError
from trio_p2p.ids import document_id
from trio_p2p.model.conflict import ConflictResolver, default_conflict_resolver
from trio_p2p.replication.connector import Dial, Endpoint, check_headers
from trio_p2p.replication.filters import ReplicationFilter
from trio_p2p.replication.session import CollectionPlan
from trio_p2p.security.auth import BasicAuthenticator, ClientCertificateAuthenticator
from trio_p2p.security.trust import Roots, Trust, parse_pinned, parse_roots
from trio_p2p.settings import check_types
from trio_p2p.store.database import Collection, Database


class ReplicatorType(Enum):
    """Which way documents go: from here to the peer (push), from there to here (pull), or both."""

    PUSH_AND_PULL = "push and pull"
    PUSH = "push"
    PULL = "pull"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfiguration:
    """How one collection is replicated.

    `document_ids` restricts it to these documents, 100,000 at most unless it only pushes. A filter
    gets a document and its flags, and tells whether it goes over; it may be async. What
    `push_filter` holds back is not sent and not pending; what `pull_filter` rejects is reported
    with 403 and not asked for again. One that raises, or takes longer than a minute, fails that
    document for now. `conflict_resolver` decides conflicts, None for `default_conflict_resolver`.
    `channels` are Sync Gateway's.
    """

    push_filter: ReplicationFilter | None = None
    pull_filter: ReplicationFilter | None = None
    document_ids: Sequence[str] | None = None
    conflict_resolver: ConflictResolver | None = None
    channels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_types(self, CollectionConfiguration)
        for channel in self.channels or ():
            # They go over in one text, separated by commas.
            if not channel or "," in channel or not channel.isprintable():
                raise ConfigurationError("not the name of a channel", channel=channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatorConfiguration:
    """What to replicate with whom, and how. A wrong type or combination raises ConfigurationError.

    `target` is `ws://host:port/database` or `wss://…`, or an async function that returns a
    connected stream (spoken to by WebSocket) or message transport; then `target_id` may name the
    peer where it does not name itself. `collections` are of one database; in a mapping each has its
    configuration. `replicator_type` is the direction. One that is `continuous` stays connected, and
    connects again, until it is stopped; any other ends once each side has what the other had.

    Whom to trust: with `pinned_server_certificate` (PEM, DER, an object, or a SHA-256 in hex) only
    a server that shows this certificate as its own, or one that it signed, whatever else is set; or
    any certificate that signed itself, with `accept_only_self_signed_server_certificate`; or those
    that lead to `trusted_root_certificates` (PEM, DER or objects) and name the host, or to the
    system's. All these are for `wss://` only. `authenticator` is what to show to the server once it
    is trusted, `headers` go with it.

    `network_interface`, a name or an address, is where connections to a URL come from. `heartbeat`
    is the silence in seconds before a ping, `max_attempts` counts connection attempts in a row
    (None: 10 one-shot, unlimited continuous), `max_attempt_wait` is the longest pause between them
    in seconds. `enable_delta_sync` sends and takes only what changed in documents, where both
    databases permit it and the other side enables it too. `compression` deflates what is sent.
    """

    target: str | Dial
    collections: Sequence[Collection] | Mapping[Collection, CollectionConfiguration]
    target_id: str | None = None
    replicator_type: ReplicatorType = ReplicatorType.PUSH_AND_PULL
    continuous: bool = False
    authenticator: BasicAuthenticator | ClientCertificateAuthenticator | None = None
    pinned_server_certificate: str | bytes | x509.Certificate | None = None
    accept_only_self_signed_server_certificate: bool = False
    trusted_root_certificates: Roots | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    network_interface: str | None = None
    heartbeat: float = limits.HEARTBEAT_S
    max_attempts: int | None = None
    max_attempt_wait: float = limits.ATTEMPT_WAIT_S_MAX
    enable_delta_sync: bool = False
    compression: bool = True

    def __post_init__(self) -> None:
        check_types(self, ReplicatorConfiguration)
        if isinstance(self.target, str):
            Endpoint.parse(self.target)
        try:
            (self.target_id or "").encode()
        except UnicodeEncodeError as exc:
            raise ConfigurationError("target_id must be valid Unicode") from exc
        if not self.collections:
            raise ConfigurationError("a replicator needs one collection or more")
        if len({collection.database for collection in self.collections}) > 1:
            raise ConfigurationError("all collections must be of one database")
        if len(set(self.collections)) < len(self.collections):
            raise ConfigurationError("a collection is named twice")
        if not (self.heartbeat > 0 and self.max_attempt_wait > 0):
            raise ConfigurationError("heartbeat and max_attempt_wait are greater than 0")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ConfigurationError("max_attempts is 1 or more, or None")
        self._check_security()
        pulls = self.replicator_type is not ReplicatorType.PUSH
        for plan in self.plans():
            count = len(plan.document_ids or ())
            if pulls and count > limits.SUBSCRIBED_DOCUMENTS_MAX:
                raise ConfigurationError("too many document_ids to pull", count=count)

    def _check_security(self) -> None:
        if self.accept_only_self_signed_server_certificate and self.trusted_root_certificates:
            raise ConfigurationError("trust either roots or self-signed certificates, not both")
        trust = self.trust()
        if not (isinstance(self.target, str) and Endpoint.parse(self.target).secure):
            # TLS that a function of the user's adds to its stream is not ours to check.
            if trust != Trust():
                raise ConfigurationError("only TLS shows a certificate to trust: use a wss:// URL")
            if isinstance(self.authenticator, ClientCertificateAuthenticator):
                raise ConfigurationError("client certificates need TLS: use a wss:// URL")
        if self.network_interface is not None and not isinstance(self.target, str):
            raise ConfigurationError("network_interface is for URLs: a function chooses its own")
        check_headers(
            self.headers, authenticated=isinstance(self.authenticator, BasicAuthenticator)
        )

    @property
    def database(self) -> Database:
        """The database that all collections are of."""
        return next(iter(self.collections)).database

    @property
    def peer_name(self) -> str | None:
        """What names the peer while its UUID is not known, if anything does."""
        return self.target_id or (self.target if isinstance(self.target, str) else None)

    def trust(self) -> Trust:
        """Which certificates of the server to accept."""
        pinned, roots = self.pinned_server_certificate, self.trusted_root_certificates
        return Trust(
            pinned=None if pinned is None else parse_pinned(pinned),
            only_self_signed=self.accept_only_self_signed_server_certificate,
            roots=None if roots is None else parse_roots(roots),
        )

    def plans(self) -> tuple[CollectionPlan, ...]:
        """What to do with each collection. Raises InvalidDocumentError for a bad document ID."""
        if isinstance(self.collections, Mapping):
            items = list(self.collections.items())
        else:
            items = [(collection, CollectionConfiguration()) for collection in self.collections]
        return tuple(
            CollectionPlan(
                collection,
                settings.conflict_resolver or default_conflict_resolver,
                None
                if settings.document_ids is None
                else tuple(map(document_id, settings.document_ids)),
                settings.push_filter,
                settings.pull_filter,
                None if settings.channels is None else tuple(settings.channels),
            )
            for collection, settings in items
        )
