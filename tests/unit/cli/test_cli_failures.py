"""Errors as sentences."""

import pytest

from trio_p2p import errors
from trio_p2p.cli.failures import sentence


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errors.DatabaseBusyError("open"), "end the program"),
        (errors.DatabaseNotFoundError("none"), "check the path"),
        (errors.ReplicationError("refused", status=401), "--user"),
        (errors.ReplicationError("not found", status=404), "the database in the URL"),
        (errors.ReplicationError("no connection", retryable=True), "run the command again"),
    ],
)
def test_an_error_comes_with_what_to_do(error: errors.TrioP2PError, advice: str) -> None:
    assert sentence(error).startswith(f"{error}: ")
    assert advice in sentence(error)


def test_a_certificate_that_ended_a_replication_is_told_how_to_trust() -> None:
    error = errors.ReplicationError("not trusted")
    error.__cause__ = errors.TrustError("not trusted")
    assert "--self-signed" in sentence(error)


def test_a_network_that_leads_nowhere_is_told_to_be_checked() -> None:
    error = errors.ReplicationError("there is no host of this name")
    error.__cause__ = errors.NetworkUnavailableError("there is no host of this name")
    assert "check the host" in sentence(error)


def test_an_error_without_advice_speaks_for_itself() -> None:
    assert sentence(errors.StoreCorruptError("damaged", path="a.p2p")) == "damaged (path='a.p2p')"
    assert sentence(errors.ReplicationError("stopped")) == "stopped"


def test_what_ended_a_session_is_found_in_its_group() -> None:
    copies = errors.DuplicateDatabaseError("both peers hold copies of the same database")
    group = ExceptionGroup("two tasks failed", [errors.ConnectionLostError("gone"), copies])
    error = errors.ReplicationError("both peers hold copies of the same database")
    error.__cause__ = ExceptionGroup("a session failed", [group])
    assert "trio-p2p backup" in sentence(error)
