"""The entry point of `coca`: finds the subcommand, parses its arguments, turns its outcome into an exit code.

A new subcommand is a row in `COMMANDS` and a file `cli/<command>.py` of this form:

    @dataclass(frozen=True)
    class Args:
        \"""Describe pictures in words.

        Prints one line per picture: its path, a tab, its caption.

        Examples:
          coca caption cat.png dog.png
          coca caption holiday/*.jpg --beams 1
        \"""

        paths: Paths  # positional, one or more; shown as PATH...
        \"""Picture files, or folders of them.\"""
        model: ModelName = None
        \"""A run or model folder, hf:org/name, or the name of a pulled model.\"""
        beams: int = 4
        \"""Width of the beam search; 1 is greedy.\"""

    def run(args: Args) -> int:
        from opencoca.loading import load  # here, never at the top: --help imports no torch
        ...
        return SKIPPED if skipped else DONE

The docstring's first line and paragraph head the help, its `Examples:` end it; the docstring under a field is that
option's help. `Labels` is a comma-separated list, as in `--labels cat,dog`. Annotations are read at run time, so types
named in them are imported at the top. Positional words stay together: `coca classify a.png b.png --labels cat,dog`.

`run` prints results with `print` to standard output and all else to standard error, and returns `DONE` or `SKIPPED`.
It raises `OpenCoCaError` for what the user can repair, and lets everything else fly: an unexpected exception is a bug.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from opencoca.cli.parsing import parse
from opencoca.errors import FORBIDDEN, FULL, DataError, OpenCoCaError, StoppedError, unwritable

DONE = 0
BUG = 1
BAD_INPUT = 2
SKIPPED = 3  # done, but items were skipped; the command has listed them
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
TERMINATED = 143  # 128 + SIGTERM
PIPE_CLOSED = 141  # 128 + SIGPIPE: the reader of our output went away, as `head` does


class Command(NamedTuple):
    """Where a subcommand lives, and the line that the overview shows for it."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "quickstart": Command("opencoca.cli.quickstart", "Train a model on real pictures in minutes and write a report"),
    "train": Command("opencoca.cli.train", "Train a model from a recipe, or resume a run"),
    "finetune": Command("opencoca.cli.finetune", "Teach a model your captioned pictures"),
    "recognise": Command("opencoca.cli.recognise", "Teach a model labels, and see what its features are worth"),
    "vqa": Command("opencoca.cli.vqa", "Teach a model to answer questions about pictures"),
    "data": Command("opencoca.cli.data", "Check, index and import captioned pictures of any form"),
    "caption": Command("opencoca.cli.caption", "Describe pictures in words"),
    "classify": Command("opencoca.cli.classify", "Choose among labels that you name, without training"),
    "embed": Command("opencoca.cli.embed", "Turn pictures or texts into vectors that can be compared"),
    "video": Command("opencoca.cli.video", "Describe, embed and recognise clips, or teach a model their labels"),
    "bulk": Command("opencoca.cli.bulk", "Describe, embed and classify very many pictures, on one machine or many"),
    "ask": Command("opencoca.cli.ask", "Ask a question about pictures"),
    "index": Command("opencoca.cli.index", "Look at a folder's pictures once, to search, sort and rid it of copies"),
    "search": Command("opencoca.cli.search", "Find the pictures of a folder that fit words, a picture, or both"),
    "serve": Command("opencoca.cli.serve", "Serve a model over HTTP, with a page in the browser"),
    "eval": Command("opencoca.cli.eval", "Measure a model: zero-shot, retrieval and captions"),
    "ablate": Command("opencoca.cli.ablate", "Train small models of the paper's Table 8 and compare them"),
    "doctor": Command("opencoca.cli.doctor", "Show what is installed, what is missing, and how fast this machine is"),
    "info": Command("opencoca.cli.info", "Show what a model is: sizes, training, results, where it came from"),
    "models": Command("opencoca.cli.models", "List, pull and remove models that are known by name"),
    "convert": Command("opencoca.cli.convert", "Write a model as a folder of our format or of OpenCLIP's"),
    "export": Command("opencoca.cli.export", "Write a model as ONNX, for programs that have no torch"),
}

EXAMPLES = """\
  coca quickstart                                  the place to begin
  coca caption cat.png dog.png
  coca classify *.png --labels cat,dog
  coca search holiday/ "a boat on a lake"
"""

# A full, read-only or forbidden disk is nobody's bug, wherever it strikes.
MACHINE_ERRNOS = {*FULL, *FORBIDDEN, errno.EROFS}


def separated(text: str) -> tuple[str, ...]:
    """The words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def comma_list(read: Callable[[str], tuple[str, ...]]) -> PrimitiveConstructorSpec[tuple[str, ...]]:
    """What `Annotated` takes for an option of words with commas between; read: the words of what was typed."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,...",
        instance_from_str=lambda typed: read(typed[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda words: [",".join(words)],
    )


def _read_labels(text: str) -> tuple[str, ...]:
    labels = separated(text)
    if not labels:
        raise DataError(f"no label in {text!r}; separate labels by commas, as in cat,dog")
    return labels


Paths = Annotated[tuple[Path, ...], Positional, arg(metavar="PATH...", help_behavior_hint="")]
# tyro checks what isn't a plain class, Optional or Literal by typeguard, whose import takes a fifth of a warm search.
ModelName = Annotated[Optional[str], arg(metavar="NAME", help_behavior_hint="(default: the newest one)")]  # noqa: UP045
Flag = Annotated[bool, arg(help_behavior_hint="")]  # False unless given
Labels = Annotated[tuple[str, ...], comma_list(_read_labels)]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of `coca ARGV...` (default: the words of this process's command line)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caption or file name that it can't show must not end the run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here and not at exit, where a closed pipe could no longer be caught
        return code
    except StoppedError as stopped:
        print(f"coca: {stopped}", file=sys.stderr)
        return TERMINATED
    except OpenCoCaError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        _show_traceback_if_debugging()
        print("coca: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return PIPE_CLOSED if _stdout_is_closed() else _report_bug()
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS:
            return _report_bug()
        return _refuse(_of_machine(error))
    except Exception:
        return _report_bug()


def overview() -> str:
    """What `coca` alone prints: the subcommands with their summaries, and examples."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: coca COMMAND [ARGUMENTS]\n\n"
        "Contrastive Captioners: models that classify, find and describe pictures.\n\n"
        f"commands:\n{rows}\n\n"
        f"examples:\n{EXAMPLES}\n"
        "'coca COMMAND --help' shows a command's options and examples, 'coca --version' the version.\n"
        "Exit codes: 0 done, 1 a bug, 2 bad input, 3 done but items were skipped, 130 interrupted, 143 stopped.\n"
        "COCA_DEBUG=1 shows the traceback of every error."
    )


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return DONE
    if words[0] in ("-V", "--version"):
        print(f"coca {_version()}")
        return DONE
    name, *rest = words
    if name not in COMMANDS:
        raise OpenCoCaError(_unknown(name))
    module = importlib.import_module(COMMANDS[name].module)
    try:
        args = _parse(name, module.Args, rest)
    except SystemExit as stop:  # tyro has printed the help (0) or what is wrong with the words (2)
        return int(stop.code or DONE)
    return module.run(args)


def _parse(name: str, args_class: type, words: list[str]) -> Any:
    """The `Args` of a subcommand. Raises SystemExit where there is nothing to run, and has said why."""
    args = parse(name, args_class, words)
    for field in dataclasses.fields(args):  # tyro lets an open-ended positional be empty; we want one word or more
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and getattr(args, field.name) == ():
            raise OpenCoCaError(f"no {field.name} given; 'coca {name} --help' shows examples")
    return args


def _unknown(name: str) -> str:
    if name.startswith("-"):
        return f"unknown option {name!r}; options come after the command, as in 'coca caption --help'"
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown command {name!r}; {hint}"


def _refuse(message: str) -> int:
    _show_traceback_if_debugging()
    line = " ".join(part.strip() for part in message.splitlines())
    print(f"coca: error: {line}", file=sys.stderr)
    return BAD_INPUT


def _of_machine(error: OSError) -> str:
    """What can't be written or read, and what to do."""
    if not isinstance(error.filename, str | bytes):
        return unwritable("a file", error)
    path = os.fsdecode(error.filename)
    there = path if os.path.exists(path) else os.path.dirname(path) or "."
    if error.errno in FORBIDDEN and not os.access(there, os.R_OK):
        return f"can't read {path} ({error.strerror}); change its permissions"
    return unwritable(path, error)


def _report_bug() -> int:
    traceback.print_exc()
    print(f"coca: this is a bug in OpenCoCa {_version()}; please report it with the lines above", file=sys.stderr)
    return BUG


def _show_traceback_if_debugging() -> None:
    if os.environ.get("COCA_DEBUG") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()


def _stdout_is_closed() -> bool:
    """True if it was our own output whose reader went away; then exit stays silent, pointed at nothing."""
    try:
        print(flush=True)  # a flush alone would not tell where the output is unbuffered
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _version() -> str:
    import importlib.metadata  # 25 ms, which only who asks shall wait

    try:
        return importlib.metadata.version("opencoca")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
