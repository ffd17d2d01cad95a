"""A certificate authority for tests."""

import ipaddress
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trio_p2p.security.identity import TLSIdentity


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A root, and the identities it vouches for (chains of leaf and root)."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._sign(self._key, "root", "root", ca=True)

    def issue(self, subject, *, dns=None, address=None, issuer_is_subject=False) -> TLSIdentity:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(dns)] if dns else []
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        leaf = self._sign(key, subject, subject if issuer_is_subject else "root", names=names)
        return TLSIdentity((leaf, self.root), key)

    def _sign(self, key, subject, issuer, *, names=(), ca=False) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(days=1))
            .not_valid_after(self._now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())
