"""`changes` and `conflicts`: what happened to documents, and what is undecided."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import orjson
import pytest
import trio
from click.testing import CliRunner, Result

from trio_p2p import open_database
from trio_p2p.cli import main
from trio_p2p.ids import SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.store import conflicts, remotes

BOB = SourceID(b"b" * 16)


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "shop.p2p")


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    return result


def json_lines(text: str) -> list[dict]:
    return [orjson.loads(line) for line in text.splitlines()]


def test_changes_tells_the_latest_change_of_each_document(database: str) -> None:
    for document_id in ("a", "b", "a"):
        run("put", database, document_id, "{}")
    run("delete", database, "b")
    rows = [line.split("\t") for line in run("changes", database).stdout.splitlines()]
    assert [(row[0], row[1], row[3:]) for row in rows] == [
        ("3", "a", []),
        ("4", "b", ["deleted"]),
    ]
    told = json_lines(run("changes", database, "--json").stdout)
    assert [change["version"] for change in told] == [row[2] for row in rows]
    assert json_lines(run("changes", database, "--json", "--since", "3").stdout) == told[1:]
    assert run("changes", database, "--since", "4").stdout == ""


def test_changes_of_another_collection_are_apart(database: str) -> None:
    run("put", database, "a", "{}", "--collection", "notes")
    assert run("changes", database).stdout == ""
    assert "\ta\t" in run("changes", database, "--collection", "notes").stdout


def test_following_goes_on_until_it_is_interrupted(database: str) -> None:
    run("put", database, "a", "{}")
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        result = run("changes", database, "--follow", status=130)
    finally:
        timer.cancel()
    assert "\ta\t" in result.stdout


def make_conflicts(path: str) -> None:
    """`a`: edited on both sides; `b`: deleted here; `c`: none."""

    async def main() -> None:
        async with open_database(path) as db:
            notes = db.default_collection
            base = await notes.put("a", {"n": 1})
            number = notes.number

            def learn(txn):
                remotes.set_known(txn, remotes.number(txn, "peer"), number, "a", base.version)

            await db.engine.write(learn)
            await notes.put("a", {"n": 2})
            for name in ("b", "c"):
                await notes.put(name, {})
            await notes.delete("b")

            def conflict(txn):
                for name in ("a", "b"):
                    version = Version(base.version.time + 1, BOB)
                    previous = (base.version,) if name == "a" else ()
                    vector = VersionVector(version, (), previous)
                    conflicts.add(txn, number, name, Revision(vector, encode_body({"n": 3})))

            await db.engine.write(conflict)

    trio.run(main)


def test_conflicts_tells_the_sides_of_each(database: str) -> None:
    make_conflicts(database)
    rows = [line.split("\t") for line in run("conflicts", database).stdout.splitlines()]
    assert [row[0] for row in rows] == ["a", "b"]
    assert rows[1][1] == "deleted"
    first, second = json_lines(run("conflicts", database, "--json").stdout)
    assert {side: first[side]["body"] for side in ("local", "remote", "base")} == {
        "local": {"n": 2},
        "remote": {"n": 3},
        "base": {"n": 1},
    }
    assert [first["local"]["version"], first["remote"]["version"]] == rows[0][1:]
    assert second["_id"] == "b"
    assert (second["local"], second["base"]) == (None, None)
    assert second["remote"]["body"] == {"n": 3}


def test_where_nothing_is_undecided_nothing_is_told(database: str) -> None:
    run("put", database, "a", "{}")
    assert run("conflicts", database).stdout == ""


@pytest.mark.parametrize("command", ["changes", "conflicts"])
def test_a_database_that_is_missing_is_not_made(database: str, command: str) -> None:
    run(command, database, status=1)
    assert not Path(database).exists()
