"""Run a Trio loop step by step from synchronous code.

Hypothesis calls the rules of a state machine as plain functions; this lets them call async ones in
one loop that lives as long as the machine. Time is mocked and jumps to the next deadline whenever
every task is blocked, so nothing here waits for a real clock.
"""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio
from trio.testing import MockClock

T = TypeVar("T")

# Longer than any step of a test: only a deadlock of the loop itself gets here.
_STALL_S = 60


class TrioDriver:
    """One Trio loop, advanced only while one of these methods runs.

    `nursery` is for tasks that stay in the background between the calls. One that crashes surfaces
    in whichever call comes next.
    """

    nursery: trio.Nursery

    def __init__(self) -> None:
        """Start the loop."""
        self._ticks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._started = False
        self._ended = False
        self._outcome: Any = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._ticks.put,
            done_callback=self._note_end,
            host_uses_signal_set_wakeup_fd=True,
            clock=MockClock(autojump_threshold=0),
        )
        self._advance(lambda: self._started)

    def run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call an async function in the loop; return or raise what it does."""
        self._check()
        call = _Call(function, args)
        self.nursery.start_soon(call.run)
        self._advance(lambda: call.done)
        return call.result()

    def settle(self) -> None:
        """Let every background task go on until all are blocked and no deadline is near."""
        self.run(trio.testing.wait_all_tasks_blocked)

    def close(self) -> None:
        """Cancel the background tasks and end the loop. Raises what they raise."""
        if not self._ended:
            self.nursery.cancel_scope.cancel(reason="the driver was closed")
        while not self._ended:
            self._tick()
        self._raise_failure()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            self._started = True
            await trio.sleep_forever()

    def _note_end(self, outcome: object) -> None:
        self._ended, self._outcome = True, outcome

    def _raise_failure(self) -> None:
        """Raise what ended the loop, once."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.unwrap()

    def _check(self) -> None:
        if self._ended:
            self._raise_failure()
            raise RuntimeError("the loop has ended")

    def _advance(self, done: Callable[[], bool]) -> None:
        while not done():
            self._check()
            self._tick()

    def _tick(self) -> None:
        self._ticks.get(timeout=_STALL_S)()


class _Call(Generic[T]):
    """An async call and what came of it."""

    def __init__(self, function: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> None:
        self._function = function
        self._args = args
        self._values: list[T] = []
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        return bool(self._values) or self._error is not None

    async def run(self) -> None:
        try:
            self._values.append(await self._function(*self._args))
        except Exception as exc:  # A guard: the failure belongs to the caller, not to the loop.
            self._error = exc

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._values[0]
