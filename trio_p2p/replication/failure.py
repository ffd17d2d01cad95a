"""What ended a session, as one error for its user."""

from __future__ import annotations

from trio_p2p.errors import (
    ConnectionLostError,
    HandshakeError,
    PeerError,
    ReplicationError,
    TrioP2PError,
)
from trio_p2p.transport.base import CLOSE_ABNORMAL, CLOSE_GOING_AWAY, CLOSE_NORMAL


def replication_error(
    cause: TrioP2PError | BaseExceptionGroup[TrioP2PError], *, continuous: bool = False
) -> ReplicationError:
    """The error to raise from `cause`; of a group, the member that tells most counts.

    A lost connection is often but the consequence of something else in the group. A `continuous`
    replication can also wait for the network to change.
    """
    error = _most_telling(cause)
    if isinstance(error, ConnectionLostError) and error.code == CLOSE_GOING_AWAY:
        # A server that is restarted, or a system that cuts its connections: it comes back. So does
        # Couchbase Lite.
        return ReplicationError(str(error), status=CLOSE_ABNORMAL, retryable=True)
    retryable = error.retryable or (continuous and error.network_dependent)
    return ReplicationError(str(error), status=_status(error), retryable=retryable)


def _most_telling(cause: TrioP2PError | BaseExceptionGroup[TrioP2PError]) -> TrioP2PError:
    if isinstance(cause, TrioP2PError):
        return cause
    lost, others = cause.split(ConnectionLostError)
    chosen: BaseException = others or lost or cause
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    assert isinstance(chosen, TrioP2PError)
    return chosen


def _status(error: TrioP2PError) -> int | None:
    match error:
        case ConnectionLostError(code=code):
            # What was to be done is not done, in whatever peace the peer left. So does Couchbase
            # Lite.
            return CLOSE_GOING_AWAY if code == CLOSE_NORMAL else code
        case PeerError(status=status):
            return status
        case HandshakeError(status=status) | ReplicationError(status=status):
            return status
        case _:
            return None
