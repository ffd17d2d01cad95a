"""After which errors trying again may help."""

import errno

import pytest

from trio_p2p.errors import ConnectionLostError, HandshakeError, PeerError
from trio_p2p.retry import RETRY, Retry, retry_after

ALWAYS = {
    "HTTP": {408, 429, 502, 503, 504},
    "WebSocket": {408, 429, 502, 503, 504, 1006, 4001},
    "Network": {1, 3, 16, 17, 18, 19},
    "POSIX": {
        errno.ENETRESET,
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
    },
}
CONTINUOUS = {
    "Network": {2, 27},
    "POSIX": {
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.EPIPE,
    },
}
NEVER = {
    "HTTP": {400, 401, 403, 404, 409, 426, 500, 501, 507},
    "WebSocket": {1000, 1001, 1002, 1003, 1005, 1007, 1008, 1009, 1010, 1011, 1015, 4002},
    "POSIX": {errno.ENOSPC, errno.EACCES, errno.EINVAL},
    "LiteCore": {10, 19, 26},
    "BLIP": {404, 503},
}


def cases(codes):
    return [(domain, code) for domain in codes for code in sorted(codes[domain])]


@pytest.mark.parametrize(("domain", "code"), cases(ALWAYS))
def test_what_may_pass_by_itself_is_tried_again(domain, code):
    assert retry_after(domain, code) is Retry.ALWAYS


@pytest.mark.parametrize(("domain", "code"), cases(CONTINUOUS))
def test_what_a_change_of_the_network_may_end_is_waited_for_by_who_stays(domain, code):
    assert retry_after(domain, code) is Retry.CONTINUOUS


@pytest.mark.parametrize(("domain", "code"), cases(NEVER))
def test_everything_else_is_for_good(domain, code):
    assert retry_after(domain, code) is Retry.NEVER


def test_nothing_else_is_in_the_table():
    assert set(RETRY) == {*cases(ALWAYS), *cases(CONTINUOUS)}


@pytest.mark.parametrize(("domain", "code"), [*cases(ALWAYS), *cases(CONTINUOUS), *cases(NEVER)])
def test_errors_follow_the_table(domain, code):
    retry = retry_after(domain, code)
    errors = [PeerError(domain, code)]
    if domain == "HTTP":
        errors.append(HandshakeError("refused", status=code))
    if domain == "WebSocket" and code > 999:
        errors.append(ConnectionLostError("gone", code=code))
    for error in errors:
        assert error.retryable == (retry is Retry.ALWAYS)
    assert errors[0].network_dependent == (retry is not Retry.NEVER)
