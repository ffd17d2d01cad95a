"""`identity`: keys and certificates, and what others are told of them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from trio_p2p import FileKeyStore, TLSIdentity
from trio_p2p.cli import main
from trio_p2p.security.trust import parse_pinned, parse_roots


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return str(tmp_path / "keys")


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["identity", *arguments])
    assert result.exit_code == status, result.output
    return result


def test_an_identity_is_made_listed_shown_and_deleted(keys: str) -> None:
    made = orjson.loads(run("create", "till", "--days", "10", "--keys", keys, "--json").stdout)
    assert made["subject"] == "CN=till"
    assert made["self_signed"] is True
    days_left = datetime.fromisoformat(made["expires"]) - datetime.now(UTC)
    assert timedelta(days=9) < days_left <= timedelta(days=10)
    assert orjson.loads(run("list", "--keys", keys, "--json").stdout) == made
    assert orjson.loads(run("show", "till", "--keys", keys, "--json").stdout) == made
    [line] = run("list", "--keys", keys).stdout.splitlines()
    assert line.split("\t") == ["till", made["expires"][:10], made["fingerprint"]]
    assert made["fingerprint"] in run("show", "till", "--keys", keys).stdout
    run("delete", "till", "--keys", keys)
    assert run("list", "--keys", keys).stdout == ""
    for command in ("show", "delete"):
        assert "no identity 'till'" in run(command, "till", "--keys", keys, status=1).stderr


def test_a_label_is_taken_once(keys: str) -> None:
    run("create", "till", "--keys", keys)
    assert "exists already" in run("create", "till", "--keys", keys, status=1).stderr


def test_what_the_certificate_says_can_be_told(keys: str) -> None:
    names = ["--dns", "a.example", "--dns", "b.example", "--address", "10.0.0.7"]
    run("create", "till", "--name", "Till 3", *names, "--client-only", "--rsa", "--keys", keys)
    identity = TLSIdentity.load("till", FileKeyStore(keys))
    assert identity is not None
    leaf = identity.certificates[0]
    assert leaf.subject.rfc4514_string() == "CN=Till 3"
    told = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert told.get_values_for_type(x509.DNSName) == ["a.example", "b.example"]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert len(list(usages)) == 1
    assert "address" in run("create", "x", "--address", "home", "--keys", keys, status=1).stderr


def test_the_certificate_but_not_the_key_is_printed_for_others(keys: str) -> None:
    run("create", "till", "--keys", keys)
    identity = TLSIdentity.load("till", FileKeyStore(keys))
    assert identity is not None
    printed = run("show", "till", "--pem", "--keys", keys).stdout
    assert parse_roots(printed) == identity.certificates
    assert parse_pinned(printed).hex() == identity.fingerprint.replace(":", "").lower()
    assert "PRIVATE" not in printed
    assert printed.startswith("-----BEGIN CERTIFICATE-----")


def test_keys_that_others_can_read_are_told_of(keys: str) -> None:
    run("create", "till", "--keys", keys)
    (Path(keys) / "till.p12").chmod(0o644)
    assert "chmod" in run("show", "till", "--keys", keys, status=1).stderr
