"""Passwords: comparing them, and files of hashed ones.

A password file has a line for each user: the name, a colon, and the password hashed with Argon2id
in its usual text form. Empty lines and lines that begin with `#` are left alone. It is read again
when it has changed, so users come and go while a listener runs.

Hashing is slow on purpose, so it is done in threads, and not again for what was right before: of
that a fingerprint is remembered, under a key that only this process has. So peers that come back
are let in at once, however many others are trying passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import argon2
import trio
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError

_HASHER: Final = argon2.PasswordHasher(
    time_cost=limits.ARGON2_PASSES,
    memory_cost=limits.ARGON2_MEMORY_KIB,
    parallelism=limits.ARGON2_LANES,
)

_Stamp = tuple[int, int, int]


def same_secret(given: str, expected: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell where or whether they differ.

    For callbacks that know a password: `same_secret(password, "s3cret")`.
    """
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    # Of one length for all texts, so that the time does not tell the length either.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class _Users:
    """What a password file held when it was last read."""

    stamp: _Stamp
    hashes: Mapping[str, str]
    known: dict[str, bytes] = field(default_factory=dict)
    """Of users whose password was right before, its fingerprint."""


class PasswordFile:
    """A file of users and their hashed passwords."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read it. Raises: ConfigurationError if it cannot be read, or is no password file."""
        self.path = Path(path)
        self._key = secrets.token_bytes(32)
        self._users = _read(self.path)
        self._limiter = trio.CapacityLimiter(limits.PASSWORD_CHECKS_AT_ONCE)
        # Checked for users that do not exist, so that the time does not tell which do.
        self._nobody = _HASHER.hash(secrets.token_hex())

    def __repr__(self) -> str:
        return f"PasswordFile({str(self.path)!r})"

    @property
    def users(self) -> tuple[str, ...]:
        """The names of all users, sorted. Raises: ConfigurationError."""
        return tuple(sorted(self._current().hashes))

    def remembers(self, username: str, password: str) -> bool:
        """Whether this was right before, and the file has not changed since. Takes no time."""
        known = self._current().known.get(username)
        return known is not None and hmac.compare_digest(known, self._seal(password))

    async def check(self, username: str, password: str) -> bool:
        """Whether there is such a user with this password.

        Raises: ConfigurationError if the file cannot be read any more.
        Cancelling: safe; a check that has begun is finished, and its result dropped.
        """
        await trio.lowlevel.checkpoint()
        if self.remembers(username, password):
            return True
        users = self._current()
        right = await trio.to_thread.run_sync(
            _verify, users.hashes.get(username, self._nobody), password, limiter=self._limiter
        )
        if right and username in users.hashes:
            users.known[username] = self._seal(password)
            return True
        return False

    def _current(self) -> _Users:
        if _stamp(self.path) != self._users.stamp:
            self._users = _read(self.path)
        return self._users

    def _seal(self, password: str) -> bytes:
        return hmac.digest(self._key, password.encode("utf-8", "surrogatepass"), "sha256")


def set_password(path: str | os.PathLike[str], username: str, password: str) -> bool:
    """Add a user to a password file, or give it another password; tells whether it was added.

    The file is made if it is missing, for the eyes of its owner only. Takes a moment: it hashes.
    Raises: ConfigurationError.
    """
    path = Path(path)
    _check_username(username)
    if not password:
        raise ConfigurationError("a password is not empty")
    line = f"{username}:{_HASHER.hash(password)}"
    lines = _lines(path) if path.exists() else []
    places = [at for at, each in enumerate(lines) if _username(each) == username]
    kept = [each for at, each in enumerate(lines) if at not in places]
    kept.insert(places[0] if places else len(kept), line)
    _write(path, kept)
    return not places


def remove_user(path: str | os.PathLike[str], username: str) -> bool:
    """Remove a user from a password file; tells whether there was one.

    Raises: ConfigurationError.
    """
    path = Path(path)
    lines = _lines(path)
    kept = [each for each in lines if _username(each) != username]
    if len(kept) == len(lines):
        return False
    _write(path, kept)
    return True


def _verify(hashed: str, password: str) -> bool:
    try:
        return _HASHER.verify(hashed, password.encode("utf-8", "surrogatepass"))
    except VerifyMismatchError:
        return False
    except VerificationError as exc:
        raise ConfigurationError(f"a password could not be checked: {exc}") from exc


def _check_username(username: str) -> None:
    if (
        not 1 <= len(username) <= limits.USERNAME_CHARACTERS_MAX
        or ":" in username
        or username[0] == "#"
        or not username.isprintable()
        or username != username.strip()
    ):
        raise ConfigurationError(
            "a user name is printable text without ':', does not begin with '#' or a space"
        )


def _read(path: Path) -> _Users:
    stamp = _stamp(path)
    hashes: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        username = _username(line)
        if username is None:
            continue
        hashed = line.partition(":")[2]
        try:
            argon2.extract_parameters(hashed)
        except (InvalidHashError, ValueError) as exc:
            raise ConfigurationError(
                "not a line of a password file: NAME:HASH", path=str(path), line=number
            ) from exc
        if hashes.setdefault(username, hashed) is not hashed:
            raise ConfigurationError("a user is there twice", path=str(path), line=number)
    return _Users(stamp, hashes)


def _username(line: str) -> str | None:
    """The user of a line; None if it has none."""
    if not line.strip() or line.startswith("#"):
        return None
    return line.partition(":")[0]


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > limits.PASSWORD_FILE_BYTES_MAX:
            raise ConfigurationError("the password file is too large", path=str(path))
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise _unreadable(path, exc) from exc


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return status.st_mtime_ns, status.st_size, status.st_ino


def _unreadable(path: Path, exc: Exception) -> ConfigurationError:
    reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
    return ConfigurationError(f"the password file cannot be read: {reason}", path=str(path))


def _write(path: Path, lines: list[str]) -> None:
    """Replace the file as a whole. Who may read it stays as it was; at first, its owner only."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.chmod(temporary, path.stat().st_mode & 0o777)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as exc:
        raise ConfigurationError(
            f"the password file cannot be written: {exc.strerror}", path=str(path)
        ) from exc
