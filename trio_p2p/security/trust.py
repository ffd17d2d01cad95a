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
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from trio_p2p.errors import ConfigurationError, TrustError

# A certificate that a peer must present: PEM, DER, an object, or its SHA-256 in hex.
Pinned = str | bytes | x509.Certificate
# Certificates to trust: PEM (one or more in a row), DER, objects, or a sequence of these.
Roots = str | bytes | x509.Certificate | Sequence[str | bytes | x509.Certificate]

# What reading a certificate that somebody made to hurt us may raise.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH

VERIFIED = 0
"""OpenSSL's code for "nothing to complain about" (X509_V_OK)."""

# The codes of OpenSSL (x509_vfy.h) that tell more than that nobody vouches for a certificate.
_OPENSSL_COMPLAINTS = {
    9: "the peer's certificate is not valid yet",
    10: "the peer's certificate has expired",
    24: "the peer's certificate was signed by one that may not sign others",
    25: "the peer's certificate was signed by one that may not sign others so far down",
    26: "the peer's certificate is for another use",
    79: "the peer's certificate was signed by one that may not sign others",
}

_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe: without anything set, the system's root certificates.

    `pinned` is the SHA-256 of a certificate that the peer's chain must hold; nothing else counts
    then. `only_self_signed`: any certificate that signed itself and has not expired. `roots`: these
    certificates instead of the system's.
    """

    pinned: bytes | None = None
    only_self_signed: bool = False
    roots: tuple[x509.Certificate, ...] | None = None

    @property
    def asks_openssl(self) -> bool:
        """Whether OpenSSL's search for a path to a root certificate counts."""
        return self.pinned is None and not self.only_self_signed


@dataclass(frozen=True, slots=True)
class ClientTrust:
    """Which certificates a client may present: those that lead to one of `roots`.

    None is for any at all, where somebody else decides after the handshake.
    """

    roots: tuple[x509.Certificate, ...] | None = None


def fingerprint(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of a certificate in DER: what pinning compares."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def parse_pinned(value: Pinned) -> bytes:
    """The fingerprint meant by a certificate (PEM, DER, object) or by a fingerprint in hex.

    Colons, spaces and case of the hex form do not matter. Raises: ConfigurationError.
    """
    if isinstance(value, str):
        digits = re.sub(r"[:\s]", "", value)
        if _FINGERPRINT.fullmatch(digits):
            return bytes.fromhex(digits)
    try:
        (certificate,) = _parse(value)
    except ValueError as exc:  # A ConfigurationError is one too.
        raise ConfigurationError(
            "a pinned certificate is one in PEM or DER, or a SHA-256 fingerprint in hex"
        ) from exc
    return fingerprint(certificate)


def parse_roots(value: Roots) -> tuple[x509.Certificate, ...]:
    """The certificates meant: PEM (also several in a row), DER, objects, or a sequence of these.

    Raises: ConfigurationError, also if there is none.
    """
    each = [value] if isinstance(value, str | bytes | x509.Certificate) else list(value)
    roots = tuple(certificate for item in each for certificate in _parse(item))
    if not roots:
        raise ConfigurationError("there is no certificate among the roots")
    return roots


def _parse(value: str | bytes | x509.Certificate) -> list[x509.Certificate]:
    if isinstance(value, x509.Certificate):
        return [value]
    try:
        data = value.encode() if isinstance(value, str) else value
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except UNREADABLE as exc:
        raise ConfigurationError("not a certificate in PEM or DER") from exc


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
    openssl_code: int,
    host: str,
) -> None:
    """Accept the chain a server presents (leaf first), or raise TrustError, which carries it.

    `now` is aware. `openssl_code` is what OpenSSL found on the way to a root certificate (VERIFIED
    for nothing). The self-signed rule is Couchbase Lite's: one signed by an authority is refused.
    """
    try:
        complaint = _complaint(trust, chain, now, openssl_code, host)
    except UNREADABLE as exc:
        complaint = f"the peer's certificate cannot be read ({exc})"
    if complaint is not None:
        raise TrustError(complaint, certificates=tuple(chain), host=host)


def _complaint(
    trust: Trust,
    chain: Sequence[x509.Certificate],
    now: datetime,
    openssl_code: int,
    host: str,
) -> str | None:
    if not chain:
        return "the peer presented no certificate"
    if trust.pinned is not None:
        return _pin_complaint(trust.pinned, chain, now)
    if trust.only_self_signed:
        return _self_signed_complaint(chain[0], now)
    if openssl_code != VERIFIED:
        unknown = "no certificate authority known here vouches for the peer's certificate"
        return _OPENSSL_COMPLAINTS.get(openssl_code, unknown)
    if not names_host(chain[0], host):
        return "the peer's certificate is for another host"
    return None


def _pin_complaint(pin: bytes, chain: Sequence[x509.Certificate], now: datetime) -> str | None:
    """What is wrong with a chain that must hold the pinned certificate.

    Certificates are public, and a peer may add to its chain what it likes: it proves only that it
    has the key of the leaf. So the pinned one must be the leaf, or have signed it.
    """
    held = [hmac.compare_digest(fingerprint(each), pin) for each in chain]
    if True not in held:
        return "the peer's certificate is not the pinned one"
    place = held.index(True)
    if place == 0:
        return None
    if not _vouches(chain[place], chain[:place], now):
        return "the pinned certificate is in the peer's chain, but does not vouch for the peer's"
    return None if may_be_used(chain[0], SERVER_AUTH) else _OPENSSL_COMPLAINTS[26]


def _vouches(root: x509.Certificate, chain: Sequence[x509.Certificate], now: datetime) -> bool:
    """Whether `root` signed the leaf, through certificates that may sign and are valid now."""
    leaf, *others = map(crypto.X509.from_cryptography, chain)
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(root))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(now)
    try:
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError:
        return False
    return True


def _self_signed_complaint(leaf: x509.Certificate, now: datetime) -> str | None:
    if not is_self_signed(leaf):
        return "only self-signed certificates are accepted, and an authority signed the peer's"
    if leaf.not_valid_after_utc < now:
        return "the peer's self-signed certificate has expired"
    if leaf.not_valid_before_utc > now:
        return "the peer's self-signed certificate is not valid yet"
    return None if may_be_used(leaf, SERVER_AUTH) else _OPENSSL_COMPLAINTS[26]


def may_be_used(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    """Whether a certificate is for this use: one that tells no uses is for all."""
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


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
