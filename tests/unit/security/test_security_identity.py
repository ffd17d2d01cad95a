"""TLS identities."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trio_p2p.errors import ConfigurationError
from trio_p2p.security.identity import KeyType, TLSIdentity, Usage
from trio_p2p.security.keystore import MemoryKeyStore
from trio_p2p.testing.certificates import Authority

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OTHER = TLSIdentity.create("other")


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
    attributes = {
        "O": "Shop",
        "C": "DE",
        "GN": "Ann",
        "postalCode": "10115",
        "dNSName": "till.example, *.till.example",
        "iPAddress": "10.0.0.7,::1",
        "rfc822Name": "ann@till.example",
        "URI": "https://till.example/a,b",
    }
    identity = TLSIdentity.create("till", attributes=attributes, usages=[Usage.CLIENT_AUTH])
    certificate = identity.certificates[0]
    assert certificate.subject.rfc4514_string() == "2.5.4.17=10115,2.5.4.42=Ann,C=DE,O=Shop,CN=till"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["till.example", "*.till.example"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["10.0.0.7", "::1"]
    assert names.get_values_for_type(x509.RFC822Name) == ["ann@till.example"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [attributes["URI"]]
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


def test_a_certificate_for_nothing_is_refused():
    with pytest.raises(ConfigurationError):
        TLSIdentity.create("till", usages=[])


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


def test_a_chain_in_any_order_is_put_in_order():
    root = Authority(NOW)
    below = Authority(NOW, common_name="below", issuer=root)
    identity = below.issue("till")
    leaf, middle, top = identity.certificates
    key, _ = pem(identity)
    mixed = b"".join(each.public_bytes(Encoding.PEM) for each in (top, leaf, middle))
    assert TLSIdentity.from_pem(key, mixed).certificates == (leaf, middle, top)
    packed = TLSIdentity((leaf, top, middle), identity.private_key).to_pkcs12()
    assert TLSIdentity.from_pkcs12(packed).certificates == (leaf, middle, top)


@pytest.mark.parametrize("key_type", list(KeyType))
def test_keys_of_every_type_are_made_and_read_again(key_type):
    identity = TLSIdentity.create("till", key_type=key_type)
    copy = TLSIdentity.from_pkcs12(identity.to_pkcs12())
    assert copy.certificates == identity.certificates
    assert copy.is_self_signed
    assert type(copy.private_key) is type(identity.private_key)


def test_a_key_that_protects_nobody_is_refused():
    weak = rsa.generate_private_key(65_537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "till")])
    certificate = (
        x509.CertificateBuilder(name, name, weak.public_key(), 1, NOW, NOW + timedelta(days=1))
    ).sign(weak, SHA256())
    with pytest.raises(ConfigurationError, match="key too small"):
        TLSIdentity.from_pkcs12(TLSIdentity((certificate,), weak).to_pkcs12())


def test_an_identity_lives_for_some_time():
    for nothing in (timedelta(0), timedelta(days=-3), timedelta(days=10**7)):
        with pytest.raises(ConfigurationError):
            TLSIdentity.create("till", valid_for=nothing)


def test_a_label_that_another_process_takes_meanwhile_is_taken():
    class Racing(MemoryKeyStore):
        def load(self, label):
            found = super().load(label)
            self.save(label, OTHER.to_pkcs12())
            return found

    store = Racing()
    with pytest.raises(ConfigurationError, match="exists already"):
        TLSIdentity.create("till", label="mine", key_store=store)
    assert TLSIdentity.load("mine", store).certificates == OTHER.certificates
