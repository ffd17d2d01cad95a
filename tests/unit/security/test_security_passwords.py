"""Passwords: comparing them, and files of hashed ones."""

import hmac
import stat
import threading

import argon2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError
from trio_p2p.security import passwords
from trio_p2p.security.passwords import PasswordFile, remove_user, same_secret, set_password


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users"


@pytest.fixture
def hashed(monkeypatch):
    """How often a password was hashed to check it."""
    checks = []
    plain = passwords._verify

    def note(*args):
        checks.append(args)
        return plain(*args)

    monkeypatch.setattr(passwords, "_verify", note)
    return checks


@given(st.text(), st.text())
def test_secrets_are_the_same_only_if_they_are(one, other):
    assert same_secret(one, one)
    assert same_secret(one, other) == (one == other)


async def test_secrets_are_compared_in_a_time_that_tells_nothing(path, monkeypatch):
    compared = []

    def note(given, expected):
        compared.append((len(given), len(expected)))
        return given == expected

    set_password(path, "ann", "s3cret")
    file = PasswordFile(path)
    assert await file.check("ann", "s3cret")
    monkeypatch.setattr(hmac, "compare_digest", note)
    assert not same_secret("a", "a long one")
    assert same_secret("a", "a")
    assert not file.remembers("ann", "x")
    assert file.remembers("ann", "s3cret")
    # Always of one length, whatever is compared.
    assert compared == [(32, 32)] * 4


async def test_users_are_added_changed_and_removed_while_the_file_is_in_use(path):
    assert set_password(path, "ann", "one")
    file = PasswordFile(path)
    assert await file.check("ann", "one")
    assert set_password(path, "bob", "two")
    assert file.users == ("ann", "bob")
    assert await file.check("bob", "two")
    assert not set_password(path, "ann", "three")
    assert not await file.check("ann", "one")
    assert await file.check("ann", "three")
    assert remove_user(path, "ann")
    assert not remove_user(path, "ann")
    assert not await file.check("ann", "three")
    assert not file.remembers("ann", "three")
    assert await file.check("bob", "two")


async def test_what_was_right_before_is_not_hashed_again(path, hashed):
    set_password(path, "ann", "one")
    file = PasswordFile(path)
    for _ in range(3):
        assert await file.check("ann", "one")
    assert len(hashed) == 1
    for _ in range(3):
        assert not await file.check("ann", "two")
    assert len(hashed) == 4


async def test_a_user_that_is_not_there_takes_as_long_as_one_that_is(path, hashed):
    set_password(path, "ann", "one")
    file = PasswordFile(path)
    assert not await file.check("ann", "two")
    assert not await file.check("bob", "two")
    assert len(hashed) == 2
    assert len({text.rpartition("$")[0].rpartition("$")[0] for text, _ in hashed}) == 1


def test_the_file_holds_no_password_and_is_for_its_owner_only(path):
    set_password(path, "ann", "s3cret-word")
    assert "s3cret-word" not in path.read_text()
    assert path.read_text().startswith("ann:$argon2id$")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    set_password(path, "bob", "other")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["users"]


async def test_comments_and_the_order_of_users_stay(path):
    set_password(path, "ann", "one")
    set_password(path, "bob", "two")
    path.write_text("# tills\n\n" + path.read_text())
    set_password(path, "ann", "three")
    lines = path.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["# tills", "", "ann", "bob"]
    assert await PasswordFile(path).check("ann", "three")


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a ", "a\nb", "x" * 256])
def test_a_name_that_a_line_cannot_hold_is_refused(path, name):
    with pytest.raises(ConfigurationError):
        set_password(path, name, "one")
    assert not path.exists()


def test_an_empty_password_is_refused(path):
    with pytest.raises(ConfigurationError):
        set_password(path, "ann", "")


@pytest.mark.parametrize("text", ["ann", "ann:s3cret", "ann:$argon2id$v=19$", "ann:$5$x$y"])
def test_a_file_of_another_kind_is_refused_without_being_quoted(path, text):
    set_password(path, "bob", "two")
    path.write_text(path.read_text() + text)
    with pytest.raises(ConfigurationError) as info:
        PasswordFile(path)
    assert info.value.facts["line"] == 2
    assert "s3cret" not in str(info.value)


def test_a_user_is_there_once(path):
    set_password(path, "ann", "one")
    path.write_text(path.read_text() * 2)
    with pytest.raises(ConfigurationError, match="twice"):
        PasswordFile(path)


def test_what_cannot_be_read_or_written_is_told(path, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="No such file"):
        PasswordFile(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        PasswordFile(path)
    with pytest.raises(ConfigurationError, match="written"):
        set_password(tmp_path / "nowhere" / "users", "ann", "one")
    monkeypatch.setattr(limits, "PASSWORD_FILE_BYTES_MAX", 1)
    with pytest.raises(ConfigurationError, match="too large"):
        PasswordFile(path)


async def test_a_file_that_becomes_unreadable_is_an_error_not_a_refusal(path):
    set_password(path, "ann", "one")
    file = PasswordFile(path)
    path.write_text("junk")
    with pytest.raises(ConfigurationError):
        await file.check("ann", "one")


def test_nothing_of_a_password_shows(path):
    set_password(path, "ann", "s3cret")
    assert repr(PasswordFile(path)) == f"PasswordFile({str(path)!r})"


async def test_only_some_passwords_are_hashed_at_a_time(path, monkeypatch):
    most, now, lock = 0, 0, threading.Lock()
    plain = passwords._verify

    def note(*args):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        try:
            return plain(*args)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(passwords, "_verify", note)
    set_password(path, "ann", "one")
    file = PasswordFile(path)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(file.check, "ann", str(number))
    assert most == limits.PASSWORD_CHECKS_AT_ONCE


def test_passwords_are_hashed_as_the_limits_say(path):
    set_password(path, "ann", "one")
    told = argon2.extract_parameters(path.read_text().strip().partition(":")[2])
    assert told.type is argon2.Type.ID
    assert (told.memory_cost, told.time_cost, told.parallelism) == (
        limits.ARGON2_MEMORY_KIB,
        limits.ARGON2_PASSES,
        limits.ARGON2_LANES,
    )
