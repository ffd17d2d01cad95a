"""The verdict on a chain."""

from datetime import UTC, datetime, timedelta

import pytest
from certificates import Authority
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import ConfigurationError, TrustError
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.trust import Trust, fingerprint, judge, names_host, parse_pinned

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OURS = TLSIdentity.create("till", now=NOW)
OTHER = TLSIdentity.create("till", now=NOW)
AUTHORITY = Authority(NOW)
ISSUED = AUTHORITY.issue("till", dns="till.example", address="10.0.0.7")


def refusal(trust, chain, *, now=NOW, openssl_verified=False, host="till.example"):
    """Why the chain is refused, or None."""
    try:
        judge(trust, chain, now=now, openssl_verified=openssl_verified, host=host)
    except TrustError as exc:
        return exc.message
    return None


@pytest.mark.behaviour("T1a", "T5")
def test_a_pinned_certificate_is_accepted_wherever_it_stands_in_the_chain():
    leaf, root = ISSUED.certificates
    assert refusal(Trust(pinned=fingerprint(leaf)), [leaf, root]) is None
    assert refusal(Trust(pinned=fingerprint(root)), [leaf, root]) is None
    assert refusal(Trust(pinned=fingerprint(leaf), only_self_signed=True), [leaf]) is None


@pytest.mark.behaviour("T5")
def test_any_other_certificate_than_the_pinned_one_is_refused():
    pin = Trust(pinned=fingerprint(OURS.certificates[0]))
    assert "pinned" in refusal(pin, OTHER.certificates, openssl_verified=True)
    assert "no certificate" in refusal(pin, [])


@pytest.mark.behaviour("T1a")
def test_self_signed_only_accepts_any_that_signed_itself():
    assert refusal(Trust(only_self_signed=True), OURS.certificates) is None


@pytest.mark.behaviour("T2b", "T6")
def test_self_signed_only_refuses_one_signed_by_an_authority():
    message = refusal(Trust(only_self_signed=True), ISSUED.certificates, openssl_verified=True)
    assert "only self-signed certificates are accepted" in message


def test_self_signed_only_refuses_one_that_names_itself_as_issuer_without_having_signed():
    forged = AUTHORITY.issue("root", issuer_is_subject=True)
    assert "only self-signed" in refusal(Trust(only_self_signed=True), forged.certificates[:1])


@pytest.mark.behaviour("T4")
def test_self_signed_only_refuses_one_that_has_expired():
    later = NOW + timedelta(days=366)
    message = refusal(Trust(only_self_signed=True), OURS.certificates, now=later)
    assert "expired" in message


@pytest.mark.behaviour("T6")
def test_without_pins_openssl_and_the_host_name_decide():
    chain = ISSUED.certificates
    assert refusal(Trust(), chain, openssl_verified=True) is None
    assert refusal(Trust(), chain, openssl_verified=True, host="10.0.0.7") is None
    assert "another host" in refusal(Trust(), chain, openssl_verified=True, host="example")
    assert "authority" in refusal(Trust(), chain)


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("a.example", "A.Example.", True),
        ("*.example", "a.example", True),
        ("*.example", "a.b.example", False),
        ("*.example", "example", False),
        ("a*.example", "ab.example", False),
        ("xn--bcher-kva.example", "bücher.example", True),
    ],
)
def test_host_names_match_with_at_most_one_wildcard_label(pattern, host, matches):
    identity = TLSIdentity.create("x", attributes={"dNSName": pattern})
    assert names_host(identity.certificates[0], host) == matches


@pytest.mark.parametrize(
    ("address", "host", "matches"),
    [
        ("::1", "[::1]", True),
        ("fe80::1", "fe80::1%eth0", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
    ],
)
def test_addresses_match_by_value(address, host, matches):
    identity = TLSIdentity.create("x", attributes={"iPAddress": address})
    assert names_host(identity.certificates[0], host) == matches


def test_a_common_name_is_not_a_host_name():
    assert not names_host(OURS.certificates[0], "till")


def test_a_host_that_is_no_name_is_refused_rather_than_crashing():
    assert "cannot be read" in refusal(
        Trust(), ISSUED.certificates, openssl_verified=True, host="a..b"
    )


def test_a_pin_is_read_from_every_form_of_a_certificate():
    certificate = OURS.certificates[0]
    expected = fingerprint(certificate)
    pem = certificate.public_bytes(Encoding.PEM)
    forms = [
        certificate,
        pem,
        pem.decode(),
        certificate.public_bytes(Encoding.DER),
        OURS.fingerprint,
        expected.hex(),
        expected.hex(" "),
    ]
    assert {parse_pinned(form) for form in forms} == {expected}


@given(st.text() | st.binary())
def test_a_pin_that_is_nothing_of_these_is_a_configuration_error(value):
    with pytest.raises(ConfigurationError):
        parse_pinned(value)
