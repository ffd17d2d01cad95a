"""Ask PyPI whether anything this environment holds has a known vulnerability.

pip-audit asks PyPI's JSON interface, one request for each package and version. A mirror that has no
such interface answers "not found", and no network does not answer: then nothing was audited, which
is told, and is no failure of the project; with `--strict` it is one, and so is any single package
that was not audited. A vulnerability always is, unless WAIVED tells why not, and so is an audit
that cannot be made because pip-audit itself is missing or broken.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence

# Identifier of a vulnerability: why it does not concern us, and when to look again.
WAIVED: dict[str, str] = {}

TIMEOUT_S = 300

# What stands in a traceback of pip-audit's when it could not ask; any other one is a fault of it.
UNREACHABLE = ("ConnectionError", "Max retries", "Timeout", "timed out")

# Tools of the environment itself, of the version that Python brought along.
NOT_OURS = ("pip", "setuptools", "trio-p2p")


def main(arguments: Sequence[str] = ()) -> int:
    strict = "--strict" in arguments
    if importlib.util.find_spec("pip_audit") is None:
        print("pip-audit is not installed: it is part of the extra `check`")
        return 1
    waivers = [option for name in WAIVED for option in ("--ignore-vuln", name)]
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, *waivers], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _not_audited("PyPI does not answer", strict=strict)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last_line = (done.stderr.splitlines() or [""])[-1]
        reached = not any(word in done.stderr for word in UNREACHABLE)
        if "Traceback" in done.stderr and reached:
            print(f"pip-audit failed: {last_line}")
            return 1
        return _not_audited(f"PyPI could not be asked: {last_line}", strict=strict)
    ours = [each for each in found if each["name"] not in NOT_OURS]
    audited = [each for each in ours if "skip_reason" not in each]
    vulnerable = [each for each in audited if each["vulns"]]
    for package in vulnerable:
        for each in package["vulns"]:
            mended = ", ".join(each["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {each['id']}, mended in {mended}")
    if not audited:
        return _not_audited(
            "PyPI's JSON interface knows no package of ours (a mirror?)", strict=strict
        )
    print(f"{len(audited)} of {len(ours)} packages audited, {len(vulnerable)} vulnerable")
    skipped = [each["name"] for each in ours if "skip_reason" in each]
    if skipped:
        print("not audited:", ", ".join(sorted(skipped)))
    return 1 if vulnerable or (skipped and strict) else 0


def _not_audited(reason: str, *, strict: bool) -> int:
    print(f"NOT AUDITED: {reason}. Whether anything is vulnerable is not known.")
    return 1 if strict else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
