"""`changes` and `conflicts`: what happens to the documents of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trio_p2p import Change, Conflict, Document
from trio_p2p.cli import jsonl
from trio_p2p.cli.console import emit
from trio_p2p.cli.options import (
    collection_option,
    database_argument,
    json_option,
    open_collection,
)
from trio_p2p.cli.running import run


@click.command()
@database_argument
@collection_option
@click.option("--since", metavar="SEQUENCE", type=int, default=0, help="Only what came after it.")
@click.option("--follow", is_flag=True, help="Wait for more, until interrupted.")
@json_option
def changes(
    database: Path, collection: str | None, since: int, follow: bool, as_json: bool
) -> None:
    """Print the latest change of every document, in the order in which they were made."""

    async def command() -> None:
        async with open_collection(database, collection) as documents:
            async for change in documents.changes(since, live=follow):
                if as_json:
                    emit(_change_facts(change))
                else:
                    what = "\tdeleted" if change.deleted else ""
                    text = f"{change.sequence}\t{change.document_id}\t{change.version}{what}"
                    click.echo(text)

    run(command)


@click.command()
@database_argument
@collection_option
@json_option
def conflicts(database: Path, collection: str | None, as_json: bool) -> None:
    """Print the conflicts that wait for a resolver: the document, and the version of each side.

    With --json also what each side says, and what both started from where that is known. They are
    decided when the database is synced.
    """

    async def command() -> None:
        async with open_collection(database, collection) as documents:
            async for conflict in documents.conflicts():
                if as_json:
                    click.echo(jsonl.format_line(_conflict_facts(conflict)), nl=False)
                else:
                    sides = (_version(conflict.local), _version(conflict.remote))
                    click.echo("\t".join((conflict.document_id, *sides)))

    run(command)


def _change_facts(change: Change) -> dict[str, Any]:
    return {
        jsonl.ID_KEY: change.document_id,
        "version": str(change.version),
        "sequence": change.sequence,
        "deleted": change.deleted,
    }


def _conflict_facts(conflict: Conflict) -> dict[str, Any]:
    return {
        jsonl.ID_KEY: conflict.document_id,
        "local": _side_facts(conflict.local),
        "remote": _side_facts(conflict.remote),
        "base": _side_facts(conflict.base),
    }


def _side_facts(side: Document | None) -> dict[str, Any] | None:
    """None for a side that was deleted, and for a base that is not known."""
    return None if side is None else {"version": str(side.version), "body": side.body}


def _version(side: Document | None) -> str:
    return "deleted" if side is None else str(side.version)
