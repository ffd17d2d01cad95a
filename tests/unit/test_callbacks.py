"""What a function of the program's fails with."""

import pytest
import trio

from trio_p2p.callbacks import failure_of


async def cut_off(*failures: BaseException) -> BaseException:
    """What leaves a nursery that is cancelled, whose tasks then raise these."""

    async def fail(failure: BaseException) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise failure

    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            async with trio.open_nursery() as nursery:
                for failure in failures:
                    nursery.start_soon(fail, failure)
                await trio.sleep_forever()
        except BaseException as exc:
            raised = exc
    return raised


async def test_what_a_function_raises_is_its_failure() -> None:
    failure = ValueError()
    assert failure_of(failure) is failure
    group = ExceptionGroup("", [failure])
    assert failure_of(group).exceptions == (failure,)  # type: ignore[union-attr]


async def test_one_that_is_only_cancelled_has_not_failed() -> None:
    assert failure_of(await cut_off()) is None


async def test_what_its_tasks_raise_while_they_are_cut_off_is_its_failure() -> None:
    failure = failure_of(await cut_off(ValueError(), KeyError()))
    assert pytest.RaisesGroup(ValueError, KeyError).matches(failure)


async def test_who_interrupts_the_program_is_not_held_up() -> None:
    assert failure_of(KeyboardInterrupt()) is None
    assert failure_of(await cut_off(ValueError(), KeyboardInterrupt())) is None
