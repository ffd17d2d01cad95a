"""What routes promise of a document once nothing moves on them any more.

Nodes are equal where documents go both ways between them and a conflict's outcome gets back: where
one of two nodes pulls and pushes, or each pulls from the other. Where a document goes one way only,
who pulls it has it, or what it was decided against by; who is pushed it has it too, unless the two
revisions conflict, which nobody resolves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from trio_p2p.testing.exchanges import Route
from trio_p2p.testing.nodes import Name, Node


class Delivery(NamedTuple):
    """One node's current revision gets to another; unless `resolving`, conflicts may stop it."""

    source: Node
    target: Node
    resolving: bool


def deliveries(routes: Iterable[Route], name: Name) -> Iterator[Delivery]:
    """What these routes carry of a document."""
    for route in routes:
        if route.pushes(name):
            yield Delivery(route.active, route.passive, resolving=False)
        if route.pulls(name):
            yield Delivery(route.passive, route.active, resolving=True)


def groups(nodes: Iterable[Node], routes: Iterable[Route], name: Name) -> list[list[Node]]:
    """The nodes that end with the same revision of a document; each is in one group."""
    carried = set(deliveries(routes, name))
    found = [[node] for node in nodes]
    pairs = combinations([node for group in found for node in group], 2)
    for first, second in pairs:
        if _are_joined(carried, first, second):
            joined = [group for group in found if first in group or second in group]
            found = [group for group in found if group not in joined]
            found.append([node for group in joined for node in group])
    return found


def _are_joined(carried: set[Delivery], first: Node, second: Node) -> bool:
    there, back = Delivery(first, second, True), Delivery(second, first, True)
    return (
        (there in carried and back in carried)
        or (there in carried and back._replace(resolving=False) in carried)
        or (back in carried and there._replace(resolving=False) in carried)
    )
