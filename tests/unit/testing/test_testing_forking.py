from __future__ import annotations

import os
import signal
import sys

import pytest

from trio_p2p.testing.forking import ForkServer


def report(pipe):
    """Runs in a child."""
    os.write(pipe, b"%d" % os.getpid())


def repeat(text, count, pipe):
    os.write(pipe, text.encode() * count)


def fail(pipe):
    raise ValueError("mine")


def leave(pipe):
    sys.exit(3)


def hang(pipe):
    os.write(pipe, b"here")
    signal.pause()


@pytest.fixture
def server():
    with ForkServer() as server:
        yield server


def test_a_child_gets_its_arguments_and_tells_on_its_pipe(server):
    child = server.start(repeat, "é", 3)
    with child.pipe:
        assert child.pipe.read() == "ééé".encode()
    assert child.wait() == 0


def test_children_are_processes_of_their_own(server):
    children = [server.start(report) for _ in range(3)]
    told = {int(child.pipe.read()) for child in children}
    assert told == {child.process_id for child in children}
    assert len(told) == 3
    assert [child.wait() for child in children] == [0, 0, 0]
    for child in children:
        child.pipe.close()


def test_a_child_can_be_killed_and_its_end_is_known(server):
    child = server.start(hang)
    with child.pipe:
        assert child.pipe.read(4) == b"here"
        assert child.kill() == -signal.SIGKILL
        assert child.pipe.read() == b""
    with pytest.raises(ProcessLookupError):
        os.kill(child.process_id, 0)


def test_killing_one_that_ended_tells_how_it_ended(server):
    child = server.start(report)
    with child.pipe:
        child.pipe.read()
        # It closed its pipe as it ended; whichever comes first, it is one of the two.
        assert child.kill() in (0, -signal.SIGKILL)


@pytest.mark.parametrize(("function", "told"), [(fail, "ValueError: mine"), (leave, "SystemExit")])
def test_a_child_that_raises_tells_that(capfd, function, told):
    with ForkServer() as server:  # Here, so that it writes to where `capfd` reads.
        child = server.start(function)
        with child.pipe:
            assert child.pipe.read() == b""
        assert child.wait() == 1
    assert told in capfd.readouterr().err


def test_the_server_ends_with_its_block_and_takes_its_children_along():
    with ForkServer() as server:
        child = server.start(hang)
        child.pipe.read(4)
    with child.pipe, pytest.raises(ProcessLookupError):
        os.kill(child.process_id, 0)


def test_a_server_that_died_is_told():
    with ForkServer() as server:
        server._process.kill()
        server._process.wait()
        with pytest.raises((RuntimeError, OSError)):
            server.start(report)
