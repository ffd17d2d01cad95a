"""TCP connections to a peer, and what the failure to make one means."""

from __future__ import annotations

import errno
import socket
from typing import Final

import trio

from trio_p2p.errors import ConnectError, NetworkUnavailableError, PeerUnreachableError
from trio_p2p.retry import DNS_FAILURE, UNKNOWN_HOST, Retry, retry_after
from trio_p2p.transport.interfaces import interface_addresses

_USEFUL = (Retry.ALWAYS, Retry.CONTINUOUS, Retry.NEVER)
# Python makes these classes of these codes; programs raise them without any.
_CODES: Final[dict[type[OSError], int]] = {
    TimeoutError: errno.ETIMEDOUT,
    ConnectionRefusedError: errno.ECONNREFUSED,
    ConnectionResetError: errno.ECONNRESET,
    ConnectionAbortedError: errno.ECONNABORTED,
    BrokenPipeError: errno.EPIPE,
}


async def open_tcp(
    host: str, port: int, *, network_interface: str | None = None
) -> trio.SocketStream:
    """Connect to a host, from the addresses of this network interface (a name or an address).

    Raises: PeerUnreachableError if nothing answers, NetworkUnavailableError if the network does
    not lead there, ConnectError if it never will.
    Cancelling: safe. There is no deadline: the caller has one.
    """
    failures: list[OSError] = []
    for local in _local_addresses(network_interface):
        try:
            return await trio.open_tcp_stream(host, port, local_address=local)
        except socket.gaierror as exc:
            raise _lookup_error(exc, host) from exc
        except UnicodeError as exc:
            raise ConnectError("no host can have this name", host=host) from exc
        except OSError as exc:
            failures.append(exc)
    # It fails without a code only from addresses that are not ours, or of another family.
    raise connect_error(*failures, unknown=NetworkUnavailableError)


def connect_error(*failures: OSError, unknown: type[ConnectError] = ConnectError) -> ConnectError:
    """Our error for failures to connect to a peer's addresses: the most hopeful one counts."""
    errors = [error for failure in failures for error in _leaves(failure)]
    retries = [_retry(error) for error in errors]
    kinds = {
        Retry.ALWAYS: PeerUnreachableError,
        Retry.CONTINUOUS: NetworkUnavailableError,
        Retry.NEVER: ConnectError if any(error.errno for error in errors) else unknown,
    }
    best = next(retry for retry in _USEFUL if retry in retries)
    error = errors[retries.index(best)]
    made = kinds[best](f"no connection: {error.strerror or error}")
    made.__cause__ = failures[0]
    return made


def _lookup_error(failure: socket.gaierror, host: str) -> ConnectError:
    if _retry(failure) is Retry.ALWAYS:
        return PeerUnreachableError(f"the host cannot be looked up: {failure.strerror}", host=host)
    return NetworkUnavailableError("there is no host of this name", host=host)


def _retry(error: OSError) -> Retry:
    """Whom trying again may help after an error of a single address, or of looking it up."""
    if isinstance(error, socket.gaierror):
        # Looked up and not there; a name server that cannot be reached is another error.
        unknown = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
        return retry_after("Network", UNKNOWN_HOST if unknown else DNS_FAILURE)
    of_class = (code for kind, code in _CODES.items() if isinstance(error, kind))
    return retry_after("POSIX", error.errno or next(of_class, 0))


def _local_addresses(network_interface: str | None) -> list[str | None]:
    if network_interface is None:
        return [None]
    found = interface_addresses(network_interface)
    if not found:
        raise NetworkUnavailableError(
            "this machine has no such network interface", interface=network_interface
        )
    return [str(address) for address in found]


def _leaves(failure: OSError) -> list[OSError]:
    """The errors of the single addresses of a host, which Trio chains in a group."""
    group = failure.__cause__
    members = group.exceptions if isinstance(group, BaseExceptionGroup) else ()
    return [member for member in members if isinstance(member, OSError)] or [failure]
