"""Trees of frozen dataclasses: checks whose errors name the values and the repair, and building from nested dicts."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
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


def find_field(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The section of nested dicts that a path such as "optim.peak_lr" names, and the name of the field in it.

    Raises: ConfigError with the nearest name where there is no such field.
    """
    *sections, name = path.split(".")
    section, where = values, "the configuration"
    for part in sections:
        if part not in section:
            raise ConfigError(_no_field(part, section, where))
        if not isinstance(section[part], dict):
            raise ConfigError(f"{part} has no fields of its own")
        section, where = section[part], part
    if name not in section:
        raise ConfigError(_no_field(name, section, where))
    if isinstance(section[name], dict):
        raise ConfigError(f"{path} is a section; write {path}.FIELD=VALUE with one of {', '.join(section[name])}")
    return section, name


def _no_field(name: str, section: dict[str, Any], where: str) -> str:
    inner = [f"{part}.{name}" for part, fields in section.items() if isinstance(fields, dict) and name in fields]
    near = inner or difflib.get_close_matches(name, section, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(section)}"
    return f"{where} has no field {name!r}; {hint}"


def wrong_in_file(path: str, value: Any, kind: Any) -> str:
    """What is wrong with a value that was read from a file."""
    wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    return f"{path} is {value!r}, which is not {wanted}; restore the file or write the model again"


def wrong_as_set(path: str, value: Any, kind: Any) -> str:
    """What is wrong with a value that the user has set."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: 'text, as in "7"'}
    wanted = words.get(kind) or "a list, as in [1,2]"
    if typing.get_origin(kind) is Literal:
        wanted = f"one of {', '.join(map(str, typing.get_args(kind)))}"
    return f"{path.removeprefix('config.')} is {value!r}; set it to {wanted}"


def build_tree(kind: Any, value: Any, path: str, wrong: Callable[[str, Any, Any], str] = wrong_in_file) -> Any:
    """Rebuilds dataclass `kind` from nested dicts, refusing what it doesn't know; `wrong` words a wrong type."""
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
            **{name: build_tree(hints[name], item, f"{path}.{name}", wrong) for name, item in value.items()}
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
            value = tuple(build_tree(k, item, f"{path}[{i}]", wrong) for i, (k, item) in parts)
    elif origin in (typing.Union, types.UnionType):
        return value
    elif kind is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if ok else value
    else:
        ok = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
    if not ok:
        raise ConfigError(wrong(path, value, kind))
    return value
