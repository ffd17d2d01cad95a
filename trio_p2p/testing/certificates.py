"""A certificate authority for tests: good certificates, and such as must be refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trio_p2p.security.identity import TLSIdentity, Usage

LIFETIME = timedelta(days=30)
DAY = timedelta(days=1)


class Authority:
    """A certificate that signs others, and the key to do it with.

    One with an `issuer` is an intermediate one; one that may not sign does so all the same.
    """

    def __init__(
        self,
        now: datetime,
        *,
        common_name: str = "root",
        issuer: Authority | None = None,
        may_sign: bool = True,
    ) -> None:
        self._now = now
        self._name = _name(common_name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = issuer
        signer = issuer or self
        builder = _builder(self._name, signer._name, self._key, now - DAY, now + LIFETIME, may_sign)
        self.certificate = builder.sign(signer._key, hashes.SHA256())

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Its certificate, and those of the authorities above it."""
        above = self._issuer.chain if self._issuer is not None else ()
        return (self.certificate, *above)

    def issue(
        self,
        common_name: str,
        *,
        dns: Sequence[str] = (),
        addresses: Sequence[str] = (),
        usages: Collection[Usage] = (),
        starts: datetime | None = None,
        ends: datetime | None = None,
        issuer_name: str | None = None,
    ) -> TLSIdentity:
        """An identity signed by this authority, with its whole chain.

        `usages` empty tells of none, which allows all. `issuer_name` claims another issuer.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(
            _name(common_name),
            self._name if issuer_name is None else _name(issuer_name),
            key,
            starts or self._now - DAY,
            ends or self._now + LIFETIME,
            may_sign=False,
        )
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in dns]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usages:
            purposes = x509.ExtendedKeyUsage([usage.value for usage in usages])
            builder = builder.add_extension(purposes, critical=False)
        return TLSIdentity((builder.sign(self._key, hashes.SHA256()), *self.chain), key)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    starts: datetime,
    ends: datetime,
    may_sign: bool,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=may_sign, path_length=None), critical=True)
    )
