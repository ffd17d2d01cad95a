"""TCP connections to a peer, and what the failure to make one means."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import trio

from trio_p2p.errors import ConnectError, NetworkUnavailableError, PeerUnreachableError
from trio_p2p.retry import DNS_FAILURE, UNKNOWN_HOST, Retry, retry_after
from trio_p2p.transport.interfaces import interface_addresses

_USEFUL = (Retry.ALWAYS, Retry.CONTINUOUS, Retry.NEVER)


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
    retries = [retry_after("POSIX", error.errno or 0) for error in errors]
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
    # Looked up and not there; a name server that cannot be reached is another error.
    unknown = failure.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
    if retry_after("Network", UNKNOWN_HOST if unknown else DNS_FAILURE) is Retry.ALWAYS:
        return PeerUnreachableError(f"the host cannot be looked up: {failure.strerror}", host=host)
    return NetworkUnavailableError("there is no host of this name", host=host)


def _local_addresses(network_interface: str | None) -> list[str | None]:
    if network_interface is None:
        return [None]
    found = interface_addresses(network_interface)
    if not found:
        raise NetworkUnavailableError(
            "this machine has no such network interface", interface=network_interface
        )
    return [str(address) for address in found]


def _leaves(failure: BaseException) -> Iterator[OSError]:
    """The errors of the single addresses of a host, which Trio chains in a group."""
    group = failure.__cause__ if isinstance(failure, OSError) else failure
    if isinstance(group, BaseExceptionGroup):
        for member in group.exceptions:
            yield from _leaves(member)
    elif isinstance(failure, OSError):
        yield failure
