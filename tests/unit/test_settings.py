"""Settings are what the annotations of their class say."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NewType, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import ConfigurationError
from trio_p2p.settings import check_types

if TYPE_CHECKING:
    from decimal import Decimal


class Way(Enum):
    THERE = "there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    way: Way = Way.THERE
    wait_s: float = 1.0
    count: int | None = None
    is_open: bool = False
    asks: Callable[[str], bool] | None = None
    names: Sequence[str] | None = None
    roots: str | Sequence[str | bytes] | None = None
    ports: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, Settings)


NAMES = list(Settings.__dataclass_fields__)

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.sampled_from([Way, Way.THERE, "there", len, object()]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=2)
        | st.sets(st.text(max_size=2), max_size=2)
        | st.lists(inner, max_size=2).map(iter)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "given_settings",
    [
        {"way": Way.THERE},
        {"wait_s": 3},
        {"wait_s": math.inf},
        {"count": 5},
        {"is_open": True},
        {"asks": str.isascii},
        {"names": ("a", "b")},
        {"roots": "a"},
        {"roots": ("a", b"b")},
        {"ports": {"a": 1}},
    ],
)
def test_what_is_of_the_declared_type_is_taken(given_settings: dict[str, Any]) -> None:
    settings = Settings(**given_settings)
    for name, value in given_settings.items():
        assert getattr(settings, name) == value


@pytest.mark.parametrize(
    "given_settings",
    [
        {"way": "there"},
        {"way": None},
        {"way": Way},
        {"wait_s": "3"},
        {"count": 1.0},
        {"is_open": 1},
        {"asks": 5},
        {"names": "a"},
        {"names": b"a"},
        {"names": [5]},
        {"names": {"a": "b"}},
        {"roots": ["a", 5]},
        {"roots": b"a"},
        {"ports": [("a", 1)]},
        {"ports": {1: 1}},
        {"ports": {"a": "1"}},
    ],
)
def test_any_other_type_is_refused(given_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Settings(**given_settings)


def test_the_error_names_the_setting_and_its_type_and_keeps_the_value_to_itself() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(count="s3cret")  # type: ignore[arg-type]
    assert "count" in str(caught.value)
    assert "int | None" in str(caught.value)
    assert "str" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_can_be_gone_through_once_is_not_used_up() -> None:
    settings = Settings(names=(name for name in "ab"))  # type: ignore[arg-type]
    assert settings.names == ("a", "b")


def test_what_is_changed_later_does_not_change_settings() -> None:
    names, ports = ["a"], {"a": 1}
    settings = Settings(names=names, ports=ports)
    names.append("b")
    ports["b"] = 2
    assert (settings.names, settings.ports) == (("a",), {"a": 1})


def test_the_fields_that_a_subclass_adds_are_its_own_affair() -> None:
    class Local:
        pass

    @dataclass(frozen=True, kw_only=True)
    class More(Settings):
        price: Decimal | None = None
        local: Local | None = None
        labels: Sequence[str] = ()

    labels: Any = ["a", 5]
    settings = More(count=5, labels=labels, price=5)  # type: ignore[arg-type]
    assert (settings.count, settings.price) == (5, 5)
    assert settings.labels is labels
    with pytest.raises(ConfigurationError, match="count"):
        More(count="5")  # type: ignore[arg-type]


Number = NewType("Number", int)


class Shows(Protocol):
    def show(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Vague:
    anything: Any = None
    side: Literal["left", "right"] = "left"
    number: Number | None = None
    shows: Shows | None = None
    many: Sequence[Any] = ()

    def __post_init__(self) -> None:
        check_types(self, Vague)


@pytest.mark.parametrize("name", Vague.__dataclass_fields__)
def test_what_cannot_be_told_at_run_time_is_taken(name: str) -> None:
    assert getattr(Vague(**{name: (5, "a")}), name) == (5, "a")


@given(name=st.sampled_from(NAMES), value=anything)
def test_whatever_is_given_is_taken_or_refused_with_one_error(name: str, value: Any) -> None:
    with contextlib.suppress(ConfigurationError):
        Settings(**{name: value})
