"""`listen`: serve a database to other peers."""

from __future__ import annotations

from pathlib import Path

import click
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_p2p import (
    ListenerPasswordAuthenticator,
    URLEndpointListener,
    URLEndpointListenerConfiguration,
    limits,
    open_database,
    open_listener,
    same_secret,
)
from trio_p2p.cli.console import emit, tell
from trio_p2p.cli.options import (
    Credentials,
    collections_option,
    database_argument,
    delta_option,
    identity_option,
    json_option,
    keys_option,
    load_identity,
    make_collections,
    open_key_store,
    user_option,
)
from trio_p2p.cli.running import Stop, run_until_stopped
from trio_p2p.hearsay import repeatable
from trio_p2p.transport.base import open_services


@click.command()
@database_argument
@click.option("--port", type=click.IntRange(0, 2**16 - 1), default=0, help="0: any free one.")
@click.option("--interface", metavar="NAME|ADDRESS", help="Where to listen, instead of everywhere.")
@user_option
@click.option(
    "--users",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Let in the users of a password file; `trio-p2p passwd` writes it.",
)
@identity_option
@keys_option
@click.option(
    "--no-tls", is_flag=True, help="Listen without TLS: everything can be read on the way."
)
@click.option("--read-only", is_flag=True, help="Let others pull, but not push.")
@delta_option
@collections_option
@json_option
def listen(
    database: Path,
    port: int,
    interface: str | None,
    user: Credentials | None,
    users: Path | None,
    identity: str | None,
    keys: Path | None,
    no_tls: bool,
    read_only: bool,
    delta: bool,
    collections: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve a database to other peers until SIGINT or SIGTERM.

    Its URLs are printed one a line as soon as it listens, then the fingerprint of its certificate
    on standard error, for `sync --pin`. All collections are served unless some are named.
    """
    if user is not None and users is not None:
        raise click.UsageError("--user and --users exclude each other")
    if no_tls and identity is not None:
        raise click.UsageError("--no-tls shows no certificate: leave --identity out")
    authenticator = _authenticator(user, users)
    shown = None if identity is None else load_identity(identity, keys)

    async def command(stop: Stop) -> None:
        async with open_database(database, delta_sync=delta) as db:
            configuration = URLEndpointListenerConfiguration(
                collections=await make_collections(db, collections) or db.collections(),
                port=port,
                network_interface=interface,
                disable_tls=no_tls,
                tls_identity=shown,
                authenticator=authenticator,
                read_only=read_only,
                key_store=None if keys is None else open_key_store(keys),
                enable_delta_sync=delta,
            )
            async with open_listener(configuration) as listener:
                _announce(listener, as_json)
                async with open_services() as services:
                    services.start_soon(_show_connections, listener)
                    await stop.requested.wait()

    run_until_stopped(command)


def _authenticator(
    user: Credentials | None, users: Path | None
) -> ListenerPasswordAuthenticator | None:
    if users is not None:
        return ListenerPasswordAuthenticator.from_file(users)
    if user is None:
        return None

    def is_user(name: str, password: str) -> bool:
        # Both are compared, so that the time taken tells nothing of which differs.
        named = same_secret(name, user.name)
        return same_secret(password, user.password) and named

    return ListenerPasswordAuthenticator(is_user)


def _announce(listener: URLEndpointListener, as_json: bool) -> None:
    identity = listener.tls_identity
    fingerprint = None if identity is None else identity.fingerprint
    if as_json:
        emit({"urls": listener.urls, "port": listener.port, "fingerprint": fingerprint})
        return
    click.echo("\n".join(listener.urls))
    if fingerprint is not None:
        tell(f"fingerprint {fingerprint}")
    if listener.configuration.authenticator is None:
        tell("Anyone who reaches this machine can read and write: --user or --users asks who.")


async def _show_connections(listener: URLEndpointListener) -> None:
    """On a terminal, show who is connected."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        while True:
            live.update(_connection_table(listener), refresh=True)
            await trio.sleep(limits.PROGRESS_INTERVAL_S)


def _connection_table(listener: URLEndpointListener) -> Table:
    table = Table("peer", "user", "since", "activity")
    for connection in listener.connections():
        table.add_row(
            Text(connection.peer_address),  # Not markup: [fe80::1] would be taken for a tag.
            Text(repeatable(connection.user or "")),
            f"{connection.since.astimezone():%H:%M:%S}",
            "busy" if connection.active else "idle",
        )
    statistics = listener.statistics()
    received, sent = statistics.documents_pulled, statistics.documents_pushed
    table.caption = f"{received:,} documents received, {sent:,} sent"
    return table
