"""Arguments and options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from trio_p2p import (
    Collection,
    Database,
    FileKeyStore,
    KeyStore,
    TLSIdentity,
    ids,
    open_database,
)
from trio_p2p.security.keystore import default_key_store

PASSWORD_VARIABLE = "TRIO_P2P_PASSWORD"  # noqa: S105  # It is a name.
DatabasePath = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password."""

    name: str
    password: str = field(repr=False)


def _check_name(name: str) -> str:
    try:
        ids.collection_name(name)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    return name


def _check_one(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    return None if name is None else _check_name(name)


def _check_each(
    ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_check_name, names)))


def _find_credentials(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> Credentials | None:
    if value is None:
        return None
    name, colon, password = value.partition(":")
    if not name:
        raise click.BadParameter("a user has a name")
    return Credentials(name, password if colon else _find_password(name))


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _find_password(name: str) -> str:
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None:
        return password
    if not _is_terminal():
        raise click.BadParameter(f"give a password: {name}:PASSWORD, or set {PASSWORD_VARIABLE}")
    asked: str = click.prompt(f"Password of {name}", hide_input=True, err=True)
    return asked


def find_new_password(name: str) -> str:
    """A password to be set, from the environment or asked for twice. Raises: click's UsageError."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None:
        return password
    if not _is_terminal():
        raise click.UsageError(f"there is nobody to ask for a password: set {PASSWORD_VARIABLE}")
    asked: str = click.prompt(
        f"New password of {name}", hide_input=True, confirmation_prompt=True, err=True
    )
    return asked


def open_key_store(directory: Path | None) -> KeyStore:
    """The key store in a directory, or the default one."""
    return default_key_store() if directory is None else FileKeyStore(directory)


def load_identity(label: str, directory: Path | None) -> TLSIdentity:
    """The identity of this label. Raises: click's ClickException if there is none."""
    found = TLSIdentity.load(label, open_key_store(directory))
    if found is None:
        raise click.ClickException(
            f"there is no identity {label!r}: `trio-p2p identity list` lists those there are"
        )
    return found


database_argument = click.argument("database", metavar="DB", type=DatabasePath)
collection_option = click.option(
    "--collection", metavar="NAME", callback=_check_one, help="Another than the default collection."
)
collections_option = click.option(
    "--collection",
    "collections",
    metavar="NAME",
    multiple=True,
    callback=_check_each,
    help="A collection to replicate; may be repeated. It is made if it is missing.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
delta_option = click.option(
    "--delta",
    is_flag=True,
    help="Send and take only what changed in documents, if the peer does so too.",
)
user_option = click.option(
    "--user",
    metavar="NAME[:PASSWORD]",
    callback=_find_credentials,
    help=f"Without the password it is taken from {PASSWORD_VARIABLE}, or asked for.",
)

keys_option = click.option(
    "--keys",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory of keys, instead of the system's secure storage or the user's data.",
)
identity_option = click.option(
    "--identity", metavar="LABEL", help="Show this certificate; `trio-p2p identity` makes them."
)


@asynccontextmanager
async def open_collection(
    path: Path, name: str | None, *, create: bool = False
) -> AsyncIterator[Collection]:
    """Open a collection of a database, the default one for None; `create` makes what is missing.

    Raises: DatabaseNotFoundError, CollectionNotFoundError, and what else opening raises.
    Cancelling: safe.
    """
    async with open_database(path, create=create) as database:
        if name is None:
            yield database.default_collection
        elif create:
            yield await database.create_collection(name)
        else:
            yield database.collection(name)


async def make_collections(database: Database, names: tuple[str, ...]) -> list[Collection]:
    """The collections of these names; those that are missing are made."""
    return [await database.create_collection(name) for name in names]
