"""Everything that a run carries from step to step, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.train.optim import make_optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainState:
    """Model, optimizer, moving average, and where the run stands.

    Nothing random is carried: initialisation, order and augmentation are functions of (seed, name), (seed, epoch)
    and (seed, epoch, sample id), so `step` and `position` say all. `seconds` is the time spent in training steps.
    """

    model: CoCa
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    step: int = 0
    position: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Moves the weights' exponential moving average on; early on it follows faster, by (1 + n) / (10 + n)."""
        if self.average:
            decay = min(decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.model.parameters()), 1.0 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to ship: the moving average where the run keeps one."""
        return self.average or dict(self.model.named_parameters())


def fresh_state(config: Config, device: torch.device) -> TrainState:
    """The state before the first step."""
    model = build(config.model, config.run.seed, device)
    average = {n: p.detach().clone() for n, p in model.named_parameters()} if config.optim.ema_decay else {}
    return TrainState(model, make_optimizer(model, config.optim), average)


def save_state(folder: Path, state: TrainState, config: Config, tokenizer: Tokenizer) -> None:
    """Writes one checkpoint, atomically."""
    names = {id(p): n for n, p in state.model.named_parameters()}
    training = {
        f"optimizer.{names[id(parameter)]}.{moment}": value
        for parameter, moments in state.optimizer.state.items()
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
        {"step": state.step, "position": state.position, "seconds": state.seconds, "metrics": state.metrics},
    )


def load_state(folder: Path, config: Config, tokenizer: Tokenizer, device: torch.device) -> TrainState:
    """The state of a checkpoint, bit for bit.

    Raises: CheckpointError where the checkpoint was made under another configuration or tokenizer.
    """
    saved = checkpoint.load(folder, training=True)
    _check_same_run(saved, config, tokenizer)
    assert saved.training is not None and saved.state is not None
    state = fresh_state(config, device)
    raw = {name[4:]: tensor for name, tensor in saved.training.items() if name.startswith("raw.")}
    checkpoint.load_weights(state.model, raw or saved.weights, saved.folder)
    for name, average in state.average.items():
        average.copy_(saved.weights[name])
    for name, parameter in state.model.named_parameters():
        state.optimizer.state[parameter] = {
            moment: _moment(saved, f"optimizer.{name}.{moment}", device) for moment in _MOMENTS
        }
    state.step, state.position = int(saved.state["step"]), int(saved.state["position"])
    state.seconds, state.metrics = float(saved.state["seconds"]), dict(saved.state["metrics"])
    return state


def _moment(saved: checkpoint.Checkpoint, key: str, device: torch.device) -> Tensor:
    assert saved.training is not None
    if key not in saved.training:
        raise CheckpointError(f"{saved.folder} lacks {key} in its optimizer state; resume from another checkpoint")
    return saved.training[key].to(device)


def _check_same_run(saved: checkpoint.Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """What may change between runs of one folder is `config.run` (but not the seed); all else must be the same."""
    before, now = saved.config.to_dict(), config.to_dict()
    changed = [
        f"{part}: {before[part]} -> {now[part]}"
        for part in ("model", "optim", "loss", "pixels")
        if before[part] != now[part]
    ]
    for part, name in (("run", "seed"), ("data", "batch_size"), ("data", "max_shift_px")):
        if before[part][name] != now[part][name]:
            changed.append(f"{part}.{name}: {before[part][name]} -> {now[part][name]}")
    if changed:
        raise CheckpointError(
            f"{saved.folder} was trained with other settings ({'; '.join(changed)}); "
            "resume with the old ones, or train into another --run folder"
        )
    if saved.tokenizer.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{saved.folder} was trained with another tokenizer.json; train into another --run folder"
        )
