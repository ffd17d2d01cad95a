"""`import` and `export`: whole collections as JSON Lines."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click
import trio

from trio_p2p import (
    BlobNotFoundError,
    Collection,
    InvalidDocumentError,
    TrioP2PError,
    limits,
)
from trio_p2p.cli import jsonl
from trio_p2p.cli.console import ShowProgress, documents_text, emit, open_progress, tell
from trio_p2p.cli.options import (
    collection_option,
    database_argument,
    json_option,
    open_collection,
)
from trio_p2p.cli.running import run

STANDARD_STREAM = Path("-")


class ImportStoppedError(TrioP2PError):
    """A line is no document; what stands before it was imported."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file: its number, counted from 1, and what stands on it."""

    number: int
    text: bytes


@click.command("import")
@database_argument
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@collection_option
@json_option
def import_documents(database: Path, file: Path, collection: str | None, as_json: bool) -> None:
    """Store the documents of a JSON Lines FILE, or of standard input for -.

    They are stored 1,000 at a time. A line that is no document ends the import; what stands
    before it stays.
    """

    async def command() -> None:
        with closing(_open_input(file)) as lines:
            async with open_collection(database, collection, create=True) as documents:
                with open_progress("imported") as show:
                    count = await _import(documents, lines, show)
        if as_json:
            emit({"documents_imported": count})
        else:
            tell(f"Imported {documents_text(count)}.")

    run(command)


@click.command("export")
@database_argument
@click.argument(
    "file", default="-", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path)
)
@collection_option
def export_documents(database: Path, file: Path, collection: str | None) -> None:
    """Write all documents as JSON Lines, in order of their IDs.

    They go to FILE, which is replaced, or to standard output.
    """

    async def command() -> None:
        async with open_collection(database, collection) as documents:
            if file == STANDARD_STREAM:
                await _export(documents, sys.stdout.buffer)
                return
            with file.open("wb") as output:
                count = await _export(documents, output)
        tell(f"Exported {documents_text(count)}.")

    run(command)


def _open_input(file: Path) -> BinaryIO:
    if file != STANDARD_STREAM:
        return file.open("rb")
    # Not sys.stdin: a thread that was left waiting in it would crash the interpreter's shutdown.
    return open(sys.stdin.fileno(), "rb", closefd=False)


async def _import(collection: Collection, file: BinaryIO, show: ShowProgress) -> int:
    """Store all documents; tells how many. Raises ImportStoppedError at a line that is none."""
    count = line_number = 0
    while True:
        # A pipe may stay silent for long: an interrupt must not wait for it.
        lines = await trio.to_thread.run_sync(
            _read_lines, file, line_number, abandon_on_cancel=True
        )
        if not lines:
            return count
        line_number = lines[-1].number
        count += await _store(collection, lines, count)
        show(count, None)


def _read_lines(file: BinaryIO, line_number: int) -> list[Line]:
    """The lines of one batch, none at the end."""
    lines: list[Line] = []
    room_bytes = limits.IMPORT_BATCH_BYTES
    while len(lines) < limits.IMPORT_BATCH_DOCUMENTS and room_bytes > 0:
        text = file.readline()
        if not text:
            break
        line_number += 1
        room_bytes -= len(text)
        lines.append(Line(line_number, text))
    return lines


async def _store(collection: Collection, lines: list[Line], before: int) -> int:
    """Store one batch; tells how many documents. `before` were stored by earlier ones."""
    stored = 0
    failure: ImportStoppedError | None = None
    async with collection.batch() as batch:
        for line in lines:
            if line.text.isspace():
                continue
            try:
                batch.put(*jsonl.parse_document(line.text))
            except (InvalidDocumentError, BlobNotFoundError) as exc:
                failure = _stopped(line, exc, before + stored)
                break
            stored += 1
    if failure is not None:
        raise failure
    return stored


def _stopped(line: Line, error: TrioP2PError, count: int) -> ImportStoppedError:
    stopped = ImportStoppedError(
        f"line {line.number}: {error}; {documents_text(count)} before it stay imported:"
        " correct the line and import again"
    )
    stopped.__cause__ = error
    return stopped


async def _export(collection: Collection, output: BinaryIO) -> int:
    """Write all documents; tells how many."""
    count = 0
    async for document in collection.documents():
        output.write(jsonl.format_document(document))
        count += 1
    output.flush()
    return count
