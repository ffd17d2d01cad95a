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

    def run(printed, *arguments, errors="ConnectionError: no network\n", installed=True):
        def answer(command, **options):
            if isinstance(printed, Exception):
                raise printed
            return subprocess.CompletedProcess(command, 1, printed, errors)

        monkeypatch.setattr(script.subprocess, "run", answer)
        monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: installed or None)
        return script.main(arguments)

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
@pytest.mark.parametrize("arguments", [(), ("--strict",)])
def test_that_nobody_could_be_asked_is_told_and_fails_where_an_audit_is_asked_for(
    audit, capsys, printed, arguments
):
    assert audit(printed, *arguments) == len(arguments)
    assert capsys.readouterr().out.startswith("NOT AUDITED")


def test_who_was_not_audited_among_others_is_told(audit, capsys):
    assert audit(found(SAFE, UNKNOWN)) == 0
    assert "not audited: cbor2" in capsys.readouterr().out
    assert audit(found(SAFE, UNKNOWN), "--strict") == 1
    assert audit(found(SAFE, PIP), "--strict") == 0


def test_an_audit_that_cannot_be_made_fails(audit, capsys):
    assert audit("", errors="Traceback (most recent call last):\nKeyError: 'x'\n") == 1
    assert "pip-audit failed: KeyError" in capsys.readouterr().out
    assert audit(found(SAFE), installed=False) == 1
    assert "not installed" in capsys.readouterr().out
