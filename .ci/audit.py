"""Ask PyPI whether anything this environment holds has a known vulnerability.

pip-audit asks PyPI's JSON interface, one request for each package and version. A mirror that has no
such interface answers "not found", and no network does not answer: then nothing was audited, which
is told, and is no failure of the project. A vulnerability is one, unless WAIVED tells why not.
"""

from __future__ import annotations

import json
import subprocess
import sys

# Identifier of a vulnerability: why it does not concern us, and when to look again.
WAIVED: dict[str, str] = {}

TIMEOUT_S = 300

# Tools of the environment itself, of the version that Python brought along.
NOT_OURS = ("pip", "setuptools", "trio-p2p")


def main() -> int:
    waivers = [option for name in WAIVED for option in ("--ignore-vuln", name)]
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, *waivers], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        print("NOT AUDITED: PyPI does not answer.")
        return 0
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print("NOT AUDITED: PyPI could not be asked.", (done.stderr.splitlines() or [""])[-1])
        return 0
    ours = [each for each in found if each["name"] not in NOT_OURS]
    audited = [each for each in ours if "skip_reason" not in each]
    vulnerable = [each for each in audited if each["vulns"]]
    for package in vulnerable:
        for each in package["vulns"]:
            mended = ", ".join(each["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {each['id']}, mended in {mended}")
    if not audited:
        print("NOT AUDITED: PyPI's JSON interface knows none of our packages (a mirror?).")
        return 0
    print(f"{len(audited)} of {len(ours)} packages audited, {len(vulnerable)} vulnerable")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
