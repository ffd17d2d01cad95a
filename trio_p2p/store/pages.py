"""Whether the pages of a data file hang together, found without LMDB.

LMDB follows what pages tell. It notices much of what damage does to them, but ends the process
(`abort`) where a page that should be a leaf is none, which is what a page of zeros looks like. So a
file that may be damaged is walked here first: every page that is used must be of its kind, name
itself, be used once only and not count as free, and what it tells must lie within it.

Source: the structures of LMDB 0.9, as its `mdb.c` lays them out on a machine of 64 bits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from trio_p2p.errors import StoreCorruptError

_MAGIC: Final = 0xBEEFC0DE
_DATA_VERSION: Final = 1
_METAS: Final = 2
_NO_ROOT: Final = 2**64 - 1

# Flags of pages, and of the nodes in them.
_BRANCH: Final = 0x01
_LEAF: Final = 0x02
_OVERFLOW: Final = 0x04
_META: Final = 0x08
_BIG: Final = 0x01
_TREE: Final = 0x02

# Everything stands in the machine's own byte order.
_PAGE: Final = struct.Struct("=QxxHHH")  # Number, flags, end of the pointers, start of the nodes.
_EXTENT: Final = struct.Struct("=QxxHI")  # Number, flags, how many pages.
_NODE: Final = struct.Struct("=IHH")  # Bytes of the value, flags, bytes of the key.
_NUMBER: Final = struct.Struct("=Q")
_TREE_RECORD: Final = struct.Struct("=IHH24xQQ")
_META_HEAD: Final = struct.Struct("=II16x")  # Magic number, version.
_META_TAIL: Final = struct.Struct("=QQ")  # Last page, transaction.
_TREES_AT: Final = _PAGE.size + _META_HEAD.size
_META_TAIL_AT: Final = _TREES_AT + 2 * _TREE_RECORD.size
_META_BYTES: Final = _META_TAIL_AT + _META_TAIL.size


class _Tree(NamedTuple):
    """A tree, as a meta page or a node of the main tree tells it."""

    page_bytes: int
    flags: int
    depth: int
    entries: int
    root: int


class _Meta(NamedTuple):
    """A meta page: the trees of one state of the file, and where its pages end."""

    free: _Tree
    main: _Tree
    last_page: int
    transaction: int


class _Entry(NamedTuple):
    """A key, and where its value stands: in its page, or else on pages of its own."""

    key: bytes
    flags: int
    page: bytes
    value_at: int
    value_bytes: int


def check_pages(data_file: Path) -> None:
    """Walk all trees of a data file, which nobody may write to meanwhile.

    It takes about 5 s a GiB. On machines of 32 bits, which lay out pages in another way, nothing is
    checked.

    Raises: StoreCorruptError; OSError.
    """
    if struct.calcsize("P") != _NUMBER.size:
        return
    descriptor = os.open(data_file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _Walk(descriptor).all()
    except struct.error as exc:
        raise _damage("a page ends too early") from exc
    finally:
        os.close(descriptor)


def _damage(reason: str, **facts: object) -> StoreCorruptError:
    return StoreCorruptError("the data file is damaged: restore a backup", reason=reason, **facts)


def _ordered(key: bytes) -> bytes:
    """A key that is a number, so that its bytes are ordered as the numbers are."""
    number: int = _NUMBER.unpack(key)[0]
    return number.to_bytes(_NUMBER.size, "big")


class _Walk:
    """One walk. Each page is read once, by the way that leads to it first."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        first = self._read_meta(0)
        self._page_bytes = first.free.page_bytes
        second = self._read_meta(self._page_bytes)
        self._meta = max(first, second, key=lambda meta: meta.transaction)
        # Pages at the end that were never written must be free.
        file_pages = os.fstat(descriptor).st_size // self._page_bytes
        self._used = bytearray(min(file_pages, self._meta.last_page + 1))

    def all(self) -> None:
        """Walk the tree of free pages, the main one, and those it names."""
        free = [number for entry in self._free_entries() for number in self._read_free(entry)]
        for entry in self._entries(self._meta.main, "main"):
            if entry.flags != _TREE:
                continue
            if entry.value_bytes != _TREE_RECORD.size:
                raise _damage("a tree is none", tree=entry.key.decode(errors="replace"))
            tree = _Tree(*_TREE_RECORD.unpack_from(entry.page, entry.value_at))
            for _ in self._entries(tree, entry.key.decode(errors="replace")):
                pass
        for number in free:
            if number < len(self._used):
                self._use(number, 1, "a page is free and used")

    def _read_meta(self, at: int) -> _Meta:
        raw = self._read(at, _META_BYTES)
        _, flags, *_ = _PAGE.unpack_from(raw)
        magic, version = _META_HEAD.unpack_from(raw, _PAGE.size)
        free, main = (
            _Tree(*_TREE_RECORD.unpack_from(raw, _TREES_AT + number * _TREE_RECORD.size))
            for number in range(2)
        )
        last_page, transaction = _META_TAIL.unpack_from(raw, _META_TAIL_AT)
        if (flags, magic, version) != (_META, _MAGIC, _DATA_VERSION):
            raise _damage("a meta page is none")
        # Transactions take turns with the two meta pages; a new file has none yet.
        if transaction and transaction % 2 != (at > 0):
            raise _damage("a meta page is of the other one's transaction")
        if free.page_bytes < _META_BYTES or free.page_bytes & (free.page_bytes - 1):
            raise _damage("a meta page tells no size of pages")
        return _Meta(free, main, last_page, transaction)

    def _free_entries(self) -> Iterator[_Entry]:
        return self._entries(self._meta.free, "free", numbered=True)

    def _read_free(self, entry: _Entry) -> tuple[int, ...]:
        """The pages that one transaction freed."""
        value = self._read_value(entry)
        count, *numbers = struct.unpack(f"={len(value) // 8}Q", value)
        if count != len(numbers) or numbers != sorted(set(numbers), reverse=True):
            raise _damage("a list of free pages is none")
        if numbers and not _METAS <= numbers[-1] <= numbers[0] <= self._meta.last_page:
            raise _damage("a free page lies beyond the end")
        return tuple(numbers)

    def _entries(self, tree: _Tree, name: str, *, numbered: bool = False) -> Iterator[_Entry]:
        """The entries of a tree in order, all of whose pages are checked meanwhile."""
        pending = [] if tree.root == _NO_ROOT else [(tree.root, 1)]
        count = 0
        last: bytes | None = None
        while pending:
            number, depth = pending.pop()
            flags, page, pointers = self._read_page(number, name)
            if flags == _BRANCH and depth < tree.depth:
                # LMDB itself leaves one that points to a single page only in the tree of free ones.
                if len(pointers) < 2 and not numbered:
                    raise _damage("a branch does not branch", page=number, tree=name)
                for at in reversed(pointers):
                    low, high, _ = _NODE.unpack_from(page, at)
                    pending.append((low | high << 32, depth + 1))
            elif flags == _LEAF and depth == tree.depth:
                for entry in self._read_leaf(page, pointers, number, name):
                    key = _ordered(entry.key) if numbered else entry.key
                    if last is not None and key <= last:
                        raise _damage("keys are out of order", page=number, tree=name)
                    last = key
                    yield entry
                count += len(pointers)
            else:
                raise _damage("a page is of another kind", page=number, tree=name)
        if count != tree.entries:
            raise _damage("a tree has another number of entries", entries=count, tree=name)

    def _read_page(self, number: int, name: str) -> tuple[int, bytes, memoryview]:
        """The flags of a page, the page, and where its nodes begin."""
        self._use(number, 1, "a page is used twice")
        page = self._read(number * self._page_bytes, self._page_bytes)
        told, flags, lower, upper = _PAGE.unpack_from(page)
        if told != number or not _PAGE.size < lower <= upper <= self._page_bytes or lower % 2:
            raise _damage("a page has no valid header", page=number, tree=name)
        pointers = memoryview(page)[_PAGE.size : lower].cast("H")
        if min(pointers) < upper:
            raise _damage("a page points outside its nodes", page=number, tree=name)
        return flags, page, pointers

    def _read_leaf(
        self, page: bytes, pointers: memoryview, number: int, name: str
    ) -> Iterator[_Entry]:
        for at in pointers:
            value_bytes, flags, key_bytes = _NODE.unpack_from(page, at)
            key_at = at + _NODE.size
            value_at = key_at + key_bytes
            entry = _Entry(page[key_at:value_at], flags, page, value_at, value_bytes)
            if flags == _BIG:
                self._use_extent(entry, number, name)
            elif flags not in (0, _TREE) or value_at + value_bytes > self._page_bytes:
                raise _damage("an entry goes beyond its page", page=number, tree=name)
            yield entry

    def _use_extent(self, entry: _Entry, number: int, name: str) -> None:
        """Check the pages that hold a large value: only the first of them has a header."""
        (first,) = _NUMBER.unpack_from(entry.page, entry.value_at)
        needed = -(-(_PAGE.size + entry.value_bytes) // self._page_bytes)
        header = self._read(first * self._page_bytes, _EXTENT.size)
        told, flags, pages = _EXTENT.unpack_from(header)
        # There are more than it needs if it replaced a larger one within a transaction.
        if (told, flags) != (first, _OVERFLOW) or pages < needed:
            raise _damage("an entry's value is not where it should be", page=number, tree=name)
        self._use(first, pages, "a page is used twice")

    def _read_value(self, entry: _Entry) -> bytes:
        if entry.flags != _BIG:
            return entry.page[entry.value_at : entry.value_at + entry.value_bytes]
        (first,) = _NUMBER.unpack_from(entry.page, entry.value_at)
        return self._read(first * self._page_bytes + _PAGE.size, entry.value_bytes)

    def _use(self, first: int, pages: int, otherwise: str) -> None:
        """Note that pages are used. Each may be once, and must be in the file."""
        used = self._used[first : first + pages]
        if first < _METAS or len(used) < pages:
            raise _damage("a page lies beyond the end of the file", page=first)
        if any(used):
            raise _damage(otherwise, page=first)
        self._used[first : first + pages] = b"\x01" * pages

    def _read(self, at: int, count: int) -> bytes:
        """So many bytes of the file."""
        try:
            raw = os.pread(self._descriptor, count, at)
        except OverflowError as exc:
            raise _damage("a page lies beyond the end of the file") from exc
        if len(raw) < count:
            raise _damage("the file ends too early", bytes=at + count)
        return raw
