"""Key stores: the same behaviour in memory and in files."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError, KeyStoreError
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.keystore import FileKeyStore, MemoryKeyStore, default_key_store

IDENTITY = TLSIdentity.create("till")
DATA = IDENTITY.to_pkcs12()


@pytest.fixture(params=["memory", "files", "encrypted files"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryKeyStore()
    password = b"secret" if request.param == "encrypted files" else None
    return FileKeyStore(tmp_path / "keys", password)


def test_what_was_saved_is_loaded_until_it_is_deleted(store):
    assert store.load("till") is None
    assert store.labels() == ()
    store.save("till", DATA)
    loaded = TLSIdentity.from_pkcs12(store.load("till"))
    assert loaded.certificates == IDENTITY.certificates
    assert store.labels() == ("till",)
    assert store.delete("till")
    assert store.load("till") is None
    assert not store.delete("till")


def test_saving_again_replaces(store):
    other = TLSIdentity.create("other")
    store.save("till", DATA)
    store.save("till", other.to_pkcs12())
    assert TLSIdentity.from_pkcs12(store.load("till")).certificates == other.certificates
    assert store.labels() == ("till",)


def test_only_the_first_of_a_label_is_added(store):
    assert store.add("till", DATA)
    assert not store.add("till", TLSIdentity.create("other").to_pkcs12())
    loaded = TLSIdentity.from_pkcs12(store.load("till"))
    assert loaded.certificates == IDENTITY.certificates


def test_labels_of_any_characters_are_kept_apart(store):
    labels = ["a", "A", "a b", "a%20b", "../a", ".", "ä", "a.p12"]
    for label in labels:
        store.save(label, DATA)
    assert store.labels() == tuple(sorted(labels))


def test_files_and_directory_are_for_their_owner_only(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    store.save("till", DATA)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    (file,) = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_files_with_a_password_cannot_be_read_without_it(tmp_path):
    keys = tmp_path / "keys"
    FileKeyStore(keys, "secret").save("till", DATA)
    assert (
        IDENTITY.certificates
        == TLSIdentity.load("till", FileKeyStore(keys, b"secret")).certificates
    )
    with pytest.raises(ConfigurationError):
        FileKeyStore(keys, b"other").load("till")
    with pytest.raises(ConfigurationError):
        TLSIdentity.load("till", FileKeyStore(keys))


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    store = FileKeyStore(tmp_path / "keys")
    store.save("other", DATA)
    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(KeyStoreError, match="disk full"):
        store.save("till", DATA)
    with pytest.raises(KeyStoreError, match="disk full"):
        store.add("till", DATA)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["other.p12"]


def test_keys_that_others_can_read_or_replace_are_refused(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    store.save("till", DATA)
    file = tmp_path / "keys" / "till.p12"
    for path, mode in ((file, 0o640), (file, 0o604), (tmp_path / "keys", 0o750)):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        with pytest.raises(KeyStoreError, match="chmod"):
            store.load("till")
        path.chmod(before)
    assert store.load("till") == DATA
    (tmp_path / "keys").chmod(0o770)
    with pytest.raises(KeyStoreError, match="chmod"):
        store.save("other", DATA)


def test_keys_of_another_user_are_refused(tmp_path, monkeypatch):
    store = FileKeyStore(tmp_path / "keys")
    store.save("till", DATA)
    monkeypatch.setattr("trio_p2p.security.keystore._ROOT", -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(KeyStoreError, match="another user"):
        store.load("till")


def test_a_directory_that_is_none_is_told(tmp_path):
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(KeyStoreError):
        FileKeyStore(tmp_path / "keys").save("till", DATA)


@pytest.mark.parametrize("label", ["", "x" * 1000])
def test_a_label_must_fit_into_a_file_name(tmp_path, label):
    with pytest.raises(ConfigurationError):
        FileKeyStore(tmp_path).load(label)


def test_the_longest_label_is_as_long_as_its_file_name_may_be(tmp_path):
    store = FileKeyStore(tmp_path)
    # An umlaut takes two bytes, and each of them three characters.
    for label in (
        "x" * limits.KEY_FILE_NAME_BYTES_MAX,
        "ü" * (limits.KEY_FILE_NAME_BYTES_MAX // 6),
    ):
        store.save(label, DATA)
        assert store.load(label) == DATA
        with pytest.raises(ConfigurationError):
            store.save(label + "x", DATA)
    assert len(store.labels()) == 2


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_file_names_are_safe_on_every_file_system(label):
    path = FileKeyStore("keys")._path(label)
    assert path.parent.name == "keys"
    assert set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-%")


def test_without_a_keyring_the_default_store_is_files_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path)
    default_key_store().save("till", DATA)
    assert FileKeyStore(tmp_path / "keys").labels() == ("till",)
