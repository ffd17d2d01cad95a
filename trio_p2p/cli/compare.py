"""`compare`: the documents in which two databases differ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trio_p2p import Collection, Database, Document, open_database
from trio_p2p.cli.console import documents_text, emit, tell
from trio_p2p.cli.options import DatabasePath, json_option
from trio_p2p.cli.running import run


@dataclass(frozen=True, slots=True)
class Pair:
    """One document in both databases; None where it is absent or deleted."""

    collection: str
    id: str
    first: Document | None
    second: Document | None

    @property
    def difference(self) -> str | None:
        """In what they differ, or None."""
        if self.first is None:
            return "only in the second"
        if self.second is None:
            return "only in the first"
        other_version = self.first.version != self.second.version
        other_body = self.first.body != self.second.body
        if other_version and other_body:
            return "version and body"
        return "version" if other_version else "body" if other_body else None


@click.command()
@click.argument("first", metavar="DB", type=DatabasePath)
@click.argument("second", metavar="DB", type=DatabasePath)
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Print the documents that differ by ID, version or body; exit status 1 if any do."""

    async def command() -> None:
        async with open_both(first, second) as (one, other):
            equal = await compare_databases(one, other, as_json=as_json)
        if not equal:
            raise click.exceptions.Exit(1)

    run(command)


@asynccontextmanager
async def open_both(first: Path, second: Path) -> AsyncIterator[tuple[Database, Database]]:
    """Open two databases that exist. Cancelling: safe."""
    async with open_database(first, create=False) as one:
        async with open_database(second, create=False) as other:
            yield one, other


async def compare_databases(first: Database, second: Database, *, as_json: bool = False) -> bool:
    """Print the differences over all collections of both; tells whether there are none.

    Cancelling: safe.
    """
    count = different = 0
    async for pair in _pairs(first, second):
        count += 1
        if pair.difference is not None:
            different += 1
            _print(pair, as_json)
    if different:
        tell(f"Different: {different:,} of {documents_text(count)}.")
    else:
        tell(f"Equal: {documents_text(count)}.")
    return not different


async def _pairs(first: Database, second: Database) -> AsyncIterator[Pair]:
    by_name = [{c.full_name: c for c in database.collections()} for database in (first, second)]
    for name in sorted(by_name[0].keys() | by_name[1].keys()):
        ones, others = (_documents(collections.get(name)) for collections in by_name)
        one, other = await anext(ones, None), await anext(others, None)
        while one is not None or other is not None:
            document_id = min(document.id for document in (one, other) if document is not None)
            pair = Pair(name, document_id, _if_its(document_id, one), _if_its(document_id, other))
            yield pair
            if pair.first is not None:
                one = await anext(ones, None)
            if pair.second is not None:
                other = await anext(others, None)


async def _documents(collection: Collection | None) -> AsyncIterator[Document]:
    """The live documents in ID order; none of a collection that does not exist."""
    if collection is not None:
        async for document in collection.documents():
            yield document


def _if_its(document_id: str, document: Document | None) -> Document | None:
    return document if document is not None and document.id == document_id else None


def _print(pair: Pair, as_json: bool) -> None:
    if not as_json:
        prefix = "" if pair.collection == "_default" else f"{pair.collection}/"
        click.echo(f"{prefix}{pair.id}\t{pair.difference}")
        return
    line: dict[str, Any] = {
        "collection": pair.collection,
        "_id": pair.id,
        "difference": pair.difference,
        "first_version": None if pair.first is None else str(pair.first.version),
        "second_version": None if pair.second is None else str(pair.second.version),
    }
    emit(line)
