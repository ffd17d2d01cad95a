"""TLS identities: a private key and the certificates that go with it."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError
from trio_p2p.security import trust
from trio_p2p.security.keystore import KeyStore, default_key_store

ANONYMOUS_NAME = "trio-p2p anonymous"

# A peer's clock may be behind ours; it would refuse a certificate from its future.
CLOCK_TOLERANCE = timedelta(days=1)

_SUBJECT_ATTRIBUTES = {
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "L": NameOID.LOCALITY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "C": NameOID.COUNTRY_NAME,
}


class Usage(enum.Enum):
    """What a certificate may be used for."""

    CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
    SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True, eq=False)
class TLSIdentity:
    """A private key and its certificate chain, leaf first; the key never shows in `repr`."""

    certificates: tuple[x509.Certificate, ...]
    private_key: Any = field(repr=False)

    @classmethod
    def create(
        cls,
        common_name: str,
        *,
        attributes: Mapping[str, str] | None = None,
        usages: Collection[Usage] = (Usage.CLIENT_AUTH, Usage.SERVER_AUTH),
        valid_for: timedelta = timedelta(days=365),
        label: str | None = None,
        key_store: KeyStore | None = None,
        now: datetime | None = None,
    ) -> Self:
        """Make a key (ECDSA P-256) and a certificate that it signs itself, valid from now.

        `attributes` are `O`, `OU`, `L`, `ST`, `C` of the subject, and `dNSName` and `iPAddress`
        for peers that compare host names. None is made up: peers trust such a certificate because
        they know it, and devices change their addresses. With a label the identity is kept in the
        key store. Raises: ConfigurationError, also if the label is taken.
        """
        if label is not None:
            key_store = key_store or default_key_store()
            if key_store.load(label) is not None:
                raise ConfigurationError("an identity of this label exists already", label=label)
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            builder = _certificate_builder(common_name, attributes or {}, usages)
        except ValueError as exc:
            raise ConfigurationError(f"not a certificate's attributes: {exc}") from exc
        start = now or datetime.now(UTC)
        certificate = (
            builder.public_key(key.public_key())
            .not_valid_before(start - CLOCK_TOLERANCE)
            .not_valid_after(start + valid_for)
            .sign(key, hashes.SHA256())
        )
        identity = cls((certificate,), key)
        if label is not None and key_store is not None:
            key_store.save(label, identity.to_pkcs12())
        return identity

    @classmethod
    def from_pem(cls, key: bytes, certificates: bytes, password: bytes | None = None) -> Self:
        """Read a key and a chain (leaf first) from PEM. Raises: ConfigurationError."""
        try:
            private_key = load_pem_private_key(key, password)
            chain = x509.load_pem_x509_certificates(certificates)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise ConfigurationError(f"not a key and certificates in PEM: {exc}") from exc
        return cls._checked(private_key, chain)

    @classmethod
    def from_pkcs12(cls, data: bytes, password: bytes | None = None) -> Self:
        """Read a key and a chain from PKCS#12. Raises: ConfigurationError."""
        try:
            key, leaf, others = pkcs12.load_key_and_certificates(data, password)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigurationError(f"not PKCS#12, or another password's: {exc}") from exc
        if leaf is None:
            raise ConfigurationError("there is no certificate in this PKCS#12 data")
        return cls._checked(key, [leaf, *others])

    @classmethod
    def _checked(cls, key: Any, chain: list[x509.Certificate]) -> Self:
        if key is None or key.public_key() != chain[0].public_key():
            raise ConfigurationError("the private key is not that of the first certificate")
        return cls(tuple(chain), key)

    @classmethod
    def load(cls, label: str, key_store: KeyStore | None = None) -> Self | None:
        """The identity kept under this label, or None. Raises: ConfigurationError if damaged."""
        data = (key_store or default_key_store()).load(label)
        return None if data is None else cls.from_pkcs12(data)

    @staticmethod
    def delete(label: str, key_store: KeyStore | None = None) -> bool:
        """Forget the identity kept under this label; tells whether there was one."""
        return (key_store or default_key_store()).delete(label)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the leaf, in hex with colons: what the other side can pin."""
        return trust.fingerprint(self.certificates[0]).hex(":").upper()

    @property
    def expiration(self) -> datetime:
        """When the leaf expires (UTC)."""
        return self.certificates[0].not_valid_after_utc

    @property
    def is_self_signed(self) -> bool:
        """Whether nobody else vouches for the leaf."""
        return trust.is_self_signed(self.certificates[0])

    def to_pkcs12(self, password: bytes | None = None) -> bytes:
        """Key and chain as PKCS#12, encrypted if there is a password."""
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        leaf, *others = self.certificates
        return pkcs12.serialize_key_and_certificates(
            None, self.private_key, leaf, others, encryption
        )


def anonymous_identity(label: str, key_store: KeyStore, now: datetime) -> TLSIdentity:
    """The identity kept under this label for those who have no other; made if there is none.

    It encrypts, and is recognised from one time to the next. It is replaced IDENTITY_RENEWAL_DAYS
    before it expires. Raises: ConfigurationError if what is kept is damaged.
    """
    kept = TLSIdentity.load(label, key_store)
    if kept is not None:
        if kept.expiration - now > timedelta(days=limits.IDENTITY_RENEWAL_DAYS):
            return kept
        key_store.delete(label)
    return TLSIdentity.create(ANONYMOUS_NAME, label=label, key_store=key_store, now=now)


def _certificate_builder(
    common_name: str, attributes: Mapping[str, str], usages: Collection[Usage]
) -> x509.CertificateBuilder:
    """A builder without key and dates. Raises: ValueError."""
    names: list[x509.GeneralName] = []
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    for name, value in attributes.items():
        if name == "dNSName":
            names.append(x509.DNSName(value))
        elif name == "iPAddress":
            names.append(x509.IPAddress(ipaddress.ip_address(value)))
        elif name in _SUBJECT_ATTRIBUTES:
            subject.append(x509.NameAttribute(_SUBJECT_ATTRIBUTES[name], value))
        else:
            raise ValueError(f"unknown attribute {name!r}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(subject))
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage.value for usage in usages]), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder
