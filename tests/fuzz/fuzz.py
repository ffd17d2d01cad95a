"""Fuzz one target, or all in turn, with atheris: `fuzz.py [--seconds N] [--keep] [TARGET ...]`.

It starts from the kept corpus. What reaches something new goes to build/fuzz; with --keep, what of
that leads where nothing in the kept corpus does goes into it. An input that breaks something is
left in build/fuzz, and printed: `fuzz.py --replay FILE TARGET` runs it again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import corpus
import targets

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
# Slower than this or larger than that is a finding.
TIMEOUT_S = 10
MEMORY_MIB = 1_024


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
    return subprocess.run([*_command(name), *options]).returncode


def _command(name: str) -> list[str]:
    return [sys.executable, __file__, "--in-process", name]


def _fuzz_in_process(name: str, options: list[str]) -> None:
    import atheris

    # Only now, that their branches are seen.
    for module in [each for each in sys.modules if each.startswith(("trio_p2p", "targets"))]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["trio_p2p", "targets"]):
        import targets as instrumented

    # libFuzzer runs its first argument, as a command, where it merges.
    atheris.Setup([shlex.join(_command(name)), *options], instrumented.TARGETS[name])
    atheris.Fuzz()


def _keep(name: str) -> None:
    """Keep what was found that leads to code which nothing kept leads to."""
    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(corpus.kept(name)):
            Path(directory, str(number)).write_bytes(data)
        # How often a place is passed does not count, only that it is.
        merging = ["-merge=1", "-use_counters=0", directory, str(BUILD / name)]
        subprocess.run([*_command(name), *merging], check=True, capture_output=True)
        for path in Path(directory).iterdir():
            corpus.keep(name, path.read_bytes())


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
