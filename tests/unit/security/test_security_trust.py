"""The verdict on a chain."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import ConfigurationError, TrustError
from trio_p2p.security.identity import CLIENT_AUTH, SERVER_AUTH, TLSIdentity
from trio_p2p.security.trust import (
    VERIFIED,
    Trust,
    fingerprint,
    judge,
    may_be_used,
    names_host,
    parse_pinned,
    parse_roots,
)
from trio_p2p.testing.certificates import Authority

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OURS = TLSIdentity.create("till", now=NOW)
OTHER = TLSIdentity.create("till", now=NOW)
AUTHORITY = Authority(NOW)
ISSUED = AUTHORITY.issue("till", dns=["till.example"], addresses=["10.0.0.7"])


UNKNOWN_ISSUER = 20


def refusal(trust, chain, *, now=NOW, code=UNKNOWN_ISSUER, host="till.example"):
    """Why the chain is refused, or None. `code` is OpenSSL's opinion."""
    try:
        judge(trust, chain, now=now, openssl_code=code, host=host)
    except TrustError as exc:
        return exc.message
    return None


@pytest.mark.behaviour("T1a", "T5")
def test_a_pinned_certificate_is_accepted_wherever_it_stands_in_the_chain():
    leaf, root = ISSUED.certificates
    assert refusal(Trust(pinned=fingerprint(leaf)), [leaf, root]) is None
    assert refusal(Trust(pinned=fingerprint(root)), [leaf, root]) is None
    assert refusal(Trust(pinned=fingerprint(leaf), only_self_signed=True), [leaf]) is None


def test_a_pinned_certificate_that_only_stands_in_the_chain_is_refused():
    # Certificates are public: anybody can put ours behind one of their own.
    leaf, root = ISSUED.certificates
    for bystander in (leaf, root):
        pin = Trust(pinned=fingerprint(bystander))
        message = refusal(pin, [*OTHER.certificates, bystander], code=VERIFIED)
        assert "does not vouch" in message
    claimed = AUTHORITY.issue("till")
    forged = Authority(NOW).issue("till")
    pin = Trust(pinned=fingerprint(claimed.certificates[0]))
    assert "does not vouch" in refusal(pin, [forged.certificates[0], *claimed.certificates])


def test_a_pinned_authority_vouches_through_others_that_may_sign():
    below = Authority(NOW, common_name="below", issuer=AUTHORITY)
    pin = Trust(pinned=fingerprint(AUTHORITY.certificate))
    assert refusal(pin, below.issue("till").certificates) is None
    powerless = Authority(NOW, common_name="powerless", issuer=AUTHORITY, may_sign=False)
    assert "does not vouch" in refusal(pin, powerless.issue("till").certificates)


def test_what_a_pinned_authority_vouches_for_is_valid_now_and_for_servers():
    pin = Trust(pinned=fingerprint(AUTHORITY.certificate))
    expired = AUTHORITY.issue("till", ends=NOW - timedelta(hours=1))
    assert "does not vouch" in refusal(pin, expired.certificates)
    for_clients = AUTHORITY.issue("till", usages=[CLIENT_AUTH])
    assert "another use" in refusal(pin, for_clients.certificates)


def test_a_pinned_leaf_counts_before_anything_else():
    old = AUTHORITY.issue("till", ends=NOW - timedelta(hours=1), usages=[CLIENT_AUTH])
    pin = Trust(pinned=fingerprint(old.certificates[0]))
    assert refusal(pin, old.certificates, host="elsewhere") is None


@pytest.mark.behaviour("T5")
def test_any_other_certificate_than_the_pinned_one_is_refused():
    pin = Trust(pinned=fingerprint(OURS.certificates[0]))
    assert "pinned" in refusal(pin, OTHER.certificates, code=VERIFIED)
    assert "no certificate" in refusal(pin, [])


@pytest.mark.behaviour("T1a")
def test_self_signed_only_accepts_any_that_signed_itself():
    assert refusal(Trust(only_self_signed=True), OURS.certificates) is None


@pytest.mark.behaviour("T2b", "T6")
def test_self_signed_only_refuses_one_signed_by_an_authority():
    message = refusal(Trust(only_self_signed=True), ISSUED.certificates, code=VERIFIED)
    assert "only self-signed certificates are accepted" in message


def test_self_signed_only_refuses_one_that_names_itself_as_issuer_without_having_signed():
    forged = AUTHORITY.issue("forged", issuer_name="forged")
    assert "only self-signed" in refusal(Trust(only_self_signed=True), forged.certificates[:1])


@pytest.mark.behaviour("T4")
def test_self_signed_only_refuses_one_that_has_expired():
    later = NOW + timedelta(days=366)
    message = refusal(Trust(only_self_signed=True), OURS.certificates, now=later)
    assert "expired" in message
    earlier = NOW - timedelta(days=3)
    message = refusal(Trust(only_self_signed=True), OURS.certificates, now=earlier)
    assert "not valid yet" in message


def test_self_signed_only_refuses_one_that_is_not_for_servers():
    for_clients = TLSIdentity.create("till", usages=[CLIENT_AUTH], now=NOW)
    message = refusal(Trust(only_self_signed=True), for_clients.certificates)
    assert "another use" in message


@pytest.mark.behaviour("T6")
def test_without_pins_openssl_and_the_host_name_decide():
    chain = ISSUED.certificates
    assert refusal(Trust(), chain, code=VERIFIED) is None
    assert refusal(Trust(), chain, code=VERIFIED, host="10.0.0.7") is None
    assert "another host" in refusal(Trust(), chain, code=VERIFIED, host="example")
    assert "authority" in refusal(Trust(), chain)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "not valid yet"),
        (10, "expired"),
        (24, "may not sign"),
        (26, "another use"),
        (18, "known"),
    ],
)
def test_what_openssl_complains_of_is_told(code, words):
    assert words in refusal(Trust(), ISSUED.certificates, code=code)


def test_a_certificate_without_usages_is_for_all():
    any_use = TLSIdentity.create("x", usages=[CLIENT_AUTH]).certificates[0]
    assert may_be_used(ISSUED.certificates[0], CLIENT_AUTH.value)
    assert may_be_used(any_use, CLIENT_AUTH.value)
    assert not may_be_used(any_use, SERVER_AUTH.value)


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
    assert "cannot be read" in refusal(Trust(), ISSUED.certificates, code=VERIFIED, host="a..b")


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


def test_roots_are_read_from_every_form():
    one, two = OURS.certificates[0], OTHER.certificates[0]
    pems = [each.public_bytes(Encoding.PEM) for each in (one, two)]
    assert parse_roots(one) == (one,)
    assert parse_roots(b"".join(pems)) == (one, two)
    assert parse_roots([pems[0].decode(), two.public_bytes(Encoding.DER)]) == (one, two)
    for nothing in ([], b"", "junk", [one, b"junk"]):
        with pytest.raises(ConfigurationError):
            parse_roots(nothing)


def test_a_pin_is_one_certificate():
    both = [each.certificates[0].public_bytes(Encoding.PEM) for each in (OURS, OTHER)]
    with pytest.raises(ConfigurationError):
        parse_pinned(b"".join(both))


@pytest.mark.parametrize("pin", ["00:00", "AB:" * 40, OURS.fingerprint[:-1], ""])
def test_a_fingerprint_that_is_cut_is_told_as_one(pin):
    with pytest.raises(ConfigurationError, match="a SHA-256 fingerprint in hex"):
        parse_pinned(pin)


@given(st.text() | st.binary())
def test_a_pin_that_is_nothing_of_these_is_a_configuration_error(value):
    with pytest.raises(ConfigurationError):
        parse_pinned(value)
