"""tyro in our words: help as wide as the terminal, and what a number or choice must be where it isn't one."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

OPTIONS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.HelptextFromCommentsOff)
NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}
REGISTRY = ConstructorRegistry()
ABOUT = "ABOUT"  # stands for the description, which tyro doesn't wrap
COLOURS = re.compile("\033\\[[0-9;]*m")
EMPTY = re.compile("│[│ ]*")


def parse(name: str, args_class: type, words: Sequence[str]) -> Any:
    """The `Args` of a subcommand.

    Raises: SystemExit where there is nothing to run: the help (0) or what is wrong with the words (2) is printed.
    """
    about, _, examples = (inspect.getdoc(args_class) or "").partition("\nExamples:\n")
    printed = _Printed()
    try:
        with contextlib.redirect_stdout(printed):
            return tyro.cli(
                args_class, prog=f"coca {name}", description=ABOUT, args=words, config=OPTIONS, registry=REGISTRY
            )
    except SystemExit as stop:
        if not stop.code:
            print(_page(printed.getvalue(), about, shutil.get_terminal_size().columns))
            if examples:
                print(f"\nexamples:\n{examples.rstrip()}")
        raise


def _page(printed: str, about: str, width: int) -> str:
    """The help that tyro printed, with `about` in its place, wrapped, and without empty lines in boxes."""
    usage, found, boxes = printed.partition(f"\n{ABOUT}\n")
    if not found:  # no help: a completion script
        return printed
    paragraphs = [_wrapped(paragraph, width) for paragraph in about.strip().split("\n\n")]
    kept = [line for line in boxes.strip("\n").split("\n") if not EMPTY.fullmatch(COLOURS.sub("", line))]
    return "\n\n".join([_wrapped(usage, width), *paragraphs, "\n".join(kept)])


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


class _Printed(io.StringIO):
    """What is printed, held back; it looks like standard output, so that tyro colours and boxes as it would there."""

    def __init__(self) -> None:
        super().__init__()
        self._shown_on = sys.stdout

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._shown_on.encoding

    def isatty(self) -> bool:
        return self._shown_on.isatty()


@REGISTRY.primitive_rule
def _plain(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How a number or one of several words is read, given or None; a wrong one is told what is wanted."""
    kind: Any = info.type
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,) and typing.get_args(kind)[0] in NUMBERS:
        return _numbers(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind, *others = (one for one in typing.get_args(kind) if one is not types.NoneType)
        if others:
            return None
    if kind in NUMBERS:
        wanted, metavar, read = NUMBERS[kind], kind.__name__.upper(), kind
    elif typing.get_origin(kind) is Literal and all(isinstance(word, str) for word in typing.get_args(kind)):
        choices = {word: word for word in typing.get_args(kind)}
        wanted, metavar, read = f"one of {', '.join(choices)}", f"{{{','.join(choices)}}}", choices.__getitem__
    else:
        return None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda typed: _read(read, typed[0], wanted),
        is_instance=lambda value: value is None or isinstance(value, int | float | str),
        str_from_instance=lambda value: [str(value)],
    )


def _numbers(kind: Any) -> PrimitiveConstructorSpec[Any]:
    """How several numbers are read; a wrong one among them is named."""
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{kind.__name__.upper()} [{kind.__name__.upper()} ...]]",
        instance_from_str=lambda typed: tuple(_read(kind, word, NUMBERS[kind]) for word in typed),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(one, int | float) for one in value),
        str_from_instance=lambda value: [str(one) for one in value],
    )


def _read(read: Callable[[str], Any], word: str, wanted: str) -> Any:
    try:
        return read(word)
    except (ValueError, KeyError):
        raise ValueError(f"{word!r} isn't {wanted}") from None
