"""`identity`: keys and certificates, kept under labels."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.serialization import Encoding

from trio_p2p import CLIENT_AUTH, SERVER_AUTH, KeyType, TLSIdentity
from trio_p2p.cli.console import emit
from trio_p2p.cli.options import json_option, keys_option, load_identity, open_key_store

label_argument = click.argument("label")


@click.group()
def identity() -> None:
    """Make, list, show and delete identities: keys and certificates, for `--identity`."""


@identity.command()
@label_argument
@click.option("--name", metavar="NAME", help="The common name; the label unless told.")
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True)
@click.option("--dns", metavar="NAME", multiple=True, help="A host name; may be repeated.")
@click.option("--address", metavar="IP", multiple=True, help="An IP address; may be repeated.")
@click.option("--rsa", is_flag=True, help="An RSA key, for peers that do not know ECDSA.")
@click.option("--client-only", is_flag=True, help="A certificate that is not for listeners.")
@keys_option
@json_option
def create(
    label: str,
    name: str | None,
    days: int,
    dns: tuple[str, ...],
    address: tuple[str, ...],
    rsa: bool,
    client_only: bool,
    keys: Path | None,
    as_json: bool,
) -> None:
    """Make a key and a certificate that signs itself, and keep them under LABEL.

    Peers that compare host names want --dns or --address; those that pin the certificate do not.
    """
    attributes = {"dNSName": ",".join(dns), "iPAddress": ",".join(address)}
    made = TLSIdentity.create(
        name or label,
        attributes={kind: names for kind, names in attributes.items() if names},
        usages={CLIENT_AUTH} if client_only else {CLIENT_AUTH, SERVER_AUTH},
        valid_for=timedelta(days=days),
        key_type=KeyType.RSA_3072 if rsa else KeyType.ECDSA_P256,
        label=label,
        key_store=open_key_store(keys),
    )
    _print(label, made, as_json)


@identity.command("list")
@keys_option
@json_option
def list_identities(keys: Path | None, as_json: bool) -> None:
    """List all identities: label, when it expires, fingerprint."""
    store = open_key_store(keys)
    for label in store.labels():
        found = TLSIdentity.load(label, store)
        if found is None:
            continue
        if as_json:
            emit(_facts(label, found))
        else:
            click.echo(f"{label}\t{found.expiration:%Y-%m-%d}\t{found.fingerprint}")


@identity.command()
@label_argument
@click.option("--pem", is_flag=True, help="Print the certificates in PEM, for others to trust.")
@keys_option
@json_option
def show(label: str, pem: bool, keys: Path | None, as_json: bool) -> None:
    """Tell what the certificate of an identity says. The key is never shown."""
    found = load_identity(label, keys)
    if pem:
        for certificate in found.certificates:
            click.echo(certificate.public_bytes(Encoding.PEM), nl=False)
        return
    _print(label, found, as_json)


@identity.command()
@label_argument
@keys_option
def delete(label: str, keys: Path | None) -> None:
    """Delete an identity. It cannot be brought back, and whoever trusts it trusts nobody then."""
    if not TLSIdentity.delete(label, open_key_store(keys)):
        raise click.ClickException(f"there is no identity {label!r}")


def _facts(label: str, found: TLSIdentity) -> dict[str, Any]:
    leaf = found.certificates[0]
    return {
        "label": label,
        "subject": leaf.subject.rfc4514_string(),
        "issuer": leaf.issuer.rfc4514_string(),
        "self_signed": found.is_self_signed,
        "not_before": leaf.not_valid_before_utc.isoformat(),
        "expires": found.expiration.isoformat(),
        "certificates": len(found.certificates),
        "fingerprint": found.fingerprint,
    }


def _print(label: str, found: TLSIdentity, as_json: bool) -> None:
    facts = _facts(label, found)
    if as_json:
        emit(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):<13}{value}")
