"""`put`, `get`, `delete` and `ls`: work with single documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trio_p2p import Document, DocumentNotFoundError
from trio_p2p.cli import jsonl
from trio_p2p.cli.console import emit
from trio_p2p.cli.options import (
    collection_option,
    database_argument,
    json_option,
    open_collection,
)
from trio_p2p.cli.running import run

id_argument = click.argument("document_id", metavar="ID")


@click.command()
@database_argument
@id_argument
@click.argument("body", metavar="JSON")
@collection_option
def put(database: Path, document_id: str, body: str, collection: str | None) -> None:
    """Create or replace a document; prints its new version."""
    parsed = jsonl.parse_object(body.encode())

    async def command() -> None:
        async with open_collection(database, collection, create=True) as documents:
            emit(_head(await documents.put(document_id, parsed)))

    run(command)


@click.command()
@database_argument
@id_argument
@collection_option
def get(database: Path, document_id: str, collection: str | None) -> None:
    """Print a document as a line of JSON."""

    async def command() -> None:
        async with open_collection(database, collection) as documents:
            document = documents.get(document_id)
        if document is None:
            raise DocumentNotFoundError("there is no such document", document_id=document_id)
        click.echo(jsonl.format_document(document), nl=False)

    run(command)


@click.command()
@database_argument
@id_argument
@collection_option
def delete(database: Path, document_id: str, collection: str | None) -> None:
    """Delete a document; prints the version that says so, which replicates."""

    async def command() -> None:
        async with open_collection(database, collection) as documents:
            emit(_head(await documents.delete(document_id)))

    run(command)


@click.command("ls")
@database_argument
@collection_option
@json_option
def list_documents(database: Path, collection: str | None, as_json: bool) -> None:
    """Print the IDs of all documents in their order; with --json also versions."""

    async def command() -> None:
        async with open_collection(database, collection) as documents:
            async for document in documents.documents():
                if as_json:
                    emit(_head(document))
                else:
                    click.echo(document.id)

    run(command)


def _head(document: Document) -> dict[str, Any]:
    """A document without its body."""
    return {
        jsonl.ID_KEY: document.id,
        "version": str(document.version),
        "sequence": document.sequence,
        "deleted": document.deleted,
    }
