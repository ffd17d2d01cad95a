"""Which error a failed replication ends with."""

import pytest

from trio_p2p.errors import (
    ConnectionLostError,
    HandshakeError,
    NetworkUnavailableError,
    PeerError,
    PeerUnreachableError,
    RemoteProtocolError,
    ReplicationError,
    StoreFullError,
    TrustError,
)
from trio_p2p.replication.failure import replication_error

LOST = ConnectionLostError("gone")


@pytest.mark.parametrize(
    ("cause", "status", "retryable"),
    [
        (PeerError("HTTP", 404, "collection not found"), 404, False),
        (PeerError("HTTP", 503), 503, True),
        (PeerError("BLIP", 503), 503, False),
        (PeerError("LiteCore", 19), None, False),
        (ConnectionLostError("gone", code=1006), 1006, True),
        # A goodbye in peace is none where there was more to do.
        (ConnectionLostError("gone", code=1000), 1001, False),
        (ConnectionLostError("gone", code=1001), 1006, True),
        (HandshakeError("refused", status=502), 502, True),
        (HandshakeError("refused"), None, False),
        (ReplicationError("failed", status=409), 409, False),
        (PeerUnreachableError("nobody there"), None, True),
        (RemoteProtocolError("nonsense"), None, False),
        (StoreFullError("full"), None, False),
        (TrustError("not trusted"), None, False),
        (NetworkUnavailableError("no such host"), None, False),
    ],
)
def test_status_and_retryable_are_those_of_the_cause(cause, status, retryable):
    error = replication_error(cause)
    assert (error.status, error.retryable) == (status, retryable)
    assert str(error) == str(cause)


def test_who_stays_can_wait_for_the_network():
    error = NetworkUnavailableError("no such host")
    assert replication_error(error, continuous=True).retryable
    assert not replication_error(TrustError("no"), continuous=True).retryable


def test_of_a_group_what_explains_the_lost_connection_counts():
    group = BaseExceptionGroup(
        "", [LOST, BaseExceptionGroup("", [LOST, PeerError("HTTP", 403, "not allowed")])]
    )
    assert replication_error(group).status == 403


def test_of_a_group_of_lost_connections_the_first_counts():
    nested = BaseExceptionGroup("", [ConnectionLostError("gone", code=4001), LOST])
    assert replication_error(BaseExceptionGroup("", [nested])).status == 4001
