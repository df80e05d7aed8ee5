"""Pretraining a recipe in a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.data.loader import PairLoader
from opencoca.data.mixture import open_training_source
from opencoca.data.sources import Source, captions_of
from opencoca.data.tokenizer import Tokenizer, train_tokenizer
from opencoca.errors import ConfigError, OpenCoCaError
from opencoca.eval.held_out import load_held_out
from opencoca.eval.suite import SplitEvaluation
from opencoca.eval.zeroshot import Attribute
from opencoca.parallel.collectives import gathered_texts
from opencoca.parallel.mesh import Ranks, process_group
from opencoca.train.evals import Evaluation
from opencoca.train.loop import train
from opencoca.train.state import Prepare, TrainState
from opencoca.train.task import Pretraining

Initial = Callable[[Config, Tokenizer], Prepare]  # of the configuration with the tokenizer's vocabulary


def pretrain(
    config: Config, run: Path, attributes: tuple[Attribute, ...] = (), initial: Initial | None = None
) -> TrainState:
    """Trains `config` in `run`, or goes on from its latest checkpoint; the validation split is measured on the way.

    Under torchrun every rank calls this, and they train together. `initial` gives what is done to a new model before
    its first step, such as loading weights (`jobs.initial`); a run that goes on doesn't ask for it.

    Raises: DataError, ConfigError, CheckpointError or TrainingError, each with the repair.
    """
    if config.optim.lora_rank:
        raise ConfigError(
            f"optim.lora_rank {config.optim.lora_rank} is for `coca finetune --lora`; pretraining wants 0"
        )
    with process_group(config.run.device) as ranks:
        source = open_training_source(config.data)
        tokenizer = shared_tokenizer(config, source, run, ranks)
        config = with_vocabulary(config, tokenizer)
        prepare = None
        if initial is not None and checkpoint.latest_checkpoint(run) is None:
            prepare = initial(config, tokenizer)
        evaluations: list[Evaluation] = []
        if config.run.eval_every_steps:
            held_out = load_held_out(
                config.data.folder, config.data.val_split, config.model.vision.image_size_px, config.pixels
            )
            evaluations.append(SplitEvaluation(held_out, tokenizer, config, attributes))
        loader = PairLoader.from_config(config, source, tokenizer, ranks.rank, ranks.world)
        return train(config, run, Pretraining(config.model, config.loss), loader, tokenizer, evaluations, prepare)


def shared_tokenizer(config: Config, source: Source, run: Path, ranks: Ranks) -> Tokenizer:
    """The run's tokenizer on every rank; the first one trains it where there is none yet."""
    failed = ""
    if ranks.first:
        try:
            make_tokenizer(config, source, run)
        except OpenCoCaError as error:
            failed = str(error)
    told = gathered_texts(failed, ranks)[0]  # which waits for the first rank
    if told:
        raise ConfigError(told)
    return make_tokenizer(config, source, run)


def make_tokenizer(config: Config, source: Source, run: Path) -> Tokenizer:
    """The run's tokenizer: the one of its latest checkpoint, or as `config.data.tokenizer` says."""
    tokenizer = stored_tokenizer(config, run)
    if tokenizer is None:
        kept = run / checkpoint.TOKENIZER  # Unigram training isn't reproducible: a run keeps its first vocabulary
        run.mkdir(parents=True, exist_ok=True)
        train_tokenizer(captions_of(source), config.model.text.vocab_size).save(kept)
        tokenizer = Tokenizer.load(kept)
    return tokenizer


def stored_tokenizer(config: Config, run: Path | None) -> Tokenizer | None:
    """The same where it is there already; None for one that has to be trained first."""
    latest = checkpoint.latest_checkpoint(run) if run is not None else None
    if latest is not None:
        return Tokenizer.load(latest / checkpoint.TOKENIZER)
    wanted = config.data.tokenizer
    if wanted == "train":
        kept = run / checkpoint.TOKENIZER if run is not None else None
        return Tokenizer.load(kept) if kept is not None and kept.is_file() else None
    if wanted == "clip":
        return ClipTokenizer.published()
    if wanted == "openmoji":
        text = (resources.files("opencoca.data") / "openmoji_tokenizer.json").read_text(encoding="utf-8")
        return Tokenizer.from_json(text, name="openmoji_tokenizer.json")
    if not Path(wanted).exists():
        raise ConfigError(
            f"data.tokenizer {wanted!r} is no file; give a tokenizer.json, 'openmoji', 'clip', or 'train' for a new one"
        )
    return Tokenizer.load(Path(wanted))


def with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """The configuration with the tokenizer's size: few captions give fewer pieces than were asked for."""
    text = dataclasses.replace(config.model.text, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
