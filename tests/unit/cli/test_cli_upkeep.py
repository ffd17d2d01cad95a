"""The commands that keep a database in order."""

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from trio_p2p.cli import main


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = str(tmp_path / "shop.p2p")
    run("put", path, "a", '{"n": 1}')
    return path


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    return result


def test_compact_tells_what_it_dropped(database: str) -> None:
    nothing = {"bytes_freed": 0, "blobs_removed": 0, "blob_bytes_freed": 0}
    assert orjson.loads(run("compact", database, "--json").stdout) == nothing
    assert run("compact", database).stdout.startswith("Dropped 0 blobs of 0 bytes; 0 bytes of")


def test_a_backup_is_a_database_of_its_own(database: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.p2p")
    assert run("backup", database, copy).stderr == f"Copied to {copy}.\n"
    run("put", database, "b", "{}")
    assert run("export", copy).stdout == '{"_id":"a","n":1}\n'
    ids = [orjson.loads(run("info", path, "--json").stdout)["id"] for path in (database, copy)]
    assert ids[0] != ids[1]


def test_a_backup_replaces_nothing(database: str) -> None:
    result = run("backup", database, database, status=1)
    assert "there is something at the backup's path" in result.stderr


@pytest.mark.parametrize("command", [["compact"], ["backup", "x"]])
def test_a_database_that_is_missing_is_not_made(tmp_path: Path, command: list[str]) -> None:
    name, *others = command
    missing = tmp_path / "none.p2p"
    run(name, str(missing), *others, status=1)
    assert not missing.exists()
