"""Settings that a user gives: what the annotations of their class say, or an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin, get_type_hints

from trio_p2p.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What can be iterated over, but is never meant as a sequence of settings.
_NO_SEQUENCES: Final = (str, bytes, Mapping)

_type_hints = cache(get_type_hints)


def check_types(settings: DataclassInstance, declared_by: type[DataclassInstance]) -> None:
    """Check each field that this class declares, of an object being made, against its annotation.

    What a subclass adds is its own affair. Sequences and mappings are copied, as they may be
    changed later. Any iterable will do for a sequence; one that can be gone through once has to be
    of the first kind of sequence that its field takes. Of functions only that they are callable is
    checked, and nothing of what isinstance cannot tell, such as Any.

    Raises: ConfigurationError, which does not repeat the value: it may be a secret.
    """
    for field in dataclasses.fields(declared_by):
        value = getattr(settings, field.name)
        try:
            taken = _taken(value, _type_hints(declared_by)[field.name])
        except TypeError as exc:
            raise ConfigurationError(
                f"{field.name} takes {field.type}", got=type(value).__name__
            ) from exc
        object.__setattr__(settings, field.name, taken)


def _taken(value: Any, hint: Any) -> Any:
    """The value as this type. Raises: TypeError if it is none of it."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        for alternative in inner:
            with suppress(TypeError):
                return _taken(value, alternative)
    elif kind is Mapping and isinstance(value, Mapping):
        return {_taken(key, inner[0]): _taken(item, inner[1]) for key, item in value.items()}
    elif kind is Sequence:
        if isinstance(value, Iterable) and not isinstance(value, _NO_SEQUENCES):
            return tuple(_taken(item, inner[0]) for item in value)
    elif _may_be(value, (int, float) if kind is float else kind):
        return value
    raise TypeError(f"{type(value).__name__} is not {hint}")


def _may_be(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:
        return True  # Any, Literal, NewType, most protocols: isinstance does not take them.
