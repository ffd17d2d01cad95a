"""Two processes edit the same documents while the network between them fails all the time.

For a minute; `nox -s soak` takes ten minutes. A failure prints the seed: TRIO_P2P_SEED repeats
what becomes of each connection and what is edited, though not how they fall together.
"""

import os
import random

from trio_p2p.testing import soak

SECONDS = float(os.environ.get("TRIO_P2P_SOAK_S", "60"))
# A replicator keeps document events until there are 10,000, and LMDB the pages of its largest
# transaction: each some 1 MiB, once.
GROWTH_BYTES_MAX = 3 * 2**20


async def test_peers_are_equal_after_all_and_leave_nothing_behind(tmp_path):
    seed = int(os.environ.get("TRIO_P2P_SEED", random.SystemRandom().randrange(2**32)))
    print(f"TRIO_P2P_SEED={seed}")
    report = await soak.run(tmp_path, seconds=SECONDS, seed=seed)
    print(report.faults)
    listener, replicator = report.listener, report.replicator
    for name, peer in (("listener", listener), ("replicator", replicator)):
        print(f"{name}: {peer.memory_growth_bytes / 2**20:+.2f} MiB, {peer.edits} edits")
    assert listener.documents == replicator.documents
    assert min(listener.edits, replicator.edits) > SECONDS
    assert replicator.resolved > 0
    assert all(report.faults[fate] for fate in ("cut", "reset", "half-close", "hold-up"))
    for peer in (listener, replicator):
        assert peer.left_open == []
        assert peer.tasks_left == 0
        assert peer.memory_growth_bytes < GROWTH_BYTES_MAX, peer.memory_bytes
