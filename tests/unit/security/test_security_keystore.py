"""Key stores: the same behaviour in memory and in files."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import ConfigurationError
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
    FileKeyStore(tmp_path, b"secret").save("till", DATA)
    with pytest.raises(ConfigurationError):
        FileKeyStore(tmp_path, b"other").load("till")
    with pytest.raises(ConfigurationError):
        TLSIdentity.load("till", FileKeyStore(tmp_path))


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        FileKeyStore(tmp_path).save("till", DATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["", "x" * 1000])
def test_a_label_must_fit_into_a_file_name(tmp_path, label):
    with pytest.raises(ConfigurationError):
        FileKeyStore(tmp_path).load(label)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_file_names_are_safe_on_every_file_system(label):
    path = FileKeyStore("keys")._path(label)
    assert path.parent.name == "keys"
    assert set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-%")


def test_the_default_store_lies_in_the_data_directory_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path)
    default_key_store().save("till", DATA)
    assert FileKeyStore(tmp_path / "keys").labels() == ("till",)
