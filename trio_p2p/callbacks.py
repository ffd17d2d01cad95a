"""Functions of the program's that are called here: filters, resolvers, authenticators."""

from __future__ import annotations

import trio


def failure_of(raised: BaseException) -> Exception | None:
    """What made such a function fail; None if it was only cancelled.

    One that is cut off may do both: what its tasks raise meanwhile leaves its nursery in a group
    with Cancelled. Without a nursery it takes the place of Cancelled, and so it does here.
    """
    if isinstance(raised, BaseExceptionGroup):
        _, others = raised.split(trio.Cancelled)
        return others if isinstance(others, Exception) else None
    return raised if isinstance(raised, Exception) else None
