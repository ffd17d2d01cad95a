"""Asking a user's filter about a document."""

import warnings
from collections.abc import Awaitable
from typing import Any

import pytest
import trio

from trio_p2p import limits
from trio_p2p.errors import CallbackError
from trio_p2p.replication.filters import Filter
from trio_p2p.replication.status import DocumentFlags
from trio_p2p.testing.databases import open_test_database


@pytest.fixture
async def notes(tmp_path):
    async with open_test_database(tmp_path / "db") as database:
        yield database.default_collection


async def ask(function, document):
    verdict = Filter(function, document.collection).ask(document.id, document.stored)
    return await verdict if isinstance(verdict, Awaitable) else verdict


async def test_a_filter_gets_the_document_and_whether_it_was_deleted(notes):
    asked = []
    documents = [await notes.put("a", {"n": 1}), await notes.delete("a")]
    for document in documents:
        assert await ask(lambda *told: asked.append(told) or True, document)
    flags = [DocumentFlags.NONE, DocumentFlags.DELETED]
    assert asked == list(zip(documents, flags, strict=True))
    assert [document.sequence for document, _ in asked] == [1, 2]


@pytest.mark.parametrize(("answer", "verdict"), [("yes", True), (0, False), (None, False)])
async def test_what_a_filter_returns_counts_as_in_an_if(notes, answer: Any, verdict):
    async def answer_later(document, flags):
        await trio.lowlevel.checkpoint()
        return answer

    document = await notes.put("a", {})
    for function in (lambda document, flags: answer, answer_later):
        assert await ask(function, document) is verdict


async def test_a_filter_that_raises_is_told_apart_from_one_that_refuses(notes):
    async def fail_later(document, flags):
        await trio.lowlevel.checkpoint()
        raise LookupError("mine")

    document = await notes.put("a", {})
    for function in (lambda document, flags: document["nothing"], fail_later):
        with pytest.raises(CallbackError) as caught:
            await ask(function, document)
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.facts == {"document_id": "a"}


async def test_a_filter_that_takes_too_long_is_given_up(notes, autojump_clock):
    async def never(document, flags):
        await trio.sleep_forever()

    document = await notes.put("a", {})
    with pytest.raises(CallbackError) as caught:
        await ask(never, document)
    assert isinstance(caught.value.__cause__, trio.TooSlowError)
    assert trio.current_time() == pytest.approx(limits.FILTER_TIMEOUT_S, abs=1)


async def test_without_waiting_an_async_filter_tells_nothing_and_leaves_nothing_behind(notes):
    begun = []

    async def answer_later(document, flags):
        begun.append(document)
        await trio.lowlevel.checkpoint()
        return True

    document = await notes.put("a", {})
    with warnings.catch_warnings(record=True) as caught:
        verdict = Filter(answer_later, notes).ask_now(document.id, document.stored)
    assert (verdict, begun, caught) == (None, [], [])
    for answer in (True, False):
        asked = Filter(lambda *_, answer=answer: answer, notes)
        assert asked.ask_now(document.id, document.stored) is answer
