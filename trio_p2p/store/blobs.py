"""Blobs as users hold them: saving, reading, and what to know of those that are held."""

from __future__ import annotations

import hashlib
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from weakref import WeakValueDictionary

import trio

from trio_p2p import limits
from trio_p2p.errors import (
    BlobNotFoundError,
    InvalidDocumentError,
    StoreCorruptError,
)
from trio_p2p.model.blob import format_digest, parse_digest
from trio_p2p.store import files
from trio_p2p.store.blob_files import UnfinishedBlob
from trio_p2p.store.turns import LosableTurn

if TYPE_CHECKING:
    from trio_p2p.store.engine import Engine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blob:
    """Content of any size that documents name: put it anywhere into a body.

    `digest` is `sha1-` and the base64 of its SHA-1, `length` its bytes, `content_type` a MIME type.
    While a program has it, the content is not dropped, even if no document names it yet.
    """

    digest: str
    length: int
    content_type: str
    _content: _Content = field(repr=False, compare=False)
    _properties: Mapping[str, Any] = field(repr=False, compare=False)

    def blob_properties(self) -> dict[str, Any]:
        """The mapping that names it in a body."""
        return dict(self._properties)

    async def read(self) -> bytes:
        """The content, checked against the digest.

        Raises: BlobNotFoundError if the database does not hold it, StoreCorruptError if it was
        damaged, StoreError if it cannot be read, StoreClosedError.
        Cancelling: takes effect once it is read; `open` is for what may take long.
        """
        return await self._content.read()

    def open(self) -> AbstractAsyncContextManager[BlobStream]:
        """Read the content in parts, for any size. The stream raises what `read` does.

        That content was damaged is known when its end is reached.
        """
        return self._content.open()


class BlobStream(trio.abc.ReceiveStream):
    """The content of a blob; ends, as streams do, with an empty part."""

    def __init__(self, file: BinaryIO, content: _Content, start: int) -> None:
        self.start = start
        """Where in the content it begins. If not at its beginning, damage is not noticed."""
        self._file = file
        self._content = content
        self._sha1 = hashlib.sha1(usedforsecurity=False)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next part, at most `max_bytes` of it.

        Raises: StoreCorruptError at the end if it is not what was saved, StoreError.
        Cancelling: safe.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        if self._file.closed:
            raise trio.ClosedResourceError("the blob was closed")
        with _disk_failures(self._content.engine):
            part = await self._content.engine.run_aside(
                self._read, max_bytes or limits.BLOB_PART_BYTES
            )
        if not part and not self.start and self._sha1.digest() != self._content.sha1:
            raise self._content.damaged()
        return part

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def aclose(self) -> None:
        """Close the file."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _read(self, max_bytes: int) -> bytes:
        part = self._file.read(max_bytes)
        self._sha1.update(part)
        return part


class _Content:
    """The content of all blobs of one digest; there as long as a program has any of them."""

    __slots__ = ("__weakref__", "_receiving", "engine", "sha1")

    def __init__(self, engine: Engine, sha1: bytes) -> None:
        self.engine = engine
        self.sha1 = sha1
        self._receiving: LosableTurn | None = None

    @property
    def receiving(self) -> LosableTurn:
        """The turn of who receives it; made when first needed, since few blobs are received."""
        if self._receiving is None:
            self._receiving = LosableTurn(limits.BLOB_BYTES_PER_S_MIN)
        return self._receiving

    async def read(self) -> bytes:
        return await self._run(self._read)

    @asynccontextmanager
    async def open(self, start: int = 0) -> AsyncIterator[BlobStream]:
        file, at = await self._run(self._open, start)
        stream = BlobStream(file, self, at)
        try:
            yield stream
        finally:
            stream.close()

    def damaged(self) -> StoreCorruptError:
        return StoreCorruptError(
            "a blob is damaged: restore a backup, or save it again",
            digest=format_digest(self.sha1),
        )

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        """Call what needs the file, in a thread."""
        self.engine.check_open()
        with _disk_failures(self.engine):
            try:
                return await self.engine.run_aside(function, *args)
            except FileNotFoundError as exc:
                raise BlobNotFoundError(
                    "the database does not hold this blob", digest=format_digest(self.sha1)
                ) from exc

    def _read(self) -> bytes:
        content = self._path.read_bytes()
        if hashlib.sha1(content, usedforsecurity=False).digest() != self.sha1:
            raise self.damaged()
        return content

    def _open(self, start: int) -> tuple[BinaryIO, int]:
        file = self._path.open("rb")
        if start > os.fstat(file.fileno()).st_size:
            start = 0
        file.seek(start)
        return file, start

    @property
    def _path(self) -> Path:
        return self.engine.blob_files.path(self.sha1)


class IncomingBlob:
    """A blob that comes from elsewhere; `Blobs.receive` makes one."""

    def __init__(self, unfinished: UnfinishedBlob, content: _Content) -> None:
        self._unfinished = unfinished
        self._content = content
        self.is_resumed = unfinished.length > 0
        """Whether its beginning was here before."""

    @property
    def length(self) -> int:
        """How much of it is here."""
        return self._unfinished.length

    async def restart(self) -> None:
        """Begin anew: what comes does not follow on what is here. Raises StoreError."""
        self.is_resumed = False
        await self._run(self._unfinished.restart)

    async def write(self, data: bytes) -> None:
        """Append. Raises StoreError, InvalidDocumentError."""
        await self._run(self._unfinished.write, data)
        self._content.receiving.move(len(data))

    async def finish(self) -> bool:
        """Keep it if it is what its digest says, durably; else begin anew. Raises StoreError."""
        if self._unfinished.sha1 != self._content.sha1:
            await self.restart()
            return False
        await self._run(self._unfinished.finish)
        return True

    async def _run(self, function: Callable[..., object], *args: object) -> None:
        with _disk_failures(self._content.engine):
            await self._content.engine.run_aside(function, *args)


class Blobs:
    """The blobs of one database: makes the objects that stand for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._contents: WeakValueDictionary[bytes, _Content] = WeakValueDictionary()

    def is_in_hand(self, sha1: bytes) -> bool:
        """Whether the program has an object that stands for it."""
        return sha1 in self._contents

    def keep(self, sha1: bytes) -> object:
        """A blob is not dropped while somebody has what this returns, be it here or yet to come."""
        return self._content(sha1)

    def named(self, properties: Mapping[str, Any]) -> Blob:
        """The object for a mapping in a body that names a blob."""
        sha1 = parse_digest(properties.get("digest"))
        assert sha1 is not None
        length, content_type = properties.get("length"), properties.get("content_type")
        return Blob(
            format_digest(sha1),
            length if type(length) is int else self._engine.blob_files.length(sha1),
            content_type if isinstance(content_type, str) else "",
            self._content(sha1),
            properties,
        )

    def open(self, sha1: bytes, start: int = 0) -> AbstractAsyncContextManager[BlobStream]:
        """Read a blob, from a place in it on, or from its beginning if it is not as long.

        Raises: as `Blob.read`.
        """
        return self._content(sha1).open(start)

    @asynccontextmanager
    async def receive(
        self, sha1: bytes, patience_s: float = limits.BLOB_PATIENCE_S
    ) -> AsyncIterator[IncomingBlob | None]:
        """Save a blob that comes from elsewhere; None if it is here already.

        What has come when the block is left without `finish` is kept and gone on with next time.
        Only one task at a time receives a blob. Others wait for it, until it is `patience_s` behind
        the least rate: then one of them goes on with what is there, and the block of the first one
        is cut off and ends without an error.

        Raises: StoreError. Cancelling: safe.
        """
        content = self._content(sha1)
        files = self._engine.blob_files
        async with content.receiving.take(patience_s):
            is_here = files.has(sha1)
            if not is_here:
                with _disk_failures(self._engine):
                    unfinished = await self._engine.run_aside(files.resume, sha1)
                with unfinished:
                    content.receiving.move(0)
                    yield IncomingBlob(unfinished, content)
        if is_here:
            yield None

    async def save(self, data: bytes | AsyncIterable[bytes], content_type: str) -> Blob:
        """As `Database.save_blob`."""
        if not isinstance(content_type, str) or not content_type.isprintable():
            raise InvalidDocumentError("a content type is printable text", got=content_type)
        self._engine.check_open()
        with _disk_failures(self._engine):
            if isinstance(data, bytes | bytearray | memoryview):
                return await self._save(_one_part(bytes(data)), content_type)
            if isinstance(data, AsyncIterable):
                return await self._save(_gathered(data), content_type)
        raise InvalidDocumentError(
            "a blob is made from bytes, or an async iterable of them", got=type(data).__name__
        )

    def _content(self, sha1: bytes) -> _Content:
        found = self._contents.get(sha1)
        if found is None:
            found = self._contents[sha1] = _Content(self._engine, sha1)
        return found

    async def _save(self, parts: AsyncGenerator[bytes, None], content_type: str) -> Blob:
        run = self._engine.run_aside
        async with aclosing(parts):
            with await run(self._engine.blob_files.begin) as unfinished:
                async for part in parts:
                    await run(unfinished.write, part)
                blob = self.named(
                    {
                        "@type": "blob",
                        "content_type": content_type,
                        "digest": format_digest(unfinished.sha1),
                        "length": unfinished.length,
                    }
                )
                # In hand from now on, so that nobody removes it the moment it has its name.
                await run(unfinished.finish)
        return blob


async def _one_part(data: bytes) -> AsyncGenerator[bytes, None]:
    await trio.lowlevel.checkpoint()
    yield data


async def _gathered(parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in parts that are worth a call in a thread each."""
    waiting = bytearray()
    async for part in parts:
        if not isinstance(part, bytes | bytearray | memoryview):
            raise InvalidDocumentError("a blob is made of bytes", got=type(part).__name__)
        waiting += part
        if len(waiting) >= limits.BLOB_PART_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


@contextmanager
def _disk_failures(engine: Engine) -> Iterator[None]:
    """Turns what the operating system refuses into a StoreError."""
    try:
        yield
    except OSError as exc:
        raise files.failure("a blob could not be saved or read", engine.path, exc) from exc
