"""Where identities are kept: PKCS#12 documents by label."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import platformdirs
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    KeySerializationEncryption,
    NoEncryption,
    pkcs12,
)

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError

SUFFIX = ".p12"


class KeyStore(Protocol):
    """Keeps PKCS#12 documents by label; they come and go without a password."""

    def load(self, label: str) -> bytes | None:
        """The document, or None if there is none of this label."""

    def save(self, label: str, data: bytes) -> None:
        """Keep a document, in place of an earlier one. Durable when it returns."""

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

    def delete(self, label: str) -> bool:
        """See `KeyStore.delete`."""
        return self._documents.pop(label, None) is not None

    def labels(self) -> tuple[str, ...]:
        """See `KeyStore.labels`."""
        return tuple(sorted(self._documents))


class FileKeyStore:
    """A key store in a directory: one file a label, for the eyes of this user only.

    With a password each file is encrypted with it. The directory is made when something is saved.
    """

    def __init__(self, directory: str | os.PathLike[str], password: bytes | None = None) -> None:
        self._directory = Path(directory)
        self._password = password

    def load(self, label: str) -> bytes | None:
        """See `KeyStore.load`. Raises ConfigurationError if the password is not the file's."""
        try:
            data = self._path(label).read_bytes()
        except FileNotFoundError:
            return None
        return data if self._password is None else _reseal(data, self._password, NoEncryption())

    def save(self, label: str, data: bytes) -> None:
        """See `KeyStore.save`."""
        path = self._path(label)
        if self._password is not None:
            data = _reseal(data, None, BestAvailableEncryption(self._password))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_durably(path, data)

    def delete(self, label: str) -> bool:
        """See `KeyStore.delete`."""
        try:
            self._path(label).unlink()
        except FileNotFoundError:
            return False
        return True

    def labels(self) -> tuple[str, ...]:
        """See `KeyStore.labels`."""
        return tuple(sorted(unquote(path.stem) for path in self._directory.glob("*" + SUFFIX)))

    def _path(self, label: str) -> Path:
        # Capital letters are escaped too: some file systems take "A" and "a" for the same name.
        name = re.sub(rb"[^a-z0-9_-]", lambda found: b"%%%02x" % found[0][0], label.encode())
        if not 1 <= len(name) <= limits.KEY_FILE_NAME_BYTES_MAX:
            raise ConfigurationError("a label is not empty and not that long", label=label[:40])
        return self._directory / (name.decode() + SUFFIX)


def default_key_store() -> KeyStore:
    """Files under this user's data directory."""
    return FileKeyStore(platformdirs.user_data_path("trio-p2p", appauthor=False) / "keys")


def _reseal(data: bytes, password: bytes | None, encryption: KeySerializationEncryption) -> bytes:
    try:
        content = pkcs12.load_pkcs12(data, password)
    except ValueError as exc:
        raise ConfigurationError("not a PKCS#12 file, or another password's") from exc
    leaf = content.cert
    return pkcs12.serialize_key_and_certificates(
        leaf.friendly_name if leaf else None,
        content.key,  # type: ignore[arg-type]
        leaf.certificate if leaf else None,
        [each.certificate for each in content.additional_certs],
        encryption,
    )


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all. mkstemp makes it 0600."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
