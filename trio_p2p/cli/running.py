"""Running an async command under SIGINT and SIGTERM.

The handlers are installed explicitly: a shell without job control starts background commands with
SIGINT ignored, and Python leaves it so.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import click
import trio

from trio_p2p.transport.base import open_services

SIGNAL_STATUS_BASE = 128  # What shells report for a command that a signal ended.


class Stop:
    """Whether a signal has asked the command to end."""

    def __init__(self) -> None:
        self.requested = trio.Event()
        self.status = 0
        """The exit status that tells which signal it was; 0 as long as there was none."""

    def request(self, signal_number: int) -> None:
        """Note a signal."""
        self.status = SIGNAL_STATUS_BASE + signal_number
        self.requested.set()


def run(command: Callable[[], Awaitable[None]]) -> None:
    """Run a command that a signal cancels. Raises: click's Exit when one did."""

    async def ignoring_stop(stop: Stop) -> None:
        await command()

    trio.run(_run_under_signals, ignoring_stop, 1)


def run_until_stopped(command: Callable[[Stop], Awaitable[None]]) -> None:
    """Run a command that ends by itself when a signal asks it to; a second one cancels it.

    Raises: click's Exit when it was cancelled.
    """
    trio.run(_run_under_signals, command, 2)


async def _run_under_signals(command: Callable[[Stop], Awaitable[None]], patience: int) -> None:
    """Run a command; the first signal is a request, the `patience`th one cancels."""
    stop = Stop()
    with (
        trio.CancelScope() as scope,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received,
    ):
        async with open_services() as services:
            services.start_soon(_watch_signals, received, stop, scope, patience)
            await command(stop)
    if scope.cancelled_caught:
        raise click.exceptions.Exit(stop.status)


async def _watch_signals(
    received: AsyncIterator[int], stop: Stop, scope: trio.CancelScope, patience: int
) -> None:
    async for signal_number in received:
        stop.request(signal_number)
        patience -= 1
        if patience <= 0:
            scope.cancel()
