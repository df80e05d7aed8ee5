"""What several tests share: a tokenizer that needs no training, drawn pictures, shards of them, a training run."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tokenizers import models

from opencoca import recipes
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.shards import Sample, ShardReader, ShardWriter
from opencoca.data.tokenizer import ALPHABET, SPECIAL_NAMES, Tokenizer, _pipeline
from opencoca.train import loop
from opencoca.train.evals import Evaluation
from opencoca.train.state import TrainState
from opencoca.train.task import Pretraining, Task

SIZE_PX = 16
COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "black": (10, 10, 10),
    "pink": (250, 130, 190),
}
SHAPES = ("square", "circle", "triangle", "bar")
PLACES = ("", " on the left", " at the right")  # captions of three lengths


def tiny_tokenizer() -> Tokenizer:
    """A BPE vocabulary of exactly `recipes.tiny`'s 320 ids, put together by hand: the same on every machine."""
    size = recipes.tiny.tiny().model.text.vocab_size
    vocab = {piece: i for i, piece in enumerate([*SPECIAL_NAMES, *ALPHABET])}
    merges: list[tuple[str, str]] = []
    for word in [*COLOURS, *SHAPES, "on", "the", "left", "right", "picture", "small"]:
        piece = "Ġ"
        for letter in word:
            if piece + letter not in vocab and len(vocab) < size:
                vocab[piece + letter] = len(vocab)
                merges.append((piece, letter))
            piece += letter
    assert len(vocab) == size
    return Tokenizer.from_json(_pipeline(models.BPE(vocab, merges)).to_str(pretty=False))


def drawing(colour: str, shape: str, place: str = "", size_px: int = SIZE_PX) -> Image.Image:
    """A coloured shape on white, `size_px` wide and high."""
    image = Image.new("RGB", (size_px, size_px), "white")
    draw, third = ImageDraw.Draw(image), size_px // 4
    left = {"": size_px // 4, " on the left": 0, " at the right": size_px // 2}[place]
    box = (left, third, left + size_px // 2 - 1, third + size_px // 2 - 1)
    fill = COLOURS[colour]
    if shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=fill)
    else:
        draw.rectangle((box[0], box[1] + 3, box[2], box[3] - 2), fill=fill)
    return image


def png(image: Image.Image | np.ndarray) -> bytes:
    """The picture as the bytes of a PNG file, which keeps every pixel."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return file.getvalue()


def samples() -> list[Sample]:
    """72 captioned drawings in a mixed order."""
    made = [
        Sample(
            f"{colour}-{shape}-{i}", png(drawing(colour, shape, place)), f"{colour} {shape}{place}", {"shape": shape}
        )
        for colour in COLOURS
        for shape in SHAPES
        for i, place in enumerate(PLACES)
    ]
    return [made[i * 29 % len(made)] for i in range(len(made))]  # 29 and 72 have no common factor


class MemorySource:
    """A loader's source that is a list."""

    def __init__(self, items: Sequence[Sample]) -> None:
        self.items = list(items)

    @property
    def keys(self) -> list[str]:
        return [item.key for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.items[index]


def write_shards(folder: Path) -> Path:
    """The drawings as shards: every sixth in `val`, the others in `train`."""
    with ShardWriter(folder, samples_per_shard=25) as writer:
        for i, sample in enumerate(samples()):
            writer.add("val" if i % 6 == 0 else "train", *sample[:4])
    return folder


def tiny_config(folder: Path, **sections: dict) -> Config:
    """`recipes.tiny` on the shards in `folder`, on the CPU, with fields changed, as in optim={"steps": 8}."""
    config = recipes.tiny.tiny()
    sections["data"] = {"folder": str(folder), **sections.get("data", {})}
    sections["run"] = {"device": "cpu", **sections.get("run", {})}
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **changed)


def tiny_loader(config: Config, tokenizer: Tokenizer, source=None) -> PairLoader:
    """The training loader of a configuration."""
    source = source or ShardReader(config.data.folder, config.data.train_split)
    return PairLoader.from_config(config, source, tokenizer)


def train_tiny(
    config: Config,
    run: Path,
    evaluations: list[Evaluation] | None = None,
    task: Task | None = None,
    tokenizer: Tokenizer | None = None,
) -> TrainState:
    """`train` on the shards that the configuration names."""
    tokenizer = tokenizer or tiny_tokenizer()
    task = task or Pretraining(config.model, config.loss)
    return loop.train(config, run, task, tiny_loader(config, tokenizer), tokenizer, evaluations)


def rows(run: Path) -> list[dict]:
    """The rows of a run's metrics file, each of which must be whole."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
