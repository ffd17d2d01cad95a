"""The key store in the system's keyring, with a keyring in memory."""

import keyring
import keyring.backend
import keyring.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError, KeyStoreError
from trio_p2p.security.identity import KeyType, TLSIdentity
from trio_p2p.security.keyring_store import KeyringKeyStore
from trio_p2p.security.keystore import FileKeyStore, default_key_store


class MemoryKeyring(keyring.backend.KeyringBackend):
    """A backend as narrow as the narrowest: texts as short as the Credential Locker takes."""

    priority = 5

    def __init__(self):
        super().__init__()
        self.entries = {}

    def get_password(self, service, username):
        return self.entries.get((service, username))

    def set_password(self, service, username, password):
        assert len(password) * 2 <= 2560
        assert len(username) <= 512
        self.entries[service, username] = password

    def delete_password(self, service, username):
        if (service, username) not in self.entries:
            raise keyring.errors.PasswordDeleteError("not there")
        del self.entries[service, username]


class LockedKeyring(MemoryKeyring):
    def get_password(self, service, username):
        raise keyring.errors.KeyringLocked("locked")


@pytest.fixture
def backend():
    return MemoryKeyring()


@pytest.fixture
def store(backend):
    return KeyringKeyStore(backend=backend)


@pytest.mark.parametrize("key_type", list(KeyType))
def test_an_identity_is_kept_until_it_is_deleted(store, backend, key_type):
    assert TLSIdentity.load("till", store) is None
    made = TLSIdentity.create("till", key_type=key_type, label="till", key_store=store)
    assert store.labels() == ("till",)
    loaded = TLSIdentity.load("till", KeyringKeyStore(backend=backend))
    assert loaded.certificates == made.certificates
    assert TLSIdentity.delete("till", store)
    assert not TLSIdentity.delete("till", store)
    assert store.labels() == ()
    assert set(backend.entries) == {("trio-p2p labels", "labels")}


@given(documents=st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=3_000)), max_size=6))
def test_documents_of_any_length_come_back_as_they_were(documents):
    backend = MemoryKeyring()
    store = KeyringKeyStore(backend=backend)
    kept = {}
    for label, data in documents:
        store.save(label, data)
        kept[label] = data
    assert store.labels() == tuple(sorted(kept))
    assert {label: store.load(label) for label in kept} == kept
    for label in kept:
        store.delete(label)
    assert len(backend.entries) <= 1


def test_a_document_is_whole_until_another_has_replaced_it(store, backend, monkeypatch):
    old, new = bytes(3_000), b"x" * 3_000
    store.save("till", old)
    entries = []
    plain = backend.set_password

    def note(service, username, password):
        plain(service, username, password)
        entries.append(store.load("till"))

    monkeypatch.setattr(backend, "set_password", note)
    store.save("till", new)
    assert set(entries) == {old, new}
    assert store.load("till") == new


def test_what_is_missing_or_not_ours_is_told(store, backend):
    store.save("till", bytes(3_000))
    piece = next(key for key in backend.entries if key[0].endswith("pieces"))
    del backend.entries[piece]
    with pytest.raises(KeyStoreError, match="damaged"):
        store.load("till")
    for junk in ("", "x", "1:tag", "99999:tag:", "1:tag:!"):
        backend.entries["trio-p2p", "till"] = junk
        with pytest.raises(KeyStoreError, match="damaged"):
            store.load("till")
    assert store.delete("till")


def test_a_list_of_labels_that_is_none_is_made_anew(store, backend):
    backend.entries["trio-p2p labels", "labels"] = "{"
    assert store.labels() == ()
    store.save("till", b"x")
    assert store.labels() == ("till",)


def test_only_the_first_of_a_label_is_added(store):
    assert store.add("till", b"first")
    assert not store.add("till", b"second")
    assert store.load("till") == b"first"


@pytest.mark.parametrize("label", ["", "a\nb", "x" * (limits.KEYRING_LABEL_BYTES_MAX + 1)])
def test_a_label_is_short_printable_text(store, label):
    for call in (store.load, store.delete, lambda label: store.save(label, b"x")):
        with pytest.raises(ConfigurationError):
            call(label)


def test_a_keyring_that_stays_locked_is_an_error_that_says_what_to_do():
    store = KeyringKeyStore(backend=LockedKeyring())
    for call in (store.load, store.delete, lambda label: store.save(label, b"x")):
        with pytest.raises(KeyStoreError, match="unlock it"):
            call("till")


def test_services_are_kept_apart(backend):
    one, two = (KeyringKeyStore(name, backend=backend) for name in ("one", "two"))
    one.save("till", b"1")
    assert two.load("till") is None
    assert two.labels() == ()


def test_the_default_store_is_the_keyring_where_there_is_a_real_one(backend):
    before = keyring.get_keyring()
    try:
        keyring.set_keyring(backend)
        assert isinstance(default_key_store(), KeyringKeyStore)
        default_key_store().save("till", b"x")
        assert backend.get_password("trio-p2p", "till") is not None
        backend.priority = 0.5
        assert isinstance(default_key_store(), FileKeyStore)
    finally:
        keyring.set_keyring(before)
