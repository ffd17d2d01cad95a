"""Resolvers that know what both sides started from."""

import pytest
from loopback import Pair

from trio_p2p import CollectionConfiguration, local_wins, merge_fields, remote_wins


async def conflict(pair: Pair, mine: object, theirs: object, resolver: object) -> None:
    """Both sides get a document, edit it apart, and resolve that here."""
    settings = {"collections": {pair.mine: CollectionConfiguration(conflict_resolver=resolver)}}
    await pair.mine.put("a", {"name": "Apple", "price": 1, "stock": 1})
    await pair.replicate(**settings)
    await pair.theirs.put("a", theirs)
    await pair.mine.put("a", mine)
    run = await pair.replicate(**settings)
    assert run.statistics.conflicts_resolved == 1
    await pair.assert_equal()


async def test_fields_changed_on_different_sides_are_both_kept(pair, autojump_clock):
    mine = {"name": "Apple", "price": 2, "stock": 1}
    theirs = {"name": "Apple", "price": 1, "stock": 5}
    await conflict(pair, mine, theirs, merge_fields)
    assert pair.theirs.get("a").body == {"name": "Apple", "price": 2, "stock": 5}


async def test_a_resolver_is_told_what_both_sides_started_from(pair, autojump_clock):
    told = []

    def remember(conflict):
        told.append(conflict.base.body)
        return conflict.local

    await conflict(pair, {"n": 1}, {"n": 2}, remember)
    assert told == [{"name": "Apple", "price": 1, "stock": 1}]


@pytest.mark.parametrize(("resolver", "kept"), [(local_wins, "mine"), (remote_wins, "theirs")])
async def test_one_side_always_wins_where_that_is_asked_for(pair, resolver, kept, autojump_clock):
    await conflict(pair, {"by": "mine"}, {"by": "theirs"}, resolver)
    assert pair.theirs.get("a").body == {"by": kept}
