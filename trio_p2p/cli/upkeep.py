"""`compact` and `backup`: what keeps a database in order."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from trio_p2p import open_database
from trio_p2p.cli.console import emit, tell
from trio_p2p.cli.options import DatabasePath, database_argument, json_option
from trio_p2p.cli.running import run


@click.command()
@database_argument
@json_option
def compact(database: Path, as_json: bool) -> None:
    """Drop what nothing needs: expired documents, deleted collections, blobs without a document.

    A blob that no document ever named is spared for an hour.
    """

    async def command() -> None:
        async with open_database(database, create=False) as db:
            result = await db.compact()
        if as_json:
            emit(asdict(result))
        else:
            blobs = "1 blob" if result.blobs_removed == 1 else f"{result.blobs_removed:,} blobs"
            click.echo(
                f"Dropped {blobs} of {result.blob_bytes_freed:,} bytes;"
                f" {result.bytes_freed:,} bytes of the data file are free again."
            )

    run(command)


@click.command()
@database_argument
@click.argument("directory", metavar="DIR", type=DatabasePath)
def backup(database: Path, directory: Path) -> None:
    """Copy a database to DIR, which must not exist.

    The copy takes an identity of its own when it is first opened, so that it may be used beside the
    original.
    """

    async def command() -> None:
        async with open_database(database, create=False) as db:
            await db.backup(directory)
        tell(f"Copied to {directory}.")

    run(command)
