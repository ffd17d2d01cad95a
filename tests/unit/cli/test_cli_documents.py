"""The commands that work on one database."""

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from trio_p2p import limits
from trio_p2p.cli import main


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "shop.p2p")


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    return result


def lines(*documents: object) -> bytes:
    return b"".join(orjson.dumps(document) + b"\n" for document in documents)


def test_a_document_can_be_put_read_and_deleted(database: str) -> None:
    put = orjson.loads(run("put", database, "a", '{"n": 1}').stdout)
    assert (put["_id"], put["sequence"], put["deleted"]) == ("a", 1, False)
    assert run("get", database, "a").stdout == '{"_id":"a","n":1}\n'
    assert orjson.loads(run("ls", database, "--json").stdout) == put
    assert orjson.loads(run("delete", database, "a").stdout)["deleted"] is True
    assert "there is no such document" in run("get", database, "a", status=1).stderr
    assert run("ls", database).stdout == ""


def test_a_collection_is_made_by_writing_to_it(database: str) -> None:
    missing = run("ls", database, status=1)
    assert "put, import, sync and listen make a new database" in missing.stderr
    run("put", database, "a", "{}", "--collection", "shop.notes")
    assert run("ls", database, "--collection", "shop.notes").stdout == "a\n"
    assert run("ls", database).stdout == ""
    assert "no such collection" in run("ls", database, "--collection", "x", status=1).stderr


@pytest.mark.parametrize(
    ("document_id", "body"), [("a", "nope"), ("a", "[]"), ("_a", "{}"), ("a", '{"_rev": "1-a"}')]
)
def test_what_cannot_be_stored_is_told(database: str, document_id: str, body: str) -> None:
    result = run("put", database, document_id, body, status=1)
    assert result.stderr.startswith("Error: ")
    assert result.stdout == ""


def test_info_tells_what_a_database_is_and_holds(database: str) -> None:
    run("put", database, "a", "{}")
    run("put", database, "b", "{}", "--collection", "notes")
    facts = orjson.loads(run("info", database, "--json").stdout)
    assert facts["name"] == "shop"
    assert facts["collections"] == [
        {"name": "_default", "count": 1, "last_sequence": 1},
        {"name": "notes", "count": 1, "last_sequence": 1},
    ]
    assert facts["bytes_used"] > 0
    text = run("info", database).stdout
    assert facts["id"] in text
    assert facts["source_id"] in text
    assert "notes: 1 document, last sequence 1" in text


def test_an_export_is_in_order_and_imports_again(database: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    count = limits.IMPORT_BATCH_DOCUMENTS + 10
    documents = [{"_id": f"d{number:04}", "n": number} for number in range(count)]
    source.write_bytes(lines(*reversed(documents)) + b"\n")
    result = run("import", database, str(source), "--json")
    assert orjson.loads(result.stdout) == {"documents_imported": count}
    assert run("export", database, str(copy)).stderr == f"Exported {count:,} documents.\n"
    assert copy.read_bytes() == lines(*documents) == run("export", database).stdout_bytes


@pytest.mark.parametrize(
    "bad", [b"nope", b'{"n": 1}', b"[]", b'{"_id": "_x"}', b'{"_id": "x", "_rev": 1}']
)
def test_a_bad_line_is_named_and_what_stands_before_it_stays(
    database: str, tmp_path: Path, bad: bytes
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines({"_id": "a"}) + b"\n" + bad + b"\n" + lines({"_id": "b"}))
    message = run("import", database, str(source), status=1).stderr
    assert "line 3: " in message
    assert "1 document before it stay imported" in message
    assert run("ls", database).stdout == "a\n"


def test_a_file_that_cannot_be_written_is_told_by_its_name(database: str, tmp_path: Path) -> None:
    run("put", database, "a", "{}")
    missing = tmp_path / "missing" / "out.jsonl"
    assert str(missing) in run("export", database, str(missing), status=1).stderr
