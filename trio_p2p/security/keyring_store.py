"""Keys in the operating system's secure storage, through the `keyring` library.

That is the Keychain of macOS, the Credential Locker of Windows, and the Secret Service or KWallet
of a Linux desktop. They keep texts by service and user name, and list nothing, so:

- A document is kept as base64, in pieces: the Credential Locker takes no long text. The first piece
  stands under the label; it tells how many there are, and the tag that the others stand under. A
  document that replaces another has a tag of its own, so that the old one is whole until the new
  one is.
- The labels are kept as a list beside them. What two processes write at the same moment may be
  missing in that list, and is found under its label all the same.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError, KeyStoreError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

TAG_BYTES = 8


class KeyringKeyStore:
    """A key store in the operating system's secure storage. Errors are as `KeyStore` tells.

    The storage may ask its user to unlock it, and a call waits as long. `backend` is one of
    keyring's; None is the one it chooses.
    """

    def __init__(self, service: str = "trio-p2p", *, backend: KeyringBackend | None = None) -> None:
        self._service = service
        self._pieces = f"{service} pieces"
        self._index = f"{service} labels"
        self._chosen = backend

    @staticmethod
    def is_available() -> bool:
        """Whether this machine has a storage that keyring recommends for secrets."""
        import keyring.core

        with _telling():
            return bool(keyring.core.recommended(keyring.get_keyring()))

    def load(self, label: str) -> bytes | None:
        """See `KeyStore.load`."""
        with _telling():
            head = self._backend.get_password(self._service, _checked(label))
            if head is None:
                return None
            count, tag, first = _split(head, label)
            others = [
                self._backend.get_password(self._pieces, _piece_name(label, tag, number))
                for number in range(1, count)
            ]
        if None in others:
            raise _damaged(label)
        try:
            return base64.b64decode("".join((first, *map(str, others))), validate=True)
        except binascii.Error as exc:
            raise _damaged(label) from exc

    def save(self, label: str, data: bytes) -> None:
        """See `KeyStore.save`."""
        size = limits.KEYRING_PIECE_CHARACTERS_MAX
        text = base64.b64encode(data).decode()
        first, *others = [text[at : at + size] for at in range(0, len(text), size)] or [""]
        tag = secrets.token_hex(TAG_BYTES)
        with _telling():
            replaced = self._backend.get_password(self._service, _checked(label))
            for number, piece in enumerate(others, 1):
                self._backend.set_password(self._pieces, _piece_name(label, tag, number), piece)
            head = f"{1 + len(others)}:{tag}:{first}"
            self._backend.set_password(self._service, label, head)
            if replaced is not None:
                self._delete_pieces(label, replaced)
            self._write_labels({*self.labels(), label})

    def add(self, label: str, data: bytes) -> bool:
        """See `KeyStore.add`. Of two processes that do it at the same moment, both may succeed."""
        if self.load(label) is not None:
            return False
        self.save(label, data)
        return True

    def delete(self, label: str) -> bool:
        """See `KeyStore.delete`."""
        with _telling():
            head = self._backend.get_password(self._service, _checked(label))
            if head is None:
                return False
            self._backend.delete_password(self._service, label)
            self._delete_pieces(label, head)
            self._write_labels({*self.labels()} - {label})
        return True

    def labels(self) -> tuple[str, ...]:
        """See `KeyStore.labels`."""
        with _telling():
            text = self._backend.get_password(self._index, "labels")
        try:
            labels = orjson.loads(text) if text else []
        except orjson.JSONDecodeError:
            labels = []  # Somebody else's entry: the documents are found without it.
        return tuple(sorted(labels)) if isinstance(labels, list) else ()

    @property
    def _backend(self) -> KeyringBackend:
        if self._chosen is None:
            import keyring

            # Looking for backends takes a while, and programs that need none should not wait.
            self._chosen = keyring.get_keyring()
        return self._chosen

    def _write_labels(self, labels: set[str]) -> None:
        text = orjson.dumps(sorted(labels)).decode()
        self._backend.set_password(self._index, "labels", text)

    def _delete_pieces(self, label: str, head: str) -> None:
        try:
            count, tag, _ = _split(head, label)
        except KeyStoreError:
            return
        for number in range(1, count):
            name = _piece_name(label, tag, number)
            if self._backend.get_password(self._pieces, name) is not None:
                self._backend.delete_password(self._pieces, name)


def _checked(label: str) -> str:
    if not 1 <= len(label.encode()) <= limits.KEYRING_LABEL_BYTES_MAX or not label.isprintable():
        raise ConfigurationError(
            "a label is printable text, not empty and not that long", label=label[:40]
        )
    return label


def _piece_name(label: str, tag: str, number: int) -> str:
    return f"{label} {tag} {number}"


def _split(head: str, label: str) -> tuple[int, str, str]:
    """How many pieces there are, the tag of the others, and the first."""
    count, _, rest = head.partition(":")
    tag, colon, first = rest.partition(":")
    if not colon or not (count.isascii() and count.isdigit() and len(count) < 4):
        raise _damaged(label)
    return int(count), tag, first


def _damaged(label: str) -> KeyStoreError:
    return KeyStoreError("what the keyring holds under this label is damaged", label=label)


@contextmanager
def _telling() -> Iterator[None]:
    """Turn what a backend raises into an error of ours."""
    try:
        yield
    except (ConfigurationError, KeyStoreError):
        raise
    except Exception as exc:  # The guard around a backend, which anybody may have written.
        raise KeyStoreError(
            f"the system's keyring cannot be used: {exc}; unlock it, or use a FileKeyStore"
        ) from exc
