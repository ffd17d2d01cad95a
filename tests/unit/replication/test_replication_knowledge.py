"""What a peer is known to have."""

import pytest

from trio_p2p import limits
from trio_p2p.ids import DocumentID, SourceID
from trio_p2p.model.version import TreeRevisionID, Version
from trio_p2p.replication.knowledge import NoKnowledge, RemoteKnowledge
from trio_p2p.testing.databases import open_test_database

A, B = DocumentID("a"), DocumentID("b")
ANN = SourceID(b"a" * 16)
FIRST, SECOND = Version(2**50, ANN), Version(2**50 + 1, ANN)
TREE = TreeRevisionID.parse("1-aa")


@pytest.fixture
async def engine(tmp_path):
    async with open_test_database(tmp_path / "db") as database:
        yield database.engine


@pytest.fixture
def knowledge():
    return RemoteKnowledge(1, 1)


def known(engine, knowledge, document_id):
    with engine.read() as txn:
        return knowledge.of(txn, document_id)


async def test_nothing_is_known_at_first(engine, knowledge):
    assert known(engine, knowledge, A) is None


async def test_what_was_noted_is_known_at_once_and_by_this_session_alone(engine, knowledge):
    knowledge.note(A, FIRST)
    assert known(engine, knowledge, A) == FIRST
    assert known(engine, knowledge, B) is None
    assert known(engine, RemoteKnowledge(1, 1), A) is None


@pytest.mark.parametrize("revision_id", [FIRST, TREE])
async def test_what_was_stored_is_known_to_later_sessions_of_this_peer(
    engine, knowledge, revision_id
):
    knowledge.note(A, revision_id)
    noted = knowledge.take_noted()
    await engine.write(lambda txn: knowledge.store_noted(txn, noted))
    knowledge.forget_noted(noted)
    assert known(engine, knowledge, A) == revision_id
    assert known(engine, RemoteKnowledge(1, 1), A) == revision_id
    assert known(engine, RemoteKnowledge(2, 1), A) is None
    assert known(engine, RemoteKnowledge(1, 2), A) is None
    assert knowledge.take_noted() == {}


async def test_what_was_noted_while_older_knowledge_was_stored_stays_noted(engine, knowledge):
    knowledge.note(A, FIRST)
    knowledge.note(B, FIRST)
    noted = knowledge.take_noted()
    knowledge.note(A, SECOND)
    await engine.write(lambda txn: knowledge.store_noted(txn, noted))
    knowledge.forget_noted(noted)
    assert known(engine, knowledge, A) == SECOND
    assert knowledge.take_noted() == {A: SECOND}


async def test_what_came_with_a_revision_takes_the_place_of_what_was_noted(engine, knowledge):
    knowledge.note(A, FIRST)
    await engine.write(lambda txn: knowledge.store(txn, A, SECOND))
    knowledge.stored(A)
    assert known(engine, knowledge, A) == SECOND
    assert knowledge.take_noted() == {}


async def test_of_several_revisions_in_one_batch_the_last_one_is_known(engine):
    knowledge = NoKnowledge()
    for revision_id in (FIRST, SECOND):
        await engine.write(lambda txn, r=revision_id: knowledge.store(txn, A, r))
    for _ in range(2):
        knowledge.stored(A)
        assert known(engine, knowledge, A) == SECOND


async def test_of_a_peer_that_nothing_names_the_store_remembers_nothing(engine, monkeypatch):
    monkeypatch.setattr(limits, "NOTED_DOCUMENTS_MAX", 2)
    knowledge = NoKnowledge()
    await engine.write(lambda txn: knowledge.store(txn, A, FIRST))
    assert known(engine, knowledge, A) is None
    knowledge.stored(A)
    assert known(engine, knowledge, A) == FIRST
    for document_id in (B, DocumentID("c")):
        knowledge.note(document_id, FIRST)
    noted = knowledge.take_noted()
    assert noted == {}
    assert known(engine, knowledge, A) is None
    assert known(engine, knowledge, B) == FIRST
    assert known(engine, NoKnowledge(), B) is None
