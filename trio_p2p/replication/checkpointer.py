"""Saves the checkpoint of one collection: at the peer first, then here.

If we crash in between, the copies disagree, and both sides fall back on what they agree on: slow,
but correct. The other order could skip revisions that the peer never stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from trio_p2p import limits
from trio_p2p.errors import PeerError, ReplicationError
from trio_p2p.replication.checkpoint import Checkpoint, RemoteSequences
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import HeldCheckpoint
from trio_p2p.store import checkpoints
from trio_p2p.store.transaction import WriteTransaction

logger = logging.getLogger(__name__)


class Checkpointer:
    """Knows what was saved and saves what changed since."""

    def __init__(
        self,
        link: Link,
        checkpoint_id: str,
        held: HeldCheckpoint,
        knowledge: RemoteKnowledge,
        *,
        now_s: Callable[[], int],
    ) -> None:
        self._link = link
        self._id = checkpoint_id
        self._revision = held.revision
        self._knowledge = knowledge
        self._now_s = now_s
        self.seen = 0
        """What the peer is known to have had counts up to this sequence: it has it still."""
        self._began_at = link.collection.last_sequence
        self.checkpoint, self._saved = self._agree(held)
        self.sequences = RemoteSequences(self.checkpoint.remote)

    @property
    def unsaved(self) -> int:
        """About how many documents were completed since the last save; 0 if nothing changed."""
        self.checkpoint.remote = self.sequences.reached
        if self.checkpoint == self._saved:
            return 0
        count = self.checkpoint.local.low_water - self._saved.local.low_water
        ours, before = self.checkpoint.remote, self._saved.remote
        if ours is not None and ours.isdecimal():
            count += int(ours) - (int(before) if before and before.isdecimal() else 0)
        return max(count, 1)

    def forget(self) -> None:
        """Start over with this peer: everything is offered again in both directions."""
        self.checkpoint = Checkpoint()
        self.seen = 0
        self.sequences = RemoteSequences(None)

    async def save(self) -> None:
        """Save what is done now; if the peer cannot do so for now, what is done later saves it too.

        Raises: PeerError, ConnectionLostError; ReplicationError, retryable, if others saved theirs
        each time; CollectionNotFoundError. Cancelling: the checkpoint saved before stays valid.
        """
        self.checkpoint.remote = self.sequences.reached
        saved = Checkpoint(self.checkpoint.local.copy(), self.checkpoint.remote)
        noted = self._knowledge.take_noted()
        body, seen = saved.to_json(self._now_s()), self._vouched_for()
        is_kept = await self._save_remotely(body)
        if not is_kept:
            # What the peer had when it stored its copy is less than what is written down now.
            seen = 0

        def job(txn: WriteTransaction) -> None:
            # One that is made anew under this name must not find what we say of the old one.
            txn.check_collection(self._link.number)
            self._knowledge.store_noted(txn, noted)
            checkpoints.set_local(txn, self._id, body, remote=self._knowledge.remote, seen=seen)

        await self._link.engine.write(job)
        if is_kept:
            self.seen = seen
        self._knowledge.forget_noted(noted)
        self._saved = saved

    def _vouched_for(self) -> int:
        """What `seen` is from now on: doubt remains until all from before this session is done."""
        is_done = max(self.seen, self.checkpoint.local.low_water) >= self._began_at
        return self._link.collection.last_sequence if is_done else self.seen

    async def _save_remotely(self, body: bytes) -> bool:
        """Whether the peer keeps it. It need not: of our copy, what both tell counts."""
        profile, index = self._link.profile, self._link.index
        for _ in range(limits.CHECKPOINT_ATTEMPTS_MAX):
            try:
                self._revision = await profile.set_checkpoint(index, self._id, self._revision, body)
                return True
            except PeerError as exc:
                if exc.retryable:
                    # All else may go on: a full disk keeps nobody from pulling.
                    logger.warning("a checkpoint could not be saved for now: %s", exc)
                    return False
                if exc.code != 409:
                    raise
            # Another replication between the same databases saved its own meanwhile.
            held = await profile.get_checkpoint(index, self._id)
            self._revision = held.revision if held else ""
        raise ReplicationError(
            "other replications were always faster to save the checkpoint",
            status=409,
            retryable=True,
        )

    def _agree(self, held: HeldCheckpoint) -> tuple[Checkpoint, Checkpoint]:
        """Where to start, and what counts as saved: what both copies agree on."""
        with self._link.engine.read() as txn:
            ours = checkpoints.local(txn, self._id)
            seen = checkpoints.seen(txn, self._id)
        if ours is None or not held.revision:
            return Checkpoint(), Checkpoint()
        mine, theirs = Checkpoint.from_json(ours), Checkpoint.from_json(held.body)
        claimed, last = max(mine.local.last, theirs.local.last), self._link.collection.last_sequence
        if claimed > last:
            # Its sequences were given to other documents, or will be.
            logger.warning(
                "%s has %d changes in %s, and a peer got %d: it was rolled back, and starts over",
                self._link.engine.path,
                last,
                self._link.collection.full_name,
                claimed,
            )
            return Checkpoint(), Checkpoint()
        agreed = mine.agreed(theirs)
        if agreed == mine:
            # Otherwise the peer was rolled back to before it had what we know it had.
            self.seen = seen
        return agreed, Checkpoint(agreed.local.copy(), agreed.remote)
