"""Errors as sentences for people at a terminal: what is wrong, and what to do about it."""

from __future__ import annotations

from typing import Final

from trio_p2p.errors import (
    CollectionNotFoundError,
    DatabaseBusyError,
    DatabaseNotFoundError,
    DocumentNotFoundError,
    DuplicateDatabaseError,
    ListenError,
    NetworkUnavailableError,
    ReplicationError,
    StoreFormatError,
    StoreFullError,
    TrioP2PError,
    TrustError,
)

UNAUTHORIZED = 401
NOT_FOUND = 404

ADVICE: Final[tuple[tuple[type[TrioP2PError], str], ...]] = (
    (DatabaseNotFoundError, "check the path; put, import, sync and listen make a new database"),
    (DatabaseBusyError, "end the program that has it open, then try again"),
    (StoreFullError, "delete documents to make room"),
    (StoreFormatError, "use the version of trio-p2p that wrote it"),
    (CollectionNotFoundError, "`trio-p2p info` lists the collections there are"),
    (DocumentNotFoundError, "`trio-p2p ls` lists the documents there are"),
    (
        DuplicateDatabaseError,
        "`trio-p2p backup` makes a copy that is a database of its own: use that on one side",
    ),
    (ListenError, "choose another --port or --interface"),
    (NetworkUnavailableError, "check the host in the URL, and this machine's network"),
    (TrustError, "pass its fingerprint with --pin, its authority with --ca, or --self-signed"),
)


def sentence(error: TrioP2PError) -> str:
    """What went wrong, and where there is something to do, what."""
    advice = _replication_advice(error) if isinstance(error, ReplicationError) else _advice(error)
    return f"{error}: {advice}" if advice else str(error)


def _advice(error: BaseException | None) -> str | None:
    if isinstance(error, BaseExceptionGroup):  # What ended a session, beside what that led to.
        found = map(_advice, error.exceptions)
        return next((advice for advice in found if advice), None)
    return next((advice for kind, advice in ADVICE if isinstance(error, kind)), None)


def _replication_advice(error: ReplicationError) -> str | None:
    if error.status == UNAUTHORIZED:
        return "check the user name and password given with --user"
    if error.status == NOT_FOUND:
        return "check the database in the URL and the collections; `trio-p2p listen` prints URLs"
    if error.retryable:
        return "check that the peer listens at this URL, then run the command again"
    return _advice(error.__cause__)
