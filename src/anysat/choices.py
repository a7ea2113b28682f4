"""Fields of a config with a fixed set of values. Their type is a `Literal`, which is also what `--help` shows."""

from __future__ import annotations

from types import EllipsisType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from anysat.errors import UnknownNameError


def choices_of(kind: Any) -> tuple[str, ...]:
    """Return the values of a type if they are a fixed set, for one value, for several, or for one or None."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    parts = [part for part in get_args(kind) if part not in (NoneType, EllipsisType, ...)]
    return choices_of(parts[0]) if len(parts) == 1 else ()


def check_choices(config: Any, prefix: str = "") -> None:
    """Check every field of a config that has a fixed set of values.

    Args:
        config: A dataclass.
        prefix: Prefix of the options' names, such as `engine.`.

    Raises:
        UnknownNameError: A value is not one of them. The message names the option and the closest values.
    """
    for name, kind in get_type_hints(type(config)).items():
        known, value = choices_of(kind), getattr(config, name)
        given = value if isinstance(value, list | tuple) else [] if value is None else [value]
        for one in given if known else ():
            if one not in known:
                raise UnknownNameError(f"--{prefix}{name.replace('_', '-')}", one, known)
