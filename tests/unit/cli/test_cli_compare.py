"""Comparing two databases."""

from pathlib import Path

import orjson
import pytest

from trio_p2p import open_database
from trio_p2p.cli.compare import compare_databases, open_both


async def make(path: Path, *ids: str, collection: str = "_default") -> None:
    async with open_database(path) as database:
        documents = await database.create_collection(collection)
        for document_id in ids:
            await documents.put(document_id, {"id": document_id})


async def differences(
    first: Path, second: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    capsys.readouterr()
    async with open_both(first, second) as (one, other):
        equal = await compare_databases(one, other, as_json=True)
    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert equal == (not lines)
    return {f"{line['collection']}/{line['_id']}": line["difference"] for line in lines}


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "first.p2p", tmp_path / "second.p2p"


async def test_a_document_that_one_side_lacks_is_told(
    paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    await make(paths[0], "a", "z")
    await make(paths[1], "m")
    assert await differences(*paths, capsys) == {
        "_default/a": "only in the first",
        "_default/m": "only in the second",
        "_default/z": "only in the first",
    }


async def test_two_edits_with_one_outcome_differ_by_version(
    paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    await make(paths[0], "a")
    await make(paths[1], "a")
    assert await differences(*paths, capsys) == {"_default/a": "version"}


async def test_two_bodies_of_one_document_are_told(
    paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    await make(paths[0], "a")
    async with open_database(paths[1]) as database:
        await database.default_collection.put("a", {"other": True})
    assert await differences(*paths, capsys) == {"_default/a": "version and body"}


async def test_a_collection_that_one_side_lacks_counts_as_empty(
    paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    await make(paths[0], "a", collection="notes")
    await make(paths[1], collection="empty")
    assert await differences(*paths, capsys) == {"notes/a": "only in the first"}


async def test_a_deleted_document_counts_as_absent(
    paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    await make(paths[0], "a")
    await make(paths[1])
    async with open_database(paths[0]) as database:
        await database.default_collection.delete("a")
    assert await differences(*paths, capsys) == {}
