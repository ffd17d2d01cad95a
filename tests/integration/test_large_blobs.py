"""A blob between two processes, through connections that are cut on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "blobs.py"


def test_a_blob_is_whole_after_five_cuts_and_nothing_of_it_was_sent_twice(tmp_path):
    """The script fails unless what arrived is whole."""
    run = subprocess.run(
        [sys.executable, SCRIPT, "--mib", "24", "--small", "200", "--directory", tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    large, small = run.stdout.splitlines()
    assert "5 cuts, 6 connections, received 24.0 MiB" in large
    assert small.startswith("small: ")
