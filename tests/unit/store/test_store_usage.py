"""Files are closed once, and under nobody."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from trio_p2p.errors import StoreClosedError
from trio_p2p.store.usage import Usage


def test_closing_is_done_once_and_lets_nobody_in_any_more():
    usage, closed = Usage(), []
    with usage.using():
        pass
    for _ in range(2):
        usage.close(lambda: closed.append(True))
    assert closed == [True]
    with pytest.raises(StoreClosedError), usage.using():
        pass


def test_closing_waits_for_those_inside_even_if_they_fail():
    usage, events = Usage(), []
    inside, leave = threading.Event(), threading.Event()

    def use():
        with suppress(ValueError), usage.using():
            inside.set()
            leave.wait()
            events.append("left")
            raise ValueError

    def close():
        usage.close(lambda: events.append("closed"))

    threads = [threading.Thread(target=use), threading.Thread(target=close)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join()
    assert events == ["left", "closed"]
