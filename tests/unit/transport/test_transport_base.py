"""The nursery for services."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p.transport.base import open_services


async def what_leaves_when_the_block_raises(error: Exception) -> Exception | None:
    try:
        async with open_services() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    except Exception as exc:
        return exc


async def test_services_stop_when_the_block_is_left():
    stopped = False

    async def service():
        nonlocal stopped
        try:
            await trio.sleep_forever()
        finally:
            stopped = True

    async with open_services() as nursery:
        nursery.start_soon(service)
        await wait_all_tasks_blocked()
    assert stopped


async def test_what_the_block_raises_is_not_wrapped():
    error = ValueError("mine")
    assert await what_leaves_when_the_block_raises(error) is error


async def test_a_group_raised_by_the_block_is_not_wrapped_again():
    error = ExceptionGroup("mine", [ValueError()])
    assert await what_leaves_when_the_block_raises(error) is error


async def failing_service():
    await trio.lowlevel.checkpoint()
    raise KeyError("bug")


@pytest.mark.parametrize("open_inner", [trio.open_nursery, open_services])
async def test_a_failing_service_ends_a_block_that_waits_for_others(open_inner):
    with pytest.RaisesGroup(KeyError):
        async with open_services() as nursery:
            nursery.start_soon(failing_service)
            async with open_inner():
                await trio.sleep_forever()


async def test_a_failing_service_ends_the_block():
    with pytest.RaisesGroup(KeyError):
        async with open_services() as nursery:
            nursery.start_soon(failing_service)
            await trio.sleep_forever()


async def test_a_cancelled_block_stays_cancelled():
    with trio.CancelScope() as scope:
        async with open_services() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
