"""`sync`: replicate with a listening peer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from trio_p2p import (
    ActivityLevel,
    BasicAuthenticator,
    ClientCertificateAuthenticator,
    ConfigurationError,
    DocumentReplication,
    Replicator,
    ReplicatorConfiguration,
    ReplicatorResult,
    ReplicatorStatus,
    ReplicatorType,
    limits,
    open_database,
    open_replicator,
)
from trio_p2p.cli.console import emit, open_progress, tell
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
    user_option,
)
from trio_p2p.cli.running import Stop, run_until_stopped
from trio_p2p.replication.connector import Endpoint
from trio_p2p.security.trust import Roots, parse_pinned, parse_roots
from trio_p2p.transport.base import open_services


def _check_url(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        Endpoint.parse(value)
    except ConfigurationError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


def _check_pin(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            parse_pinned(value)
    except ConfigurationError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


def _read_roots(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Roots | None:
    try:
        return None if value is None else parse_roots(value.read_bytes())
    except ConfigurationError as exc:
        raise click.BadParameter(str(exc)) from exc


@click.command()
@database_argument
@click.argument("url", callback=_check_url)
@click.option("--push", is_flag=True, help="Only send documents.")
@click.option("--pull", is_flag=True, help="Only receive documents.")
@click.option("--continuous", is_flag=True, help="Stay, and follow changes on both sides.")
@user_option
@click.option("--pin", metavar="FINGERPRINT", callback=_check_pin, help="Trust this certificate.")
@click.option("--self-signed", is_flag=True, help="Trust any certificate that signed itself.")
@click.option(
    "--ca",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_read_roots,
    help="Trust these authorities (PEM or DER), instead of the system's, for this host name.",
)
@identity_option
@keys_option
@click.option(
    "--attempts",
    metavar="N",
    type=click.IntRange(min=1),
    help="Connection attempts in a row; 3 unless told, with --continuous unlimited.",
)
@click.option("--reset-checkpoint", is_flag=True, help="Start over: compare all documents again.")
@delta_option
@collections_option
@json_option
def sync(
    database: Path,
    url: str,
    push: bool,
    pull: bool,
    continuous: bool,
    user: Credentials | None,
    pin: str | None,
    self_signed: bool,
    ca: Roots | None,
    identity: str | None,
    keys: Path | None,
    attempts: int | None,
    reset_checkpoint: bool,
    delta: bool,
    collections: tuple[str, ...],
    as_json: bool,
) -> None:
    """Replicate a database with the peer that listens at URL, both ways unless told otherwise.

    SIGINT and SIGTERM end it gracefully: what was done is kept, and the next run goes on there.
    --json prints the result as the last line of standard output.
    """
    _check_trust(url, {"--pin": pin, "--self-signed": self_signed, "--ca": ca})
    authenticator = _authenticator(url, user, identity, keys)
    kinds = {(True, False): ReplicatorType.PUSH, (False, True): ReplicatorType.PULL}

    async def command(stop: Stop) -> None:
        async with open_database(database, delta_sync=delta) as db:
            configuration = ReplicatorConfiguration(
                target=url,
                collections=await make_collections(db, collections) or [db.default_collection],
                replicator_type=kinds.get((push, pull), ReplicatorType.PUSH_AND_PULL),
                continuous=continuous,
                authenticator=authenticator,
                pinned_server_certificate=pin,
                accept_only_self_signed_server_certificate=self_signed,
                trusted_root_certificates=ca,
                enable_delta_sync=delta,
                max_attempts=attempts or (None if continuous else limits.SYNC_ATTEMPTS_ONE_SHOT),
            )
            replicator = await follow(configuration, stop, reset_checkpoint=reset_checkpoint)
        _report(replicator.result(), as_json)
        if stop.status:
            raise click.exceptions.Exit(stop.status)
        check_outcome(replicator)

    run_until_stopped(command)


def _check_trust(url: str, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if given and not Endpoint.parse(url).secure:
        raise click.UsageError("a ws:// URL has no certificate to trust: use wss://")


def _authenticator(
    url: str, user: Credentials | None, identity: str | None, keys: Path | None
) -> BasicAuthenticator | ClientCertificateAuthenticator | None:
    if user is not None and identity is not None:
        raise click.UsageError("--user and --identity exclude each other")
    if user is not None:
        return BasicAuthenticator(user.name, user.password)
    if identity is None:
        return None
    if not Endpoint.parse(url).secure:
        raise click.UsageError("a certificate can be shown to wss:// URLs only")
    return ClientCertificateAuthenticator(load_identity(identity, keys))


async def follow(
    configuration: ReplicatorConfiguration, stop: Stop, *, reset_checkpoint: bool = False
) -> Replicator:
    """Run a replicator to its end, showing what it does; a signal stops it gracefully.

    Cancelling: as leaving `open_replicator`.
    """
    show = _show_activity if configuration.continuous else _show_progress
    async with (
        open_replicator(configuration, reset_checkpoint=reset_checkpoint) as replicator,
        open_services() as services,
    ):
        services.start_soon(_stop_when_asked, replicator, stop)
        services.start_soon(show, replicator)
        async for event in replicator.document_replications():
            if event.error is not None:
                tell(f"{event.direction.value} of {event.document_id!r} failed: {event.error}")
    return replicator


def check_outcome(replicator: Replicator) -> None:
    """Raise what ended a replicator, or click's Exit if it did its work but for some documents."""
    error = replicator.status.error
    if error is not None:
        raise error
    if replicator.statistics().documents_failed:
        raise click.exceptions.Exit(1)


async def _stop_when_asked(replicator: Replicator, stop: Stop) -> None:
    await stop.requested.wait()
    await replicator.stop()


async def _show_progress(replicator: Replicator) -> None:
    with open_progress("documents") as show:
        async for status in replicator.status_changes():
            show(status.progress.completed, status.progress.total)
            if status.activity is ActivityLevel.OFFLINE:
                tell(f"offline: {status.error}")


async def _show_activity(replicator: Replicator) -> None:
    """Print each change of activity, with what was done so far or what keeps it offline."""
    told = ""
    async for status in replicator.status_changes():
        line = _activity_text(status, replicator.result())
        # Work may begin and end between two looks: then only the counts tell of it.
        if line != told:
            told = line
            tell(line)


def _activity_text(status: ReplicatorStatus, result: ReplicatorResult) -> str:
    if status.activity is ActivityLevel.OFFLINE:
        return f"offline: {status.error}"
    if status.activity is ActivityLevel.IDLE:
        return f"idle: {_counts(result)}"
    return str(status.activity.value)


def _counts(result: ReplicatorResult) -> str:
    failed = f", {result.documents_failed:,} failed" if result.documents_failed else ""
    return f"{result.documents_pushed:,} pushed, {result.documents_pulled:,} pulled{failed}"


def _report(result: ReplicatorResult, as_json: bool) -> None:
    if as_json:
        emit(_result_json(result))
        return
    tell(f"Documents: {_counts(result)}.")
    statistics = result.statistics
    if statistics.deltas_sent or statistics.deltas_received:
        tell(
            f"Of these as deltas: {statistics.deltas_sent:,} pushed, {statistics.deltas_received:,}"
            f" pulled, {statistics.delta_bytes_saved:,} bytes saved."
        )


def _result_json(result: ReplicatorResult) -> dict[str, Any]:
    return {
        "documents_pushed": result.documents_pushed,
        "documents_pulled": result.documents_pulled,
        "documents_failed": result.documents_failed,
        "errors": [_event_json(event) for event in result.errors],
        "statistics": dataclasses.asdict(result.statistics),
    }


def _event_json(event: DocumentReplication) -> dict[str, Any]:
    return {
        "direction": event.direction.value,
        "collection": event.collection.full_name,
        "document_id": event.document_id,
        "error": str(event.error),
    }
