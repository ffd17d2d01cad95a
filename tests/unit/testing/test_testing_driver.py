from __future__ import annotations

import pytest
import trio

from trio_p2p.testing.driver import TrioDriver


@pytest.fixture
def driver():
    driver = TrioDriver()
    yield driver
    driver.close()


async def double(number):
    await trio.sleep(1000)
    return 2 * number


async def fail():
    await trio.sleep(1)
    raise ValueError("mine")


def test_a_call_returns_what_the_function_returns_without_waiting(driver):
    assert driver.run(double, 21) == 42
    assert driver.run(trio.sleep, 0) is None


def test_a_call_raises_what_the_function_raises_and_the_loop_goes_on(driver):
    with pytest.raises(ValueError, match="mine"):
        driver.run(fail)
    assert driver.run(double, 1) == 2


def test_tasks_stay_in_the_background_between_calls(driver):
    beats = []

    async def beat(task_status):
        task_status.started("beating")
        while True:
            await trio.sleep(1)
            beats.append(trio.current_time())

    assert driver.run(driver.nursery.start, beat) == "beating"
    driver.run(trio.sleep, 3.5)
    assert len(beats) == 3


def test_settling_lets_tasks_run_until_they_are_blocked(driver):
    done = []

    async def work():
        for number in range(5):
            await trio.lowlevel.checkpoint()
            done.append(number)
        await trio.sleep(1000)
        done.append("too late")

    driver.nursery.start_soon(work)
    driver.settle()
    assert done == [0, 1, 2, 3, 4]


def test_a_crash_in_the_background_surfaces_in_the_next_call():
    driver = TrioDriver()
    driver.nursery.start_soon(fail)
    with pytest.RaisesGroup(ValueError):
        driver.run(double, 1)
    with pytest.raises(RuntimeError, match="ended"):
        driver.run(double, 1)
    driver.close()


def test_closing_runs_the_cleanup_of_what_is_in_the_background():
    driver = TrioDriver()
    cleaned = []

    async def hold():
        try:
            await trio.sleep_forever()
        finally:
            cleaned.append(True)

    driver.nursery.start_soon(hold)
    driver.settle()
    driver.close()
    assert cleaned == [True]
    driver.close()
