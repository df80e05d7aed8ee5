"""Fine-tuning's training: its options and their defaults, how it begins, and what it does when memory runs out."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from opencoca import checkpoint
from opencoca.config import Config, DataConfig, LossConfig, OptimConfig, RunConfig
from opencoca.data.loader import PairLoader
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import TrainingError
from opencoca.jobs.finetune_measure import HeldOutEvaluation
from opencoca.loading import Opened
from opencoca.model.coca import CoCa
from opencoca.model.lora import add_lora
from opencoca.train.loop import train
from opencoca.train.state import Prepare, TrainState
from opencoca.train.task import Pretraining

SCRATCH = "scratch"
SMALL = 50_000_000  # parameters, below which a model stands, and wants, a higher rate
RATES = {"small": 4e-4, "large": 1e-5, SCRATCH: 1e-3}  # docs/LOG.md; "large" as OpenCLIP tunes its own
LORA_RATE = 5.0  # times as high: the updates begin at nothing, and there are few of them
LAYER_DECAY = 0.8  # the first layers know what all pictures have in common
FEWEST_STEPS = 50

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What may be said of a fine-tuning; 0 leaves it to the defaults.

    wise: the share of the tuned weights in what is kept, the rest being the original's. Of several, the best on the
        held-out pictures is taken; none takes it among `ALPHAS`.
    lora: rank of the low-rank updates; 0 trains whole matrices.
    val: the share of the pictures that is held out.
    keep, keep_split: data that isn't trained on, to see what the model unlearns.
    changes: "section.field=value", as `Config.with_values` takes them.
    """

    wise: tuple[float, ...] = ()
    lora: int = 0
    epochs: float = 10.0
    steps: int = 0
    rate: float = 0.0
    batch: int = 0
    val: float = 0.1
    split: str | None = None
    keep: str | None = None
    keep_split: str | None = None
    seed: int = 0
    changes: tuple[str, ...] = ()


def configured(opened: Opened, data: str, pictures: int, options: Options, scratch: bool = False) -> Config:
    """The configuration of a fine-tuning: the base's model, pixels and generation, and defaults for all else.

    Captions are written a token after the other and whole, however the base was trained.

    Raises: ConfigError for options that contradict each other.
    """
    small = sum(p.numel() for p in opened.model.parameters()) < SMALL
    rate = options.rate or RATES[SCRATCH if scratch else "small" if small else "large"] * (
        LORA_RATE if options.lora else 1.0
    )
    batch = options.batch or max(1, min(64, pictures // 2))
    steps = options.steps or max(FEWEST_STEPS, math.ceil(options.epochs * pictures / batch))
    before = opened.config
    both = before.loss.contrastive_weight > 0 and before.loss.captioning_weight > 0
    config = Config(
        recipe=before.recipe,
        model=dataclasses.replace(
            before.model, text=dataclasses.replace(before.model.text, parallel_share=0.0, token_drop=0.0)
        ),
        pixels=before.pixels,
        generation=before.generation,
        loss=before.loss if both else LossConfig(),
        optim=OptimConfig(
            steps=steps,
            peak_lr=rate,
            warmup_steps=min(100, steps // 10),
            schedule="cosine",
            weight_decay=0.05,
            layer_decay=1.0 if scratch else LAYER_DECAY,
            lora_rank=options.lora,
        ),
        data=DataConfig(folder=data, batch_size=batch),
        run=RunConfig(
            seed=options.seed,
            log_every_steps=max(1, min(20, steps // 20)),
            eval_every_steps=-(-steps // 4),
            checkpoint_every_steps=-(-steps // 4),
            tensorboard=False,
        ),
    )
    return config.with_values(options.changes)


def train_within_memory(
    config: Config,
    run: Path,
    loader: PairLoader,
    tokenizer: Tokenizer,
    evaluation: HeldOutEvaluation,
    prepare: Prepare,
    say: Say,
) -> TrainState:
    """`train`, from the latest checkpoint with half the micro-batch each time that memory runs out.

    Raises: TrainingError where one pair at a time doesn't fit either.
    """
    micro = config.run.micro_batch
    while True:
        now = dataclasses.replace(config, run=dataclasses.replace(config.run, micro_batch=micro))
        try:
            return train(now, run, Pretraining(now.model, now.loss), loader, tokenizer, [evaluation], prepare)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()  # the failed step's tensors hung on the error, which is gone here
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before = micro or config.data.batch_size
        if before == 1:
            raise TrainingError("memory runs out with one pair at a time; take a smaller model, or --lora 8")
        micro = before // 2
        say(f"memory ran out with {before} pairs at a time; going on with {micro}, which changes no result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def begin_with(config: Config, original: dict[str, Tensor], scale: float) -> Prepare:
    """Puts the original weights into a new model, but for its temperature, and low-rank updates beside them."""

    def prepare(model: CoCa) -> None:
        checkpoint.load_weights(model, {**original, "log_scale": torch.tensor([math.log(scale)])}, "the base model")
        if config.optim.lora_rank:
            add_lora(model, config.optim.lora_rank, config.optim.lora_alpha, config.run.seed)

    return prepare
