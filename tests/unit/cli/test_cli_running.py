"""Commands under signals."""

import signal

import click
import pytest
import trio

from trio_p2p.cli.running import Stop, run, run_until_stopped

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("signal_number", "status"), SIGNALS)
def test_a_signal_cancels_a_plain_command(signal_number: int, status: int) -> None:
    async def command() -> None:
        signal.raise_signal(signal_number)
        await trio.sleep_forever()

    with pytest.raises(click.exceptions.Exit) as caught:
        run(command)
    assert caught.value.exit_code == status


@pytest.mark.parametrize(("signal_number", "status"), SIGNALS)
def test_the_first_signal_asks_a_graceful_command_to_end(signal_number: int, status: int) -> None:
    seen: list[int] = []

    async def command(stop: Stop) -> None:
        signal.raise_signal(signal_number)
        await stop.requested.wait()
        await trio.lowlevel.checkpoint()
        seen.append(stop.status)

    run_until_stopped(command)
    assert seen == [status]


def test_the_second_signal_cancels_a_graceful_command() -> None:
    async def command(stop: Stop) -> None:
        signal.raise_signal(signal.SIGINT)
        await stop.requested.wait()
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    with pytest.raises(click.exceptions.Exit) as caught:
        run_until_stopped(command)
    assert caught.value.exit_code == 143


def test_what_a_command_raises_leaves_as_it_was() -> None:
    async def command() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        run(command)
