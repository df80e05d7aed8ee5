"""Everything that a run carries from step to step, and its way into a checkpoint and back, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opencoca import checkpoint, weights
from opencoca.checkpoint import Checkpoint, Piece, Stored
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.parallel.mesh import Ranks, current
from opencoca.train.optim import first_moments, freeze, make_optimizers
from opencoca.train.pieces import fill, own_piece, together
from opencoca.train.sharding import local

Prepare = Callable[[CoCa], None]
Shard = Callable[[CoCa], object]

_CARRIED = {"step": int, "position": int, "seconds": float, "metrics": dict, "data": str, "owes_evaluation": bool}
_CARRIED_LATER = {"spikes": dict, "initialised_from": str}  # checkpoints of older versions lack it
# What may change between runs of one folder, but for the seed.
_FREE_FIELDS = (
    "run.",
    "generation.",
    "data.folder",
    "data.val_split",
    "data.tokenizer",
    "data.workers",
    "data.max_skip_fraction",
    "loss.caption_chunk",
    "loss.contrastive_chunk",
    "recipe",
)


@dataclass(frozen=True)
class Start:
    """A `Prepare` that begins with other weights than drawn ones, and says where they are from."""

    source: str
    prepare: Prepare

    def __call__(self, model: CoCa) -> None:
        self.prepare(model)


@dataclass
class TrainState:
    """Model, optimizers, moving average, and where the run stands.

    Nothing random is carried: initialisation, order and augmentation are functions of (seed, name), (seed, epoch)
    and (seed, epoch, sample id), so `step` and `position` say all. `seconds` is the time spent in training steps,
    `data` the fingerprint of what is trained on; `owes_evaluation` says that the one at `step` was interrupted;
    `spikes` is what `watch.SpikeGuard` remembers, `initialised_from` where the first weights are from; "" if drawn.

    average: by parameter name, in the model's order; of a frozen parameter it is the parameter itself.
    """

    model: CoCa
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]
    step: int = 0
    position: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    data: str = ""
    owes_evaluation: bool = False
    spikes: dict[str, Any] = field(default_factory=dict)
    initialised_from: str = ""

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Moves the weights' exponential moving average on; early on it follows faster, by (1 + n) / (10 + n)."""
        if self.average:
            decay = min(decay, (1 + self.step) / (10 + self.step))
            pairs = zip(self.average.values(), self.model.parameters(), strict=True)
            moving = [(local(average), local(parameter)) for average, parameter in pairs if parameter.requires_grad]
            averages, parameters = ([pair[i] for pair in moving] for i in range(2))
            torch._foreach_lerp_(averages, parameters, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to ship: the moving average where the run keeps one."""
        return self.average or dict(self.model.named_parameters())


class Parts(NamedTuple):
    """What this rank writes of a state: pieces of its tensors, and the facts in `state.json`.

    cut: the ranks hold different pieces, so that each writes files; else the first rank's are everything.
    """

    weights: dict[str, Piece]
    training: dict[str, Piece]
    facts: dict[str, Any]
    cut: bool


def fresh_state(
    config: Config, device: torch.device, prepare: Prepare | None = None, shard: Shard | None = None
) -> TrainState:
    """The state before the first step.

    prepare: may load weights into the new model, freeze parts or add some.
    shard: cuts the parameters up over the ranks, in place, before there are optimizers.
    """
    model = build(config.model, config.run.seed, device)
    if prepare is not None:
        prepare(model)
    freeze(model, config.optim)
    if shard is not None:
        shard(model)
    average = {}
    if config.optim.ema_decay:
        average = {n: p.detach().clone() if p.requires_grad else p.detach() for n, p in model.named_parameters()}
    source = prepare.source if isinstance(prepare, Start) else ""
    return TrainState(model, make_optimizers(model, config.optim), average, initialised_from=source)


def parts_of(state: TrainState, ranks: Ranks) -> Parts:
    """This rank's pieces of a state; they share its memory."""
    names = {id(p): n for n, p in state.model.named_parameters()}
    training = {
        f"optimizer.{names[id(parameter)]}.{moment}": value
        for optimizer in state.optimizers
        for parameter, moments in optimizer.state.items()
        for moment, value in moments.items()
    }
    if state.average:
        training |= {f"raw.{name}": p for name, p in state.model.named_parameters() if p.requires_grad}
    shipped = {**state.weights(), **_buffers(state.model)}

    def own(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
        pieces = {name: own_piece(tensor.detach(), ranks) for name, tensor in tensors.items()}
        return {name: piece for name, piece in pieces.items() if piece is not None}

    cut = ranks.world > 1 and any(isinstance(tensor, DTensor) for tensor in shipped.values())
    facts = {name: getattr(state, name) for name in _CARRIED | _CARRIED_LATER}
    return Parts(own(shipped), own(training), facts | {"metrics": dict(state.metrics)}, cut)


def save_state(folder: Path, state: TrainState, config: Config, tokenizer: Tokenizer) -> None:
    """Writes one checkpoint, atomically; every rank must call it.

    Raises: CheckpointError, on all ranks, where one of them can't write; what stood there still does.
    """
    ranks = current()
    write_parts(folder, parts_of(state, ranks), config, tokenizer, ranks)


def write_parts(folder: Path, parts: Parts, config: Config, tokenizer: Tokenizer, ranks: Ranks) -> None:
    """`save_state` for parts that are ready."""

    def begin() -> None:
        if ranks.first:
            checkpoint.begin(folder)

    def write() -> dict[str, Any]:
        if parts.cut:
            return checkpoint.write_part(folder, parts.weights, parts.training, ranks.rank, ranks.world)
        return checkpoint.write_part(folder, parts.weights, parts.training) if ranks.first else {}

    def finish() -> None:
        if ranks.first:
            checkpoint.finish(folder, files, config, tokenizer, parts.facts)

    try:
        together(ranks, begin)
        files = {name: fact for some in together(ranks, write) for name, fact in some.items()}
        together(ranks, finish)
    except Exception:
        if ranks.first:
            checkpoint.abandon(folder)
        raise


def load_state(
    folder: Path,
    config: Config,
    tokenizer: Tokenizer,
    device: torch.device,
    prepare: Prepare | None = None,
    shard: Shard | None = None,
) -> TrainState:
    """The state of a checkpoint, bit for bit, whatever number of ranks wrote it; every rank must call it.

    prepare, shard: as in `fresh_state`, so that the model has the same parts.

    Raises: CheckpointError where the checkpoint is damaged, or was made under another configuration or tokenizer.
    """
    ranks = current()
    folder = checkpoint.resolve(folder)
    files, *_ = together(ranks, lambda: checkpoint.verify(folder, part=ranks.rank, parts=ranks.world))
    saved = checkpoint.opened(folder, files, training=True)
    _check_same_run(saved, config, tokenizer)
    shipped, training = saved.weights, saved.training
    assert isinstance(shipped, Stored) and isinstance(training, Stored) and saved.state is not None
    state = fresh_state(config, device, prepare, shard)
    weights.check(state.model, shipped.described(), saved.folder)
    used = set()
    for name, tensor in (*state.model.named_parameters(), *_buffers(state.model).items()):
        raw = f"raw.{name}"
        used.add(raw)
        _fill(tensor, *((training, raw) if raw in training else (shipped, name)))
    for name, average in state.average.items():
        _fill(average, shipped, name)
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    for optimizer in state.optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            moments = first_moments(optimizer, parameter)
            keys = {moment: f"optimizer.{names[id(parameter)]}.{moment}" for moment in moments}
            used.update(keys.values())
            if any(key in training for key in keys.values()):  # none where no loss reaches the parameter
                for moment, key in keys.items():
                    _fill(moments[moment], training, key)
                optimizer.state[parameter] = moments
    foreign = sorted(set(training) - used)
    if foreign:
        raise CheckpointError(
            f"{saved.folder} holds what this run has no place for ({', '.join(foreign[:3])}, {len(foreign)} in all); "
            "resume it as it was started"
        )
    later = {name: kind for name, kind in _CARRIED_LATER.items() if name in saved.state}
    for name, kind in (_CARRIED | later).items():
        if not isinstance(saved.state.get(name), kind):
            raise CheckpointError(f"{saved.folder / checkpoint.STATE} has no {name}; resume from another checkpoint")
        setattr(state, name, saved.state[name])
    return state


def _fill(tensor: Tensor, stored: Stored, name: str) -> None:
    if name not in stored:
        raise CheckpointError(f"{stored.folder} lacks {name}; resume from another checkpoint")
    if stored.shape(name) != tuple(tensor.shape):
        raise CheckpointError(
            f"{stored.folder}: {name} is {list(stored.shape(name))} instead of {list(tensor.shape)}; "
            "resume it as it was started"
        )
    fill(tensor, stored, name)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _check_same_run(saved: Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """What may change between runs of one folder are `_FREE_FIELDS`; all else must be the same."""
    before, now = _flat(saved.config.to_dict()), _flat(config.to_dict())
    changed = [
        f"{name}: {before[name]} -> {now[name]}"
        for name in before
        if before[name] != now[name] and (name == "run.seed" or not name.startswith(_FREE_FIELDS))
    ]
    if changed:
        raise CheckpointError(
            f"{saved.folder} was trained with other settings ({'; '.join(changed)}); "
            "resume with the old ones, or train into another --run folder"
        )
    if saved.tokenizer.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{saved.folder} was trained with another tokenizer.json; train into another --run folder"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, under dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
