"""Pretraining a recipe in a run folder."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.shards import ShardReader
from opencoca.data.tokenizer import Tokenizer, train_tokenizer
from opencoca.errors import ConfigError
from opencoca.eval.held_out import load_held_out
from opencoca.eval.suite import SplitEvaluation
from opencoca.eval.zeroshot import Attribute
from opencoca.train.evals import Evaluation
from opencoca.train.loop import train
from opencoca.train.state import TrainState
from opencoca.train.task import Pretraining


def pretrain(config: Config, run: Path, attributes: tuple[Attribute, ...] = ()) -> TrainState:
    """Trains `config` in `run`, or goes on from its latest checkpoint; the validation split is measured on the way.

    Raises: DataError, ConfigError, CheckpointError or TrainingError, each with the repair.
    """
    source = ShardReader(config.data.folder, config.data.train_split)
    tokenizer = make_tokenizer(config, source, run)
    config = with_vocabulary(config, tokenizer)
    vision = config.model.vision
    evaluations: list[Evaluation] = []
    if config.run.eval_every_steps:
        held_out = load_held_out(config.data.folder, config.data.val_split, vision.image_size_px, config.pixels)
        evaluations.append(SplitEvaluation(held_out, tokenizer, config, attributes))
    loader = PairLoader(
        source,
        tokenizer,
        batch_size=config.data.batch_size,
        image_size_px=vision.image_size_px,
        context_length=config.model.text.context_length,
        pixels=config.pixels,
        seed=config.run.seed,
        max_shift_px=config.data.max_shift_px,
        text_buckets=config.data.text_buckets,
        clump_size=config.data.clump_size,
        patch_noise=vision.read_patches if vision.train_patches else 0,
    )
    return train(config, run, Pretraining(config.model, config.loss), loader, tokenizer, evaluations)


def make_tokenizer(config: Config, source: ShardReader, run: Path) -> Tokenizer:
    """The run's tokenizer: the one of its latest checkpoint, or as `config.data.tokenizer` says."""
    latest = checkpoint.latest_checkpoint(run)
    if latest is not None:
        return Tokenizer.load(latest / checkpoint.TOKENIZER)
    wanted = config.data.tokenizer
    if wanted == "train":
        kept = run / checkpoint.TOKENIZER  # Unigram training isn't reproducible: a run keeps its first vocabulary
        if not kept.is_file():
            run.mkdir(parents=True, exist_ok=True)
            train_tokenizer(source.captions, config.model.text.vocab_size).save(kept)
        return Tokenizer.load(kept)
    if wanted == "openmoji":
        text = (resources.files("opencoca.data") / "openmoji_tokenizer.json").read_text(encoding="utf-8")
        return Tokenizer.from_json(text, name="openmoji_tokenizer.json")
    if not Path(wanted).exists():
        raise ConfigError(
            f"data.tokenizer {wanted!r} is no file; give a tokenizer.json, 'openmoji', or 'train' for a new one"
        )
    return Tokenizer.load(Path(wanted))


def with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """The configuration with the tokenizer's size: few captions give fewer pieces than were asked for."""
    text = dataclasses.replace(config.model.text, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
