"""Trees of frozen dataclasses: checks whose errors name the values and the repair, and building from nested dicts."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, cast

from opencoca.errors import ConfigError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{name} {value} in {type(config).__name__} must be at least 1")


def require_multiple(config: Any, name: str, unit_name: str) -> None:
    value, unit = getattr(config, name), getattr(config, unit_name)
    below = value // unit * unit
    near = f"{below} and {below + unit} are" if below else f"{unit} is"
    require(
        value % unit == 0,
        f"{name} {value} in {type(config).__name__} is not a multiple of {unit_name} {unit}; {near}",
    )


def not_default(config: Any) -> dict[str, Any]:
    """The fields of a dataclass, and of those inside it, that differ from their default or have none."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = not_default(value)
        elif field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        elif field.default is dataclasses.MISSING or value != field.default:
            found[field.name] = value
    return found


def build_tree(kind: Any, value: Any, path: str) -> Any:
    """Rebuilds dataclass `kind` from nested dicts, refusing what it doesn't know."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{path} should be an object, got {value!r}")
        hints = typing.get_type_hints(kind)
        known = {f.name: f for f in dataclasses.fields(kind)}
        unknown = sorted(set(value) - set(known))
        required = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
        missing = sorted(required - set(value))
        if unknown or missing:
            raise ConfigError(
                f"{path} has unknown fields {unknown} and lacks {missing}; "
                "was it written by another version of opencoca?"
            )
        return cast(Any, kind)(
            **{name: build_tree(hints[name], item, f"{path}.{name}") for name, item in value.items()}
        )
    origin = typing.get_origin(kind)
    if origin is Literal:
        ok = value in typing.get_args(kind)
    elif origin is tuple:
        kinds = typing.get_args(kind)
        if isinstance(value, list | tuple) and kinds[1:] == (...,):
            kinds = kinds[:1] * len(value)
        ok = isinstance(value, list | tuple) and len(value) == len(kinds)
        if ok:
            parts = enumerate(zip(kinds, value, strict=True))
            value = tuple(build_tree(k, item, f"{path}[{i}]") for i, (k, item) in parts)
    elif origin in (typing.Union, types.UnionType):
        return value
    elif kind is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if ok else value
    else:
        ok = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
    if not ok:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise ConfigError(f"{path} is {value!r}, which is not {wanted}; restore the file or write the model again")
    return value
