"""Fuzz one target, or all in turn, with atheris: `fuzz.py [--seconds N] [--keep] [TARGET ...]`.

It starts from the kept corpus. What reaches something new goes to build/fuzz; with --keep, the
shortest of that go into the kept corpus. An input that breaks something is left in build/fuzz, and
printed: `fuzz.py --replay FILE TARGET` runs it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import corpus
import targets

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
# Slower than this or larger than that is a finding.
TIMEOUT_S = 10
MEMORY_MIB = 1_024
KEPT_EACH_TIME = 30


def _fuzz(name: str, seconds: int) -> int:
    """Fuzz a target in a process of its own: libFuzzer ends the process that it runs in."""
    found = BUILD / name
    found.mkdir(parents=True, exist_ok=True)
    kept = corpus.DIRECTORY / name
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={targets.INPUT_BYTES_MAX}",
        f"-timeout={TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={found}-broken-",
        "-print_final_stats=1",
        str(found),
        str(kept),
    ]
    return subprocess.run([sys.executable, __file__, "--in-process", name, *options]).returncode


def _fuzz_in_process(name: str, options: list[str]) -> None:
    import atheris

    # Only now, that their branches are seen.
    for module in [each for each in sys.modules if each.startswith(("trio_p2p", "targets"))]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["trio_p2p", "targets"]):
        import targets as instrumented

    atheris.Setup([name, *options], instrumented.TARGETS[name])
    atheris.Fuzz()


def _keep(name: str) -> None:
    """Keep the shortest of what was found."""
    found = {path.read_bytes() for path in (BUILD / name).iterdir()}
    for data in sorted(found - set(corpus.kept(name)), key=len)[:KEPT_EACH_TIME]:
        corpus.keep(name, data)


def main() -> int:
    if sys.argv[1:2] == ["--in-process"]:
        _fuzz_in_process(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=[])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="add what is new to the kept corpus")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    options = parser.parse_args()
    chosen = options.targets or list(targets.TARGETS)
    if options.replay is not None:
        for name in chosen:
            targets.TARGETS[name](options.replay.read_bytes())
        return 0
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if _fuzz(name, options.seconds):
            failed.append(name)
        elif options.keep:
            _keep(name)
    print("broken:", ", ".join(failed) or "nothing")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
