"""Where identities are kept: PKCS#12 documents by label."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote

import platformdirs
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    KeySerializationEncryption,
    NoEncryption,
    pkcs12,
)

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError, KeyStoreError
from trio_p2p.security.keyring_store import KeyringKeyStore

SUFFIX = ".p12"

# What nobody but the owner may have: permissions of the group and of all others.
_OTHERS = 0o077
_ROOT = 0


@runtime_checkable
class KeyStore(Protocol):
    """Keeps PKCS#12 documents by label; they come and go without a password.

    Every method may take some time, and raises KeyStoreError if the store cannot be used.
    """

    def load(self, label: str) -> bytes | None:
        """The document, or None if there is none of this label."""

    def save(self, label: str, data: bytes) -> None:
        """Keep a document, in place of an earlier one. Durable when it returns."""

    def add(self, label: str, data: bytes) -> bool:
        """Keep a document unless there is one of this label; tells whether it was kept."""

    def delete(self, label: str) -> bool:
        """Forget a document; tells whether there was one."""

    def labels(self) -> tuple[str, ...]:
        """All labels, sorted."""


class MemoryKeyStore:
    """A key store that forgets everything at the end of the process."""

    def __init__(self) -> None:
        self._documents: dict[str, bytes] = {}

    def load(self, label: str) -> bytes | None:
        """See `KeyStore.load`."""
        return self._documents.get(label)

    def save(self, label: str, data: bytes) -> None:
        """See `KeyStore.save`."""
        self._documents[label] = data

    def add(self, label: str, data: bytes) -> bool:
        """See `KeyStore.add`."""
        return self._documents.setdefault(label, data) is data

    def delete(self, label: str) -> bool:
        """See `KeyStore.delete`."""
        return self._documents.pop(label, None) is not None

    def labels(self) -> tuple[str, ...]:
        """See `KeyStore.labels`."""
        return tuple(sorted(self._documents))


class FileKeyStore:
    """A key store in a directory: one file a label, for the eyes of this user only.

    With a password each file is encrypted with it. The directory is made when something is saved.
    Where others than the user could read or replace a file, it is refused (not on Windows, whose
    user directories are private by other means). Errors are as `KeyStore` tells.
    """

    def __init__(
        self, directory: str | os.PathLike[str], password: bytes | str | None = None
    ) -> None:
        self._directory = Path(directory)
        self._password = password.encode() if isinstance(password, str) else password

    def load(self, label: str) -> bytes | None:
        """See `KeyStore.load`. Raises ConfigurationError if the password is not the file's."""
        path = self._path(label)
        with _telling(path):
            try:
                _check_private(self._directory, self._directory.stat())
                with path.open("rb") as file:
                    _check_private(path, os.fstat(file.fileno()))
                    data = file.read()
            except FileNotFoundError:
                return None
        return data if self._password is None else _reseal(data, self._password, NoEncryption())

    def save(self, label: str, data: bytes) -> None:
        """See `KeyStore.save`."""
        path, sealed = self._path(label), self._sealed(data)
        with _telling(path):
            self._make_directory()
            _write_durably(path, sealed, os.replace)

    def add(self, label: str, data: bytes) -> bool:
        """See `KeyStore.add`."""
        path, sealed = self._path(label), self._sealed(data)
        with _telling(path):
            self._make_directory()
            try:
                _write_durably(path, sealed, _move_where_nothing_is)
            except FileExistsError:
                return False
        return True

    def delete(self, label: str) -> bool:
        """See `KeyStore.delete`."""
        path = self._path(label)
        with _telling(path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            _sync_directory(self._directory)
        return True

    def labels(self) -> tuple[str, ...]:
        """See `KeyStore.labels`."""
        with _telling(self._directory):
            return tuple(sorted(unquote(path.stem) for path in self._directory.glob("*" + SUFFIX)))

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(self._directory, self._directory.stat())

    def _sealed(self, data: bytes) -> bytes:
        if self._password is None:
            return data
        return _reseal(data, None, BestAvailableEncryption(self._password))

    def _path(self, label: str) -> Path:
        # Capital letters are escaped too: some file systems take "A" and "a" for the same name.
        name = re.sub(rb"[^a-z0-9_-]", lambda found: b"%%%02x" % found[0][0], label.encode())
        if not 1 <= len(name) <= limits.KEY_FILE_NAME_BYTES_MAX:
            raise ConfigurationError("a label is not empty and not that long", label=label[:40])
        return self._directory / (name.decode() + SUFFIX)


def default_key_store() -> KeyStore:
    """The operating system's secure storage where there is one, else files of this user."""
    if KeyringKeyStore.is_available():
        return KeyringKeyStore()
    return FileKeyStore(platformdirs.user_data_path("trio-p2p", appauthor=False) / "keys")


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn what the system says into an error of ours."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise KeyStoreError(f"the key store cannot be used: {reason}", path=str(path)) from exc


def _check_private(path: Path, status: os.stat_result) -> None:
    if os.name != "posix":
        return
    if status.st_mode & _OTHERS:
        raise KeyStoreError(
            "others than its owner may read or change this: `chmod go= PATH` mends it, and a key "
            "that others may have read is to be replaced",
            path=str(path),
        )
    if status.st_uid not in (os.geteuid(), _ROOT):
        raise KeyStoreError("this belongs to another user, who could change it", path=str(path))


def _reseal(data: bytes, password: bytes | None, encryption: KeySerializationEncryption) -> bytes:
    try:
        content = pkcs12.load_pkcs12(data, password)
    except ValueError as exc:
        raise ConfigurationError("not a PKCS#12 file, or another password's") from exc
    leaf = content.cert
    return pkcs12.serialize_key_and_certificates(
        None,
        content.key,  # type: ignore[arg-type]
        leaf.certificate if leaf else None,
        [each.certificate for each in content.additional_certs],
        encryption,
    )


class _Move(Protocol):
    def __call__(self, source: str, target: Path, /) -> None: ...


def _write_durably(path: Path, data: bytes, move: _Move) -> None:
    """Write a file that is there as a whole or not at all. mkstemp makes it 0600."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def _move_where_nothing_is(source: str, target: Path, /) -> None:
    """Give a file its name, or raise FileExistsError: a second name cannot replace another's."""
    os.link(source, target)
    os.unlink(source)


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
