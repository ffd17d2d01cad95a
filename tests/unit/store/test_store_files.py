"""Small files: whole or as they were before."""

from __future__ import annotations

import os

import pytest

from trio_p2p.store import files


def test_a_file_is_written_over_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "file"
    files.write_file(file, b"first")

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            files.write_file(file, b"second")
    assert file.read_bytes() == b"first"
    files.write_file(file, b"third")
    assert file.read_bytes() == b"third"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_is_given_once_the_content_is_on_the_disk(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def note(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert not (tmp_path / "file").exists() or synced[-1] == str(tmp_path)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    files.write_file(tmp_path / "file", b"content")
    assert synced == [str(tmp_path / "file.new"), str(tmp_path)]


def test_removing_what_is_not_there_is_nothing(tmp_path):
    files.remove_file(tmp_path / "file")
