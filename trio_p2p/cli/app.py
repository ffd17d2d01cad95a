"""The program: its commands, and how it ends.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted by SIGINT, 143 ended by SIGTERM.
Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

from typing import Any

import click

from trio_p2p.cli.compare import compare
from trio_p2p.cli.demo import demo
from trio_p2p.cli.documents import delete, get, list_documents, put
from trio_p2p.cli.failures import sentence
from trio_p2p.cli.identity import identity
from trio_p2p.cli.info import info
from trio_p2p.cli.listen import listen
from trio_p2p.cli.passwd import passwd
from trio_p2p.cli.sync import sync
from trio_p2p.cli.transfer import export_documents, import_documents
from trio_p2p.cli.upkeep import backup, compact
from trio_p2p.cli.watch import changes, conflicts
from trio_p2p.errors import TrioP2PError

INTERRUPTED = 130


class Program(click.Group):
    """A group of commands whose expected failures are told in a sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except TrioP2PError as exc:
            raise click.ClickException(sentence(exc)) from exc
        except BrokenPipeError:  # The reader of our output has enough; click ends quietly.
            raise
        except OSError as exc:
            subject = f"{exc.filename}: " if exc.filename else ""
            raise click.ClickException(f"{subject}{exc.strerror or exc}") from exc
        except (KeyboardInterrupt, click.Abort) as exc:
            raise click.exceptions.Exit(INTERRUPTED) from exc


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trio-p2p")
def main() -> None:
    """An embedded document database with peer-to-peer sync.

    DB is a database directory. Documents are read and written as JSON Lines: one document a line,
    "_id" its ID, the rest its body.

    Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted by SIGINT, 143 ended by SIGTERM
    (but `listen` ends with 0 after either signal).
    """


for command in (
    demo,
    listen,
    sync,
    put,
    get,
    delete,
    list_documents,
    import_documents,
    export_documents,
    info,
    compact,
    backup,
    compare,
    changes,
    conflicts,
    identity,
    passwd,
):
    main.add_command(command)
