"""Everything that a run carries from step to step, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.train.muon import Muon
from opencoca.train.optim import make_optimizers

Prepare = Callable[[CoCa], None]

ADAMW_STATE, MUON_STATE = ("exp_avg", "exp_avg_sq", "step"), ("momentum",)
_CARRIED = {"step": int, "position": int, "seconds": float, "metrics": dict, "data": str, "owes_evaluation": bool}
_FREE_FIELDS = ("run.", "generation.", "data.folder", "data.val_split", "data.tokenizer", "recipe")  # but not the seed


@dataclass
class TrainState:
    """Model, optimizers, moving average, and where the run stands.

    Nothing random is carried: initialisation, order and augmentation are functions of (seed, name), (seed, epoch)
    and (seed, epoch, sample id), so `step` and `position` say all. `seconds` is the time spent in training steps,
    `data` the fingerprint of what is trained on; `owes_evaluation` says that the one at `step` was interrupted.
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

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Moves the weights' exponential moving average on; early on it follows faster, by (1 + n) / (10 + n)."""
        if self.average:
            decay = min(decay, (1 + self.step) / (10 + self.step))
            for average, parameter in zip(self.average.values(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 1.0 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to ship: the moving average where the run keeps one."""
        return self.average or dict(self.model.named_parameters())


def fresh_state(config: Config, device: torch.device, prepare: Prepare | None = None) -> TrainState:
    """The state before the first step; `prepare` may load weights into the new model, freeze parts or add some."""
    model = build(config.model, config.run.seed, device)
    if prepare is not None:
        prepare(model)
    average = {n: p.detach().clone() for n, p in model.named_parameters()} if config.optim.ema_decay else {}
    return TrainState(model, make_optimizers(model, config.optim), average)


def save_state(folder: Path, state: TrainState, config: Config, tokenizer: Tokenizer) -> None:
    """Writes one checkpoint, atomically."""
    names = {id(p): n for n, p in state.model.named_parameters()}
    training = {
        f"optimizer.{names[id(parameter)]}.{moment}": value
        for optimizer in state.optimizers
        for parameter, moments in optimizer.state.items()
        for moment, value in moments.items()
    }
    if state.average:
        training |= {f"raw.{name}": parameter for name, parameter in state.model.named_parameters()}
    checkpoint.save(
        folder,
        config,
        tokenizer,
        state.weights(),
        training,
        {name: getattr(state, name) for name in _CARRIED},
    )


def load_state(
    folder: Path, config: Config, tokenizer: Tokenizer, device: torch.device, prepare: Prepare | None = None
) -> TrainState:
    """The state of a checkpoint, bit for bit; `prepare` as in `fresh_state`, so that the model has the same parts.

    Raises: CheckpointError where the checkpoint was made under another configuration or tokenizer.
    """
    saved = checkpoint.load(folder, training=True)
    _check_same_run(saved, config, tokenizer)
    assert saved.training is not None and saved.state is not None
    state = fresh_state(config, device, prepare)
    raw = {name[4:]: tensor for name, tensor in saved.training.items() if name.startswith("raw.")}
    checkpoint.load_weights(state.model, raw or saved.weights, saved.folder)
    for name, average in state.average.items():
        average.copy_(saved.weights[name])
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    for optimizer in state.optimizers:
        moments = MUON_STATE if isinstance(optimizer, Muon) else ADAMW_STATE
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            keys = {moment: f"optimizer.{names[id(parameter)]}.{moment}" for moment in moments}
            if any(key in saved.training for key in keys.values()):  # none where no loss reaches the parameter
                optimizer.state[parameter] = {moment: _moment(saved, key, device) for moment, key in keys.items()}
    for name, kind in _CARRIED.items():
        if not isinstance(saved.state, dict) or not isinstance(saved.state.get(name), kind):
            raise CheckpointError(f"{saved.folder / checkpoint.STATE} has no {name}; resume from another checkpoint")
        setattr(state, name, saved.state[name])
    return state


def _moment(saved: checkpoint.Checkpoint, key: str, device: torch.device) -> Tensor:
    assert saved.training is not None
    if key not in saved.training:
        raise CheckpointError(f"{saved.folder} lacks {key} in its optimizer state; resume from another checkpoint")
    return saved.training[key].to(device, copy=True)  # a copy: what was read is a map of the file


def _check_same_run(saved: checkpoint.Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
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
