"""What ended a session, as one error for its user."""

from __future__ import annotations

from trio_p2p.errors import (
    ConnectionLostError,
    HandshakeError,
    PeerError,
    ReplicationError,
    TrioP2PError,
)


def replication_error(cause: TrioP2PError | BaseExceptionGroup[TrioP2PError]) -> ReplicationError:
    """The error to raise from `cause`; of a group, the member that tells most counts.

    A lost connection is often but the consequence of something else in the group.
    """
    error = _most_telling(cause)
    return ReplicationError(str(error), status=_status(error), retryable=error.retryable)


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
        case PeerError(code=code) | ConnectionLostError(code=code):
            return code
        case HandshakeError(status=status) | ReplicationError(status=status):
            return status
        case _:
            return None
