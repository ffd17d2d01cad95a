"""Pages of the documentation that are run as they stand.

Python blocks are programs, each up to the one that calls `trio.run`, or says in a comment before it
that it is run. A shell block says there whether it is run, left running in the background, or not
run, and why. What a `prints` block shows is what the one before it printed, where `…` stands for
anything.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trio_p2p import FileKeyStore, TLSIdentity

FIXED_PORT = "49152"
STOP_S = 30
RUN_S = 120

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
_UNTIL = "run in the background until it prints: "


class Block(NamedTuple):
    """A fenced block, and the comment right before it."""

    note: str
    kind: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for found in _BLOCK.finditer(page.read_text()):
        yield Block(found["note"] or "", found["kind"], found["text"])


class PageRun:
    """Follows one page in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._program = ""
        self._printed: str | None = None
        self._port: str | None = None
        self._background: list[subprocess.Popen[str]] = []
        binaries = Path(sys.executable).parent
        home = directory / "home"
        home.mkdir()
        # Whoever reads a page has followed others before, and so has listened once.
        keys = FileKeyStore(home / "trio-p2p" / "keys")
        TLSIdentity.create("anonymous", label="listener", key_store=keys)
        self._environment = os.environ | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HOME": str(home),
            "XDG_DATA_HOME": str(home),
            # No keyring, and no bars.
            "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
        }

    def follow(self, block: Block) -> None:
        """Do what a block says, or look whether it shows what was printed."""
        if block.note == "prints":
            assert self._printed is not None, "nothing was run before this"
            pattern = ".*".join(map(re.escape, block.text.rstrip("\n").split("…")))
            printed = self._printed.rstrip("\n")
            assert re.fullmatch(pattern, printed, re.S), f"{printed!r} is not {block.text!r}"
        elif block.kind == "python":
            self._program += block.text
            if "trio.run(" in block.text or block.note == "run":
                self._printed = self._run([sys.executable, "-c", self._program])
                self._program = ""
        elif block.kind == "sh":
            self._shell(block)
        else:
            assert block.kind in ("ini", "text"), f"is this run? {block.text}"

    def stop(self) -> None:
        """End what runs in the background, as Ctrl-C would; it must end well."""
        for process in self._background:
            process.send_signal(signal.SIGINT)
        for process in self._background:
            assert process.wait(STOP_S) == 0
            assert process.stdout is not None
            process.stdout.close()
        assert not self._program, "a program that is never run"

    def _shell(self, block: Block) -> None:
        if block.note.startswith("not run: "):
            return
        text = block.text.replace(f"--port {FIXED_PORT}", "--port 0")
        if self._port is not None:
            text = text.replace(f":{FIXED_PORT}", f":{self._port}")
        if block.note == "run":
            self._printed = self._run(["bash", "-ec", text])
        else:
            assert block.note.startswith(_UNTIL), f"is this run? {block.text}"
            self._start(text, block.note.removeprefix(_UNTIL))

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def _start(self, text: str, until: str) -> None:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._background.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"://[^/]*:(\d+)", line):
                self._port = found[1]
            if until in line:
                return
        raise AssertionError(f"{text} ended early")
