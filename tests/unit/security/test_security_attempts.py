"""How long an address waits after wrong passwords."""

from trio_p2p import limits
from trio_p2p.security.attempts import Attempts


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


def test_the_wait_doubles_up_to_two_seconds():
    attempts = Attempts(Clock())
    waits = []
    for _ in range(100):
        waits.append(attempts.wait_s("a"))
        attempts.failed("a")
    assert waits[:6] == [0, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert set(waits[6:]) == {limits.LOGIN_WAIT_S_MAX}
    assert limits.LOGIN_WAIT_S_MAX <= 2


def test_addresses_do_not_wait_for_each_other():
    attempts = Attempts(Clock())
    attempts.failed("a")
    assert attempts.wait_s("b") == 0


def test_what_is_long_ago_is_forgotten():
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(10):
        attempts.failed("a")
    clock.now += limits.LOGIN_MEMORY_S + 1
    assert attempts.wait_s("a") == 0
    attempts.failed("a")
    assert attempts.wait_s("a") == limits.LOGIN_WAIT_S


def test_a_bounded_number_of_addresses_is_remembered(monkeypatch):
    monkeypatch.setattr(limits, "LOGIN_ADDRESSES_MAX", 3)
    attempts = Attempts(Clock())
    for address in "abacd":
        attempts.failed(address)
    assert len(attempts) == 3
    assert attempts.wait_s("b") == 0
    assert attempts.wait_s("a") == 2 * limits.LOGIN_WAIT_S
