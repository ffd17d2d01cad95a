"""Walking the pages of a data file: whole files pass, and damage is found before LMDB meets it."""

from __future__ import annotations

import os
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import StoreCorruptError
from trio_p2p.store.environment import DATA_FILE, open_environment
from trio_p2p.store.pages import check_pages

PAGE = os.sysconf("SC_PAGE_SIZE")

# Some values have pages of their own; some keys are long, so that trees have several levels.
keys = st.tuples(st.integers(0, 300), st.sampled_from([0, 0, 0, 200]))
sizes = st.sampled_from([0, 10, 1500, 3000, 6000, 20_000])
edits = st.lists(st.tuples(keys, sizes | st.none()), min_size=1, max_size=60)
# Of a transaction: in nested ones or not, and whether each is kept.
transactions = st.lists(
    st.tuples(st.lists(st.tuples(edits, st.booleans()), max_size=4), st.booleans()), max_size=12
)


@contextmanager
def opened(path):
    environment = open_environment(path, create=True, size_max=2**28, sync=False)
    try:
        yield environment
    finally:
        environment.close()


def write(environment, txn, edits):
    for (number, padding), size in edits:
        key = b"%d" % number + b"x" * padding
        if size is None:
            txn.delete(key, db=environment.tables.documents)
        else:
            txn.put(key, bytes(size), db=environment.tables.documents)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with trees of several levels, values on pages of their own, and free pages."""
    path = tmp_path_factory.mktemp("pages")
    random = Random(1)
    with opened(path) as environment:
        for _ in range(20):
            with environment.env.begin(write=True) as txn:
                chosen = [(random.randrange(2000), random.choice([0, 200])) for _ in range(100)]
                some = [0, 10, 1500, 6000, None]
                write(environment, txn, [(key, random.choice(some)) for key in chosen])
    return (path / DATA_FILE).read_bytes()


@pytest.fixture
def check(tmp_path):
    """Check these bytes as if they were a data file."""

    def check(raw):
        (tmp_path / DATA_FILE).write_bytes(raw)
        check_pages(tmp_path / DATA_FILE)

    return check


def header(raw, number):
    """Number, flags, end of the pointers, start of the nodes."""
    return struct.unpack_from("=QxxHHH", raw, number * PAGE)


def numbers(raw, flag):
    """Pages that are of a kind, or were and are free now."""
    found = range(2, len(raw) // PAGE)
    return [n for n in found if header(raw, n)[:2] == (n, flag)]


def is_found(check, raw):
    try:
        check(raw)
    except StoreCorruptError:
        return True
    return False


@given(transactions)
def test_whatever_lmdb_writes_passes(history):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        with opened(path) as environment:
            check_pages(path / DATA_FILE)
            for parts, is_kept in history:
                txn = environment.env.begin(write=True)
                for some, is_part_kept in parts:
                    child = environment.env.begin(parent=txn, write=True)
                    write(environment, child, some)
                    child.commit() if is_part_kept else child.abort()
                txn.commit() if is_kept else txn.abort()
                check_pages(path / DATA_FILE)
        check_pages(path / DATA_FILE)


def test_a_whole_file_passes(check, whole):
    check(whole)
    assert len(numbers(whole, 1)) > 1
    assert len(numbers(whole, 2)) > 20
    assert len(numbers(whole, 4)) > 20


def replaced(raw, number, page):
    return raw[: number * PAGE] + page + raw[(number + 1) * PAGE :]


def test_a_page_of_zeros_is_found_unless_it_is_free_or_within_a_value(check, whole):
    """This is what LMDB cannot stand."""
    with_header = {*numbers(whole, 1), *numbers(whole, 2), *numbers(whole, 4)}
    chosen = Random(2).sample(range(2, len(whole) // PAGE), 100)
    found = {number for number in chosen if is_found(check, replaced(whole, number, bytes(PAGE)))}
    assert found <= with_header
    # The rest is free.
    assert len(found) > len(with_header.intersection(chosen)) / 2


def test_pages_that_changed_places_are_found(check, whole):
    random, used = Random(2), []
    while len(used) < 12:
        number = random.choice(numbers(whole, 2))
        if number not in used and is_found(check, replaced(whole, number, bytes(PAGE))):
            used.append(number)
    for one, other in zip(used[::2], used[1::2], strict=True):
        first, second = (whole[number * PAGE :][:PAGE] for number in (one, other))
        assert is_found(check, replaced(whole, one, second))
        assert is_found(check, replaced(replaced(whole, one, second), other, first))


@pytest.mark.parametrize("end", [0, 1, 15, 16, 151, 152, 4095, 4096, 4200, 8191, 8192])
def test_a_file_that_ends_in_its_meta_pages_is_damage(check, whole, end):
    assert is_found(check, whole[:end])


def test_a_file_that_ends_early_is_damage_unless_only_free_pages_are_missing(check, whole):
    ends = sorted(Random(3).sample(range(2 * PAGE, len(whole)), 60))
    found = [is_found(check, whole[:end]) for end in ends]
    # Once it is long enough it stays so.
    assert found == sorted(found, reverse=True)
    assert sum(found) > len(found) / 2


@pytest.mark.parametrize("at", [16, 20, 10, 40])
@pytest.mark.parametrize("meta", [0, 1])
def test_a_meta_page_that_is_none_is_damage(check, whole, meta, at):
    """Its magic number, version, flags, and size of pages."""
    raw = bytearray(whole)
    raw[meta * PAGE + at] ^= 0x55
    assert is_found(check, raw)


@given(st.data())
def test_nothing_but_damage_is_ever_told(whole, data):
    """Whatever stands there: the walk ends, and ends well or by that error."""
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(
            st.integers(0, 2 * 160).map(lambda n: n if n < 160 else PAGE + n - 160)
            | st.integers(0, len(raw) - 1)
            | st.builds(
                lambda page, at: page * PAGE + at,
                st.integers(0, len(raw) // PAGE - 1),
                st.integers(0, 64),
            )
        )
        garbage = data.draw(st.binary(min_size=1, max_size=24))
        raw[place : place + len(garbage)] = garbage
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / DATA_FILE
        file.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
        try:
            check_pages(file)
        except StoreCorruptError as exc:
            assert "restore a backup" in str(exc)  # noqa: PT017


def test_a_machine_with_other_pages_is_not_checked(tmp_path, monkeypatch):
    real = struct.calcsize
    monkeypatch.setattr(struct, "calcsize", lambda code: 4 if code == "P" else real(code))
    (tmp_path / DATA_FILE).write_bytes(b"?" * PAGE)
    check_pages(tmp_path / DATA_FILE)
