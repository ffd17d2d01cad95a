"""What the commands print: data on standard output, everything else on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trio_p2p import limits

ShowProgress = Callable[[int, int | None], None]
"""Told how many documents are done, and of how many if that is known."""


def emit(value: dict[str, Any]) -> None:
    """Print a line of JSON on standard output, at once."""
    click.echo(orjson.dumps(value))


def tell(text: str) -> None:
    """Print a line for people on standard error."""
    click.echo(text, err=True)


def documents_text(count: int) -> str:
    """The count with its noun."""
    return "1 document" if count == 1 else f"{count:,} documents"


@contextmanager
def open_progress(what: str) -> Iterator[ShowProgress]:
    """Show progress while the block runs: a bar on a terminal, a few lines in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _progress_lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Standard output may be a pipe that wants data: it must not be shown beside the bar.
    with Progress(*columns, TimeElapsedColumn(), console=console, redirect_stdout=False) as bars:
        task = bars.add_task(what, total=None)
        yield lambda completed, total: bars.update(task, completed=completed, total=total)


def _progress_lines(what: str) -> ShowProgress:
    told = 0

    def show(completed: int, total: int | None) -> None:
        nonlocal told
        step = completed // limits.PROGRESS_LINE_DOCUMENTS
        if step > told:
            told = step
            tell(f"{what}: {completed:,}" + (f" of {total:,}" if total is not None else ""))

    return show
