"""How many examples property tests try: HYPOTHESIS_PROFILE is dev (default), ci or nightly.

And no keyring: see below.
"""

import os

from hypothesis import HealthCheck, settings

SLOW_START = [HealthCheck.too_slow]

settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=SLOW_START)
settings.register_profile(
    "ci",
    max_examples=200,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=SLOW_START,
)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=2_000)

DEFAULT = "ci" if os.environ.get("CI") == "true" else "dev"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", DEFAULT))

# Tests, and the programs they start, leave the keyring of whoever runs them alone.
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"
