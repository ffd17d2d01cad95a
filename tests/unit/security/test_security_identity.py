"""TLS identities."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from certificates import Authority
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError
from trio_p2p.security.identity import TLSIdentity, Usage, anonymous_identity
from trio_p2p.security.keystore import MemoryKeyStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def pem(identity, password=None):
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    key = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return key, b"".join(each.public_bytes(Encoding.PEM) for each in identity.certificates)


@pytest.mark.behaviour("I1")
def test_a_new_identity_is_one_certificate_signed_by_itself():
    identity = TLSIdentity.create("till 3", valid_for=timedelta(days=10), now=NOW)
    (certificate,) = identity.certificates
    assert certificate.subject.rfc4514_string() == "CN=till 3"
    assert identity.expiration == NOW + timedelta(days=10)
    assert identity.is_self_signed
    assert certificate.public_key() == identity.private_key.public_key()
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    assert identity.fingerprint.replace(":", "").lower() == digest
    assert "private" not in repr(identity)


@pytest.mark.behaviour("I6a")
def test_attributes_and_usages_are_written_into_the_certificate():
    attributes = {"O": "Shop", "C": "DE", "dNSName": "till.example", "iPAddress": "10.0.0.7"}
    identity = TLSIdentity.create("till", attributes=attributes, usages=[Usage.CLIENT_AUTH])
    certificate = identity.certificates[0]
    assert certificate.subject.rfc4514_string() == "C=DE,O=Shop,CN=till"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["till.example"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.behaviour("I2")
@pytest.mark.parametrize(
    ("common_name", "attributes"),
    [("", {}), ("x", {"C": "Germany"}), ("x", {"shoe": "43"}), ("x", {"iPAddress": "home"})],
)
def test_attributes_that_no_certificate_can_hold_are_refused(common_name, attributes):
    with pytest.raises(ConfigurationError):
        TLSIdentity.create(common_name, attributes=attributes)


@pytest.mark.behaviour("I3")
def test_a_label_keeps_the_identity_until_it_is_deleted():
    store = MemoryKeyStore()
    made = TLSIdentity.create("till", label="mine", key_store=store)
    loaded = TLSIdentity.load("mine", store)
    assert loaded is not None
    assert loaded.certificates == made.certificates
    with pytest.raises(ConfigurationError, match="exists already"):
        TLSIdentity.create("till", label="mine", key_store=store)
    assert TLSIdentity.delete("mine", store)
    assert TLSIdentity.load("mine", store) is None


@pytest.mark.behaviour("I4a", "I5")
@pytest.mark.parametrize("password", [None, b"secret"])
def test_key_and_chain_pass_through_pem_and_pkcs12(password):
    identity = Authority(NOW).issue("till")
    for copy in (
        TLSIdentity.from_pem(*pem(identity, password), password),
        TLSIdentity.from_pkcs12(identity.to_pkcs12(password), password),
    ):
        assert copy.certificates == identity.certificates
        assert not copy.is_self_signed
        assert copy.private_key.private_numbers() == identity.private_key.private_numbers()


def test_what_is_no_identity_is_refused():
    ours, other = TLSIdentity.create("a"), TLSIdentity.create("b")
    key, certificates = pem(ours)
    for bad in (
        lambda: TLSIdentity.from_pem(b"junk", certificates),
        lambda: TLSIdentity.from_pem(key, b"junk"),
        lambda: TLSIdentity.from_pem(key, pem(other)[1]),
        lambda: TLSIdentity.from_pem(pem(ours, b"secret")[0], certificates),
        lambda: TLSIdentity.from_pkcs12(b"junk"),
        lambda: TLSIdentity.from_pkcs12(ours.to_pkcs12(b"secret"), b"other"),
    ):
        with pytest.raises(ConfigurationError):
            bad()


def test_an_anonymous_identity_is_kept_and_replaced_before_it_expires():
    store = MemoryKeyStore()
    first = anonymous_identity("anonymous", store, NOW)
    renewal = first.expiration - timedelta(days=limits.IDENTITY_RENEWAL_DAYS)
    soon = anonymous_identity("anonymous", store, renewal - timedelta(seconds=1))
    assert soon.certificates == first.certificates
    later = anonymous_identity("anonymous", store, renewal)
    assert later.certificates != first.certificates
    assert later.expiration > renewal + timedelta(days=300)
    assert store.labels() == ("anonymous",)
