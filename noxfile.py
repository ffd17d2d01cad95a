"""Sessions: `nox -l` lists them, `nox -s NAME` runs one; `.ci/run` runs what CI runs."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "layers", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.11", "3.12", "3.13"]
# Single tests take longer here than pytest waits elsewhere before it shows where they hang.
PATIENT = ["-o", "faulthandler_timeout=7200"]
BENCHMARKS = ["one_shot", "store", "fairness", "blobs", "deltas", "many_peers"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole test suite."""
    session.install("-e", ".[demo,test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and the Trio rules that only flake8-async knows."""
    session.install("-e", ".[check]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    files = [
        str(path)
        for name in ("trio_p2p", "benchmarks", "examples")
        for path in Path(name).rglob("*.py")
    ]
    session.run("python", "-m", "flake8_async", "--disable", "ASYNC114,ASYNC9", *files)


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict."""
    session.install("-e", ".[check]")
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Who may import whom."""
    session.install("-e", ".[check]")
    session.run("lint-imports")


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what we depend on; fails where PyPI cannot be asked."""
    session.install("-e", ".[demo,test,check]")
    session.run("python", ".ci/audit.py", "--strict")


@nox.session
def convergence(session: nox.Session) -> None:
    """A million histories of the model, and long runs of the machines over whole peers."""
    session.install("-e", ".[demo,test]")
    session.run(
        "pytest",
        *PATIENT,
        "tests/stateful",
        *session.posargs,
        env={"HYPOTHESIS_PROFILE": "nightly", "TRIO_P2P_HISTORIES": "1000000"},
    )


@nox.session
def soak(session: nox.Session) -> None:
    """Two processes for ten minutes over a network that fails all the time."""
    session.install("-e", ".[demo,test]")
    session.run(
        "pytest",
        "-s",
        *PATIENT,
        "tests/simulation",
        *session.posargs,
        env={"TRIO_P2P_SOAK_S": "600"},
    )


@nox.session
def crash(session: nox.Session) -> None:
    """Kill a writing process 2,000 times, and damage 500 data files in each way."""
    session.install("-e", ".[demo,test]")
    session.run(
        "pytest",
        "-s",
        *PATIENT,
        "tests/integration/test_store_crash.py",
        "tests/integration/test_store_damage.py",
        *session.posargs,
        env={"TRIO_P2P_CRASH_ROUNDS": "2000", "TRIO_P2P_DAMAGE_FILES": "500"},
    )


@nox.session
def fuzz(session: nox.Session) -> None:
    """A minute for each target, and a minute of fire at a listener. See tests/fuzz/fuzz.py."""
    session.install("-e", ".[demo,test]", "atheris")
    session.run("python", "tests/fuzz/fuzz.py", *(session.posargs or ["--seconds", "60"]))
    session.run("python", "tests/fuzz/live.py", "--seconds", "60")


@nox.session
def bench(session: nox.Session) -> None:
    """Timings; see benchmarks/README.md. `nox -s bench -- store --rounds 3` runs one script."""
    session.install("-e", ".[demo]")
    name, *arguments = session.posargs or ["all"]
    for script in BENCHMARKS if name == "all" else [name]:
        session.run("python", f"benchmarks/{script}.py", *arguments)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as web pages, in build/docs; its examples are run first."""
    session.install("-e", ".[demo,test,docs]")
    session.run("pytest", "tests/docs", *session.posargs)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "build/docs")
