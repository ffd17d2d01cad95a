"""The audit of our dependencies: what it fails for, and what it does not."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
SAFE = {"name": "trio", "version": "1", "vulns": []}
UNSAFE = {
    "name": "lmdb",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}],
}
UNKNOWN = {"name": "cbor2", "skip_reason": "Dependency not found on PyPI"}
PIP = UNSAFE | {"name": "pip"}


@pytest.fixture
def audit(monkeypatch):
    """The script, told that pip-audit prints this."""
    specification = importlib.util.spec_from_file_location("audit", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(printed):
        def answer(command, **options):
            if isinstance(printed, Exception):
                raise printed
            return subprocess.CompletedProcess(command, 1, printed, "no network\n")

        monkeypatch.setattr(script.subprocess, "run", answer)
        return script.main()

    return run


def found(*packages):
    return json.dumps({"dependencies": packages})


def test_a_vulnerability_fails_and_is_told(audit, capsys):
    assert audit(found(SAFE, UNSAFE, UNKNOWN)) == 1
    told = capsys.readouterr().out
    assert "lmdb 2: PYSEC-1, mended in 3" in told
    assert "2 of 3 packages audited" in told


def test_none_is_fine(audit, capsys):
    assert audit(found(SAFE, PIP)) == 0
    assert "1 of 1 packages audited" in capsys.readouterr().out


@pytest.mark.parametrize(
    "printed",
    ["", "Traceback", "{}", found(UNKNOWN, PIP), subprocess.TimeoutExpired("pip-audit", 300)],
)
def test_that_nobody_could_be_asked_is_told_and_no_failure(audit, capsys, printed):
    assert audit(printed) == 0
    assert "NOT AUDITED" in capsys.readouterr().out
