"""Child processes that start in milliseconds, to be killed at any moment.

A server process imports what the children need and forks one whenever it is asked to. It opens
nothing itself: an LMDB environment does not survive a fork, and neither do threads. It lives in a
session of its own, and ends, with all children, when the process that started it does.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Self

# One write and one read each, since a stream keeps small ones together.
_MESSAGE_BYTES_MAX = 4096
_IN_SERVER = "TRIO_P2P_IN_FORK_SERVER"


class Child:
    """A forked child, and the pipe that its function writes to."""

    def __init__(self, server: ForkServer, process_id: int, pipe: BinaryIO) -> None:
        self.process_id = process_id
        self.pipe = pipe
        """What the child wrote; ends when the child has."""
        self._server = server

    def kill(self) -> int:
        """Kill it as the system does when memory runs out; returns its status, see `wait`."""
        return self._server.ask("kill", process_id=self.process_id)

    def wait(self) -> int:
        """Wait for its end. Returns its exit status, or minus the signal that killed it."""
        return self._server.ask("wait", process_id=self.process_id)


class ForkServer:
    """Starts children, as a context manager. Not for use by several threads at once."""

    def __enter__(self) -> Self:
        if _IN_SERVER in os.environ:
            # Or servers would start servers without end.
            raise RuntimeError("a module that children come from starts a server when imported")
        self._socket, theirs = socket.socketpair()
        with theirs:
            # This process's path of imports, so that the children find what this one does.
            arguments = [str(theirs.fileno()), json.dumps(sys.path)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {_IN_SERVER: "1"},
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._process.wait()

    def start(self, function: Callable[..., object], *args: Any) -> Child:
        """Call a function of a module in a new child: with the arguments, which must be what JSON
        can tell, and with the file descriptor of a pipe to write to.

        The child ends when the function returns, with the status 1 if it raises.
        """
        reading, writing = os.pipe()
        name = [function.__module__, function.__qualname__]
        try:
            process_id = self.ask("start", writing, function=name, args=args)
        finally:
            os.close(writing)
        return Child(self, process_id, os.fdopen(reading, "rb"))

    def ask(self, what: str, descriptor: int | None = None, **details: Any) -> int:
        """Send a request to the server and return its answer."""
        request = json.dumps([what, details]).encode()
        assert len(request) <= _MESSAGE_BYTES_MAX
        socket.send_fds(self._socket, [request], [] if descriptor is None else [descriptor])
        answer = self._socket.recv(_MESSAGE_BYTES_MAX)
        if not answer:
            raise RuntimeError("the fork server has died")
        return int(answer)


def _serve(connection: socket.socket) -> None:
    """Fork, kill and reap as asked until the other side closes."""
    children: set[int] = set()
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES_MAX, 1)
        if not request:
            break
        what, details = json.loads(request)
        if what == "start":
            answer = _start(connection, descriptors[0], details["function"], details["args"])
            os.close(descriptors[0])
            children.add(answer)
        else:
            answer = _end(details["process_id"], kill=what == "kill")
            children.remove(details["process_id"])
        connection.send(b"%d" % answer)
    for process_id in children:
        _end(process_id, kill=True)


def _start(connection: socket.socket, pipe: int, named: list[str], args: list[Any]) -> int:
    module, qualified_name = named
    # Before forking, so that it is done once for all children.
    function: Any = importlib.import_module(module)
    for name in qualified_name.split("."):
        function = getattr(function, name)
    process_id = os.fork()
    if process_id:
        return process_id
    status = 1
    try:
        connection.close()
        function(*args, pipe)
        status = 0
    except (Exception, SystemExit):  # The guard around a process of its own.
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _end(process_id: int, *, kill: bool) -> int:
    # Nobody else reaps it, so the number stands for it and no other process.
    if kill:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    _, status = os.waitpid(process_id, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as _connection:
        _serve(_connection)
