"""Options that several commands share, each group a dataclass whose fields stand under one heading of the help."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import OmitArgPrefixes, arg

from opencoca.cli.main import Flag
from opencoca.config import GenerationConfig
from opencoca.errors import DataError

TEXT_SUFFIXES = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
ARRAY_SUFFIXES = {".npz": "npz", ".npy": "npy", ".safetensors": "safetensors"}

Whole = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
Real = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Settings = Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE...", help_behavior_hint="")]
OutputFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class Printing:
    """A table on a terminal, tab-separated lines in a pipe, or one of these."""

    json: Flag = False
    """Print one JSON list of objects."""
    jsonl: Flag = False
    """Print one JSON object a line."""
    csv: Flag = False
    """Print comma-separated values with a header (RFC 4180)."""

    def __post_init__(self) -> None:
        chosen = [f"--{name}" for name in ("json", "jsonl", "csv") if getattr(self, name)]
        if len(chosen) > 1:
            raise DataError(f"{' and '.join(chosen)} were given; choose one form of output")

    @property
    def form(self) -> str | None:
        """The name of the chosen form, or None."""
        return next((name for name in ("json", "jsonl", "csv") if getattr(self, name)), None)


@dataclass(frozen=True)
class FileOptions(Printing):
    """A table on a terminal, tab-separated lines in a pipe, or one of these. With --output, Ctrl-C keeps what is done,
    and the same command again does what is left."""

    suffixes: ClassVar[Mapping[str, str]] = TEXT_SUFFIXES

    output: OutputFile = None
    """Write into a file (.tsv, .csv, .json, .jsonl); FILE.about.json beside it says which model and options made it."""
    overwrite: Flag = False
    """Start afresh, and replace what is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output and not self.form and self.output.suffix.lower() not in self.suffixes:
            known = ", ".join(self.suffixes)
            raise DataError(
                f"{self.output} doesn't tell its form; end its name in {known}, or add --json, --jsonl or --csv"
            )
        if self.overwrite and not (self.output or getattr(self, "write", None)):
            raise DataError("--overwrite was given, and no file to replace; leave it out")

    @property
    def file_form(self) -> str:
        """The form of the `output` file: what was asked for, else what its suffix says."""
        return self.form or self.suffixes[self.output.suffix.lower() if self.output else ".tsv"]


@dataclass(frozen=True)
class OutputOptions(FileOptions):
    """A table on a terminal, tab-separated lines in a pipe, or one of these. With --output or --write, Ctrl-C keeps
    what is done, and the same command again does what is left."""

    write: Annotated[Literal["sidecar", "xmp"] | None, arg(metavar="sidecar|xmp", help_behavior_hint="")] = None
    """Write a file beside each picture, too: cat.txt for cat.jpg, or cat.xmp, whose other fields stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output and self.write:
            raise DataError(f"--output {self.output} and --write {self.write} were given; choose one of the two")


@dataclass(frozen=True)
class EmbeddingOptions(FileOptions):
    """A file, or one of these forms on standard output. Ctrl-C keeps what is done, and the same command again does what
    is left."""

    suffixes: ClassVar[Mapping[str, str]] = {**ARRAY_SUFFIXES, **TEXT_SUFFIXES}

    output: OutputFile = None
    """Write into a file (.npz, .npy, .safetensors, .jsonl, ...); FILE.about.json beside it says which model made it."""


@dataclass(frozen=True)
class Generation:
    """How words are chosen; what isn't given is as the model's own configuration says."""

    beams: Whole = None
    """Width of the beam search; 1 is greedy, and the fastest."""
    max_tokens: Whole = None
    """Length in tokens at which the text is cut, prompt included."""
    min_tokens: Whole = None
    """Length in tokens before which it doesn't end."""
    length_penalty: Real = None
    """Beams are ranked by log-probability / length ** this; above 1 favours longer ones."""
    num_beam_groups: Whole = None
    """Beams in so many groups that avoid each other's words."""
    diversity_penalty: Real = None
    """How strongly the groups avoid each other's words."""
    temperature: Real = None
    """Draw words by chance instead of searching; below 1 is more careful."""
    top_k: Whole = None
    """Draw among so many likeliest words; 0 is all."""
    top_p: Real = None
    """Draw among the likeliest words that make up this probability."""
    seed: Whole = None
    """Seed of the draw: the same picture and seed give the same words."""
    repetition_penalty: Real = None
    """Words that occurred already lose by this factor; 1 is off."""
    no_repeat_ngram: Whole = None
    """No run of so many tokens occurs twice; 0 is off."""

    def changes(self) -> dict[str, Any]:
        """The fields that were given, as `Predictor.caption` takes them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is not None}

    def settings(self, defaults: GenerationConfig) -> GenerationConfig:
        """The model's own configuration with what was given.

        Raises: ConfigError where that contradicts itself; DataError for an option of the draw where nothing is drawn.
        """
        from opencoca.infer.captioning import changed

        settings = changed(defaults, self.changes())
        for name in ("top_k", "top_p", "seed"):
            if settings.temperature == 0 and getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise DataError(f"{option} changes nothing where no word is drawn by chance; add --temperature 1")
        return settings


EmbeddingGroup = Annotated[EmbeddingOptions, OmitArgPrefixes]
OutputGroup = Annotated[OutputOptions, OmitArgPrefixes]
GenerationGroup = Annotated[Generation, OmitArgPrefixes]
