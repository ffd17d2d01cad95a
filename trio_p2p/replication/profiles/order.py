"""Keeps the lists of changes that a peer sends in the order of its feed."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from trio_p2p.peer import Peer

_LIST_BEGINNING: Final = b"Profile\0changes\0"


class ListOrder:
    """Holds lists back until those that began before them have come.

    Messages of several frames take turns, so a short list comes to its end before a longer one that
    was sent first. But their order is that of the feed, and tells where its end is.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._waiting: list[tuple[int, Callable[[], None]]] = []

    def add(self, number: int, handle: Callable[[], None]) -> None:
        """Take a list that has come; `number` is that of its request."""
        heappush(self._waiting, (number, handle))

    def hand_on(self) -> None:
        """Handle the lists whose turn it is: to be called whenever a request has come."""
        while self._waiting and not self._is_one_before(self._waiting[0][0]):
            _, handle = heappop(self._waiting)
            handle()

    def _is_one_before(self, number: int) -> bool:
        """Whether a list that began before this request is still on its way."""
        return any(
            other < number and _LIST_BEGINNING in beginning
            for other, beginning in self._peer.unfinished_requests()
        )
