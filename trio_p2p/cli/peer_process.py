"""A listening peer in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import orjson
import trio

from trio_p2p import limits
from trio_p2p.cli.options import PASSWORD_VARIABLE
from trio_p2p.transport.base import open_services

LOOPBACK = "127.0.0.1"
USER = "demo"
LINE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a process listens, whom it lets in, and how to recognise it."""

    url: str
    fingerprint: str
    user: str


@asynccontextmanager
async def open_listening_process(
    database: Path, password: str, keys: Path
) -> AsyncIterator[Listening]:
    """Run `trio-p2p listen` on loopback; leaving the block ends it gracefully.

    Its key store is below `keys`. Raises: click's ClickException if it does not begin to listen;
    it has told why on standard error.
    Cancelling: ends the process.
    """
    program = [sys.executable, "-m", "trio_p2p", "listen", str(database)]
    options = ["--interface", LOOPBACK, "--user", USER, "--json"]
    # The password goes through the environment: other users can read a process's arguments.
    environment = {**os.environ, PASSWORD_VARIABLE: password, "XDG_DATA_HOME": str(keys)}
    process_runner = partial(
        trio.run_process,
        [*program, *options],
        stdout=subprocess.PIPE,
        check=False,
        env=environment,
    )
    async with open_services() as services:
        process: trio.Process = await services.start(process_runner)
        assert process.stdout is not None
        facts = await _read_announcement(process.stdout)
        try:
            yield Listening(facts["urls"][0], facts["fingerprint"], USER)
        finally:
            process.terminate()
            with trio.move_on_after(limits.STOP_TIMEOUT_S, shield=True):
                await process.wait()


async def _read_announcement(output: trio.abc.ReceiveStream) -> dict[str, str]:
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
        chunk = await output.receive_some()
        if not chunk:
            raise click.ClickException("the listening process ended before it listened")
        line += chunk
    facts: dict[str, str] = orjson.loads(line)
    return facts
