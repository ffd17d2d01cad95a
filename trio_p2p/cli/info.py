"""`info`: what a database is and holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trio_p2p import Database, open_database
from trio_p2p.cli.console import documents_text, emit
from trio_p2p.cli.options import database_argument, json_option
from trio_p2p.cli.running import run


@click.command()
@database_argument
@json_option
def info(database: Path, as_json: bool) -> None:
    """Tell a database's name, identity, size and collections."""

    async def command() -> None:
        async with open_database(database, create=False) as db:
            facts = _facts(db)
        if as_json:
            emit(facts)
        else:
            _print(facts)

    run(command)


def _facts(database: Database) -> dict[str, Any]:
    return {
        "name": database.name,
        "path": str(database.path),
        "id": str(database.id),
        "source_id": database.source_id,
        "bytes_used": database.statistics().bytes_used,
        "collections": [
            {
                "name": collection.full_name,
                "count": collection.count,
                "last_sequence": collection.last_sequence,
            }
            for collection in database.collections()
        ],
    }


def _print(facts: dict[str, Any]) -> None:
    click.echo(f"name         {facts['name']}")
    click.echo(f"path         {facts['path']}")
    click.echo(f"id           {facts['id']}")
    click.echo(f"source ID    {facts['source_id']}")
    click.echo(f"size         {facts['bytes_used']:,} bytes")
    for collection in facts["collections"]:
        count = documents_text(collection["count"])
        sequence = f"last sequence {collection['last_sequence']:,}"
        click.echo(f"collection   {collection['name']}: {count}, {sequence}")
