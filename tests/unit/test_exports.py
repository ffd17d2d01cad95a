"""The public names, exactly."""

import inspect

import trio_p2p
from trio_p2p import errors


def test_every_promised_name_is_there_once() -> None:
    assert len(set(trio_p2p.__all__)) == len(trio_p2p.__all__)
    for name in trio_p2p.__all__:
        assert hasattr(trio_p2p, name), name


def test_nothing_public_is_exported_without_being_promised() -> None:
    exported = {
        name
        for name, value in vars(trio_p2p).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert exported == set(trio_p2p.__all__)


def test_every_public_error_is_in_the_tree_that_its_module_draws() -> None:
    drawn = errors.__doc__ or ""
    classes = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    for error in classes:
        assert issubclass(error, errors.TrioP2PError)
        assert error.__name__ in drawn, error


def test_every_public_name_is_documented() -> None:
    for name in trio_p2p.__all__:
        value = getattr(trio_p2p, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
