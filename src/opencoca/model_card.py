"""What a model folder says about itself: where it came from (`origin.json`), and its card (`README.md`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from opencoca.config import Config
from opencoca.errors import CheckpointError

PARTS = {
    "encoder": "image encoder",
    "generative_pooler": "generative pooler",
    "contrastive_pooler": "contrastive pooler",
    "unimodal": "unimodal text decoder",
    "multimodal": "multimodal decoder",
    "head": "vocabulary head",
    "tasks": "heads for tasks",
}


@dataclass(frozen=True)
class Origin:
    """Where a model came from, as far as is known.

    source: a hub name ("hf:org/name"), a file, or how it was trained. revision: the hub's commit.
    licence: as its publisher names it. sha256: of the weights file as it was published.
    """

    source: str
    revision: str | None = None
    licence: str | None = None
    sha256: str | None = None

    def to_json(self) -> str:
        """One JSON object with the known fields."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, name: object) -> Origin:
        """The inverse of `to_json`.

        Raises: CheckpointError, naming the file, for anything else.
        """
        try:
            values = json.loads(text)
            known = {field.name for field in fields(cls)}
            if not set(values) <= known or not all(isinstance(value, str) for value in values.values()):
                raise ValueError(f"its fields should be texts, of {', '.join(sorted(known))}")
            return cls(**values)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{name} says no origin ({error}); restore it, or remove it and its entry") from error


def model_card(
    config: Config,
    name: str,
    parameters: Mapping[str, int],
    origin: Origin | None = None,
    state: Mapping[str, Any] | None = None,
) -> str:
    """The card of a model folder called `name`, in Markdown with the hub's YAML header.

    parameters: how many each part of the model has; state: a checkpoint's step and metrics, where they are known.
    """
    state = state or {}
    return "\n".join(
        [
            *_header(origin),
            f"# {name}",
            "",
            "A Contrastive Captioner (CoCa, arXiv 2205.01917): one image-text model that classifies without training,",
            "finds pictures by words and words by pictures, and writes captions.",
            "",
            *_origin(config, origin, state),
            *_sizes(config, parameters),
            *_metrics(state.get("metrics") or {}),
            *_use(name),
            "## Limits",
            "",
            "Its captions and labels repeat what its training data holds, mistakes and prejudices included. Measure it",
            "on your own pictures (`coca eval`) before anything depends on it.",
            "",
        ]
    )


def _header(origin: Origin | None) -> list[str]:
    licence = origin.licence if origin and origin.licence else "unknown"
    return [
        "---",
        f"license: {json.dumps(licence)}",  # a JSON string is a YAML string, whatever is in it
        "library_name: opencoca",
        "pipeline_tag: image-to-text",
        "tags:",
        "- coca",
        "- image-captioning",
        "- zero-shot-image-classification",
        "- image-text-retrieval",
        "---",
        "",
    ]


def _origin(config: Config, origin: Origin | None, state: Mapping[str, Any]) -> list[str]:
    if origin is not None:
        lines = [
            f"Source: {_plain(origin.source)}{f', revision {_plain(origin.revision)}' if origin.revision else ''}."
        ]
        lines += [f"Licence: {_plain(origin.licence)}." if origin.licence else "Its licence is not recorded."]
        lines += [f"The published weights have sha256 {_plain(origin.sha256)}."] if origin.sha256 else []
        return [*lines, "What it was trained on, its publisher says.", ""]
    steps = state.get("step")
    how_long = f"{steps:,} of {config.optim.steps:,} steps" if isinstance(steps, int) else "how long isn't recorded"
    return [
        f"Trained with OpenCoCa's recipe `{config.recipe}`: {config.data.batch_size:,} pairs a step, {how_long}.",
        "No licence is set: whoever trained it chooses one, with an eye on that of the pictures and captions.",
        "",
    ]


def _sizes(config: Config, parameters: Mapping[str, int]) -> list[str]:
    vision, text = config.model.vision, config.model.text
    rows = [(PARTS.get(part, part.replace("_", " ")), count) for part, count in parameters.items() if count]
    return [
        "## Sizes",
        "",
        "| part | parameters |",
        "|---|---:|",
        *(f"| {part} | {count:,} |" for part, count in rows),
        f"| **all** | **{sum(parameters.values()):,}** |",
        "",
        f"Pictures are read at {vision.image_size_px} px in patches of {vision.patch_size_px} px; captions have up to "
        f"{text.context_length} tokens of a vocabulary of {text.vocab_size:,}; embeddings have "
        f"{config.model.embed_dim} dimensions.",
        "",
    ]


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    rows = [f"| {_plain(name)} | {value:.4g} |" for name, value in metrics.items() if isinstance(value, int | float)]
    return ["## Measured while training", "", "| measure | value |", "|---|---:|", *rows, ""] if rows else []


def _use(name: str) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "import opencoca",
        "",
        f"coca = opencoca.load({json.dumps(name)})  # this folder",
        'coca.caption("picture.jpg")',
        'coca.classify("picture.jpg", ["a cat", "a dog"])',
        'coca.embed_images("picture.jpg")',
        "```",
        "",
        "```sh",
        f"coca caption picture.jpg --model {name}",
        "```",
        "",
    ]


def _plain(text: object) -> str:
    """A text from elsewhere, without what Markdown would make of it."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
