"""Whether to trust the certificates a peer presents: a pure verdict on a chain."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from trio_p2p.errors import ConfigurationError, TrustError

# A certificate that a peer must present: PEM, DER, an object, or its SHA-256 in hex.
Pinned = str | bytes | x509.Certificate

# What reading a certificate that somebody made to hurt us may raise.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe: without anything set, the system's root certificates.

    `pinned` is the SHA-256 of a certificate that the peer's chain must hold; nothing else counts
    then. `only_self_signed`: any certificate that signed itself and has not expired.
    """

    pinned: bytes | None = None
    only_self_signed: bool = False


def fingerprint(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of a certificate in DER: what pinning compares."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def parse_pinned(value: Pinned) -> bytes:
    """The fingerprint meant by a certificate (PEM, DER, object) or by a fingerprint in hex.

    Colons, spaces and case of the hex form do not matter. Raises: ConfigurationError.
    """
    if isinstance(value, x509.Certificate):
        return fingerprint(value)
    if isinstance(value, str):
        digits = re.sub(r"[:\s]", "", value)
        if _FINGERPRINT.fullmatch(digits):
            return bytes.fromhex(digits)
    data = value.encode() if isinstance(value, str) else value
    try:
        if b"-----BEGIN" in data:
            return fingerprint(x509.load_pem_x509_certificate(data))
        return fingerprint(x509.load_der_x509_certificate(data))
    except UNREADABLE as exc:
        raise ConfigurationError(
            "a pinned certificate is PEM, DER or a SHA-256 fingerprint in hex"
        ) from exc


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate's own key made its signature."""
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def judge(
    trust: Trust,
    chain: Sequence[x509.Certificate],
    *,
    now: datetime,
    openssl_verified: bool,
    host: str,
) -> None:
    """Accept the chain a peer presents (leaf first), or raise TrustError, which carries it.

    `now` is aware. `openssl_verified` tells whether OpenSSL found a valid path to a system root.
    The self-signed rule is Couchbase Lite's: one signed by an authority is refused.
    """
    try:
        complaint = _complaint(trust, chain, now, openssl_verified, host)
    except UNREADABLE as exc:
        complaint = f"the peer's certificate cannot be read ({exc})"
    if complaint is not None:
        raise TrustError(complaint, certificates=tuple(chain), host=host)


def _complaint(
    trust: Trust,
    chain: Sequence[x509.Certificate],
    now: datetime,
    openssl_verified: bool,
    host: str,
) -> str | None:
    if not chain:
        return "the peer presented no certificate"
    if trust.pinned is not None:
        if any(hmac.compare_digest(fingerprint(each), trust.pinned) for each in chain):
            return None
        return "the peer's certificate is not the pinned one"
    leaf = chain[0]
    if trust.only_self_signed:
        if not is_self_signed(leaf):
            return "only self-signed certificates are accepted, and an authority signed the peer's"
        if leaf.not_valid_after_utc < now:
            return "the peer's self-signed certificate has expired"
        return None
    if not openssl_verified:
        return "no certificate authority known here vouches for the peer's certificate"
    if not names_host(leaf, host):
        return "the peer's certificate is for another host"
    return None


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate is for this host name or IP address.

    Only the subject alternative names count; a wildcard stands for one whole leftmost label.
    Source: RFC 9525, section 6.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    address = parse_address(host)
    if address is not None:
        return address in names.get_values_for_type(x509.IPAddress)
    wanted = host.encode("idna").decode("ascii").lower().rstrip(".")
    parent = "*." + wanted.partition(".")[2]
    patterns = [name.lower().rstrip(".") for name in names.get_values_for_type(x509.DNSName)]
    return wanted in patterns or parent in patterns


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is, without brackets and zone, or None if it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
