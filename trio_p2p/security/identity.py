"""TLS identities: a private key and the certificates that go with it."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from trio_p2p.errors import ConfigurationError
from trio_p2p.security import trust
from trio_p2p.security.keystore import KeyStore, default_key_store

# A peer's clock may be behind ours; it would refuse a certificate from its future.
CLOCK_TOLERANCE = timedelta(days=1)
RSA_EXPONENT = 65_537

# Couchbase Lite's names of a subject's attributes.
_SUBJECT_ATTRIBUTES = {
    "pseudonym": NameOID.PSEUDONYM,
    "GN": NameOID.GIVEN_NAME,
    "SN": NameOID.SURNAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "postalAddress": NameOID.POSTAL_ADDRESS,
    "L": NameOID.LOCALITY_NAME,
    "postalCode": NameOID.POSTAL_CODE,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "C": NameOID.COUNTRY_NAME,
}


class Usage(enum.Enum):
    """What a certificate may be used for."""

    CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
    """To prove to listeners who connects."""
    SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
    """To prove to replicators who listens."""


CLIENT_AUTH = Usage.CLIENT_AUTH
SERVER_AUTH = Usage.SERVER_AUTH


class KeyType(enum.Enum):
    """What kind of key to make. ECDSA is fast; RSA is for peers that know nothing newer."""

    ECDSA_P256 = "ECDSA P-256"
    RSA_2048 = "RSA 2048"
    RSA_3072 = "RSA 3072"


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
        usages: Collection[Usage] = (CLIENT_AUTH, SERVER_AUTH),
        valid_for: timedelta = timedelta(days=365),
        key_type: KeyType = KeyType.ECDSA_P256,
        label: str | None = None,
        key_store: KeyStore | None = None,
        now: datetime | None = None,
    ) -> Self:
        """Make a key and a certificate that it signs itself, valid from now.

        `attributes` are `pseudonym`, `GN`, `SN`, `O`, `OU`, `postalAddress`, `L`, `postalCode`,
        `ST` and `C` of the subject, and the alternative names `dNSName`, `iPAddress` (of both
        several, separated by commas), `rfc822Name` and `URI`. Peers that compare host names want
        `dNSName` or `iPAddress`. None is made up: peers trust such a certificate because they know
        it, and devices change their addresses. With a label the identity is kept in the key store
        (None: the default one). `valid_for` counts from `now` (aware; None: this moment).

        Making an RSA key and using a key store may take some time: in a running program, call this
        in a thread.

        Raises: ConfigurationError, also if the label is taken; KeyStoreError.
        """
        if label is not None:
            key_store = key_store or default_key_store()
            if key_store.load(label) is not None:
                raise _label_is_taken(label)
        key = _make_key(key_type)
        start = now or datetime.now(UTC)
        try:
            if valid_for <= timedelta(0):
                raise ValueError("valid_for is longer than nothing")
            certificate = (
                _certificate_builder(common_name, attributes or {}, usages)
                .public_key(key.public_key())
                .not_valid_before(start - CLOCK_TOLERANCE)
                .not_valid_after(start + valid_for)
                .sign(key, hashes.SHA256())
            )
        except (ValueError, OverflowError) as exc:
            raise ConfigurationError(f"not what a certificate can tell: {exc}") from exc
        identity = cls((certificate,), key)
        if label is None or key_store is None:
            return identity
        if not key_store.add(label, identity.to_pkcs12()):
            raise _label_is_taken(label)
        return identity

    @classmethod
    def from_pem(cls, key: bytes, certificates: bytes, password: bytes | None = None) -> Self:
        """Read a key and its chain, in any order, from PEM; `password` is that of the key.

        Raises: ConfigurationError, also for what TLS will not have.
        """
        try:
            private_key = load_pem_private_key(key, password)
            chain = x509.load_pem_x509_certificates(certificates)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise ConfigurationError(f"not a key and certificates in PEM: {exc}") from exc
        return cls._checked(private_key, chain)

    @classmethod
    def from_pkcs12(cls, data: bytes, password: bytes | None = None) -> Self:
        """Read a key and its chain from PKCS#12.

        Raises: ConfigurationError, also for what TLS will not have.
        """
        try:
            key, leaf, others = pkcs12.load_key_and_certificates(data, password)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigurationError(f"not PKCS#12, or another password's: {exc}") from exc
        return cls._checked(key, [*([leaf] if leaf else []), *others])

    @classmethod
    def _checked(cls, key: Any, certificates: Sequence[x509.Certificate]) -> Self:
        """The identity of a key and certificates in any order. Raises: ConfigurationError."""
        if key is None:
            raise ConfigurationError("there is no private key")
        leaves = [each for each in certificates if each.public_key() == key.public_key()]
        if not leaves:
            raise ConfigurationError("none of the certificates is the private key's")
        identity = cls(_ordered(leaves[0], certificates), key)
        identity.install(SSL.Context(SSL.TLS_METHOD))
        return identity

    @classmethod
    def load(cls, label: str, key_store: KeyStore | None = None) -> Self | None:
        """The identity kept under this label, or None. May take some time, as `create`.

        Raises: ConfigurationError if it is damaged; KeyStoreError.
        """
        data = (key_store or default_key_store()).load(label)
        return None if data is None else cls.from_pkcs12(data)

    @staticmethod
    def delete(label: str, key_store: KeyStore | None = None) -> bool:
        """Forget the identity kept under this label; tells whether there was one.

        May take some time, as `create`. Raises: KeyStoreError.
        """
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

    def install(self, context: SSL.Context) -> None:
        """Make this the identity of a TLS context. Raises: ConfigurationError if OpenSSL will not.

        It refuses what would protect nobody: an RSA key of 1,024 bits, a signature with SHA-1.
        """
        leaf, *others = self.certificates
        try:
            context.use_certificate(leaf)
            for certificate in others:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(self.private_key)
        except (SSL.Error, TypeError) as exc:
            raise ConfigurationError(f"not an identity for TLS: {exc}") from exc


def _label_is_taken(label: str) -> ConfigurationError:
    return ConfigurationError("an identity of this label exists already", label=label)


def _ordered(
    leaf: x509.Certificate, certificates: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """The leaf, then who signed it, and so on; then the others, in the order they had."""
    others = [each for each in certificates if each != leaf]
    chain = [leaf]
    while issuer := next((each for each in others if _signed(each, chain[-1])), None):
        others.remove(issuer)
        chain.append(issuer)
    return (*chain, *others)


def _signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *trust.UNREADABLE):
        return False
    return True


def _make_key(key_type: KeyType) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if key_type is KeyType.ECDSA_P256:
        return ec.generate_private_key(ec.SECP256R1())
    bits = 2048 if key_type is KeyType.RSA_2048 else 3072
    return rsa.generate_private_key(RSA_EXPONENT, bits)


def _certificate_builder(
    common_name: str, attributes: Mapping[str, str], usages: Collection[Usage]
) -> x509.CertificateBuilder:
    """A builder without key and dates. Raises: ValueError."""
    names: list[x509.GeneralName] = []
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    for name, value in attributes.items():
        if name in _SUBJECT_ATTRIBUTES:
            subject.append(x509.NameAttribute(_SUBJECT_ATTRIBUTES[name], value))
        elif name in ("dNSName", "iPAddress"):
            names += [_general_name(name, part.strip()) for part in value.split(",")]
        else:
            names.append(_general_name(name, value))
    if not usages:
        raise ValueError("a certificate is for one usage or more")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(subject))
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([each.value for each in Usage if each in usages]), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder


def _general_name(kind: str, value: str) -> x509.GeneralName:
    match kind:
        case "dNSName":
            return x509.DNSName(value)
        case "iPAddress":
            return x509.IPAddress(ipaddress.ip_address(value))
        case "rfc822Name":
            return x509.RFC822Name(value)
        case "URI":
            return x509.UniformResourceIdentifier(value)
        case _:
            raise ValueError(f"unknown attribute {kind!r}")
